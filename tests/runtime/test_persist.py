"""Save a compiled model, load it elsewhere: the same results, and nothing in the folder is executed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import runtime
from capture.errors import CaptureError
from passes import make_pass
from passes.fuse import Fuse
from passes.lower import Lower
from tests.runtime.nets import Nested, Running, nested_inputs, net_with_arena

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backend", ["aten", "onnx", "eager"])
@pytest.mark.parametrize("level", [0, 2])
def test_round_trip(tmp_path: Path, backend: str, level: int) -> None:
    model = net_with_arena()
    f = runtime.compile(model, (X,), backend=backend, level=level, title="a net")
    f.save(tmp_path / "new" / "folder")
    g = runtime.load(tmp_path / "new" / "folder")
    assert (g.backend, g.source) == (f.backend, f.source)
    assert str(g.graph) == str(f.graph)
    assert str(g.captured) == str(f.captured)
    assert g.recipe == f.recipe
    torch.testing.assert_close(g(X), model(X).detach())
    files = {p.name for p in (tmp_path / "new" / "folder").iterdir()}
    assert files == {"settings.json", "captured.safetensors", "optimized.safetensors"} | (
        {"model.py"} if backend == "aten" else set()
    )
    g.save(tmp_path / "again")
    torch.testing.assert_close(runtime.load(tmp_path / "again")(X), g(X))


class Dicts(Nested):
    """Without the class that has no name outside of this process."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        results = super().forward(*args, **kwargs)
        return results | {"pair": tuple(results["pair"])}


def test_nested_structures_and_guards_come_back(tmp_path: Path) -> None:
    xs, mask = nested_inputs()
    given = {"mask": mask, "mode": "mean", "scale": 2.0}
    f = runtime.compile(Dicts().eval(), (xs,), given, backend="aten")
    f.save(tmp_path)
    g = runtime.load(tmp_path)
    assert pytree.tree_structure(g(xs, **given)) == pytree.tree_structure(f(xs, **given))
    torch.testing.assert_close(g(xs, **given)["pair"][1], f(xs, **given)["pair"][1])
    with pytest.raises(CaptureError, match="the input mode was 'mean' when captured"):
        g(xs, mask=mask, mode="sum", scale=2.0)


def test_a_structure_without_a_name_is_refused(tmp_path: Path) -> None:
    xs, _ = nested_inputs()
    f = runtime.compile(Nested().eval(), (xs,), backend="aten")
    with pytest.raises(CaptureError, match="the structure of the results cannot be saved"):
        f.save(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_symbolic_sizes_come_back(tmp_path: Path) -> None:
    model = net_with_arena()
    batch = torch.export.Dim("N", min=1, max=4)
    runtime.compile(model, (X,), backend="aten", dynamic_shapes=({0: batch},)).save(tmp_path)
    g = runtime.load(tmp_path)
    for n in (1, 2, 4):
        x = torch.randn(n, 3, 8, 8)
        torch.testing.assert_close(g(x), model(x).detach())
    with pytest.raises(CaptureError, match="the size N is 5"):
        g(torch.randn(5, 3, 8, 8))


@pytest.mark.parametrize("passes", [["fuse", Lower(keep_nan=True)], [Fuse(max_ops=2), "schedule", "memory"]])
def test_a_pipeline_of_ones_own(tmp_path: Path, passes: list[Any]) -> None:
    model = net_with_arena()
    f = runtime.compile(model, (X,), backend="aten", passes=passes)
    f.save(tmp_path)
    g = runtime.load(tmp_path)
    assert g.source == f.source
    assert [make_pass(p) for p in g.recipe.passes or ()] == [make_pass(p) for p in passes]
    torch.testing.assert_close(g(X), f(X))


def test_buffers_are_the_loaded_models_own(tmp_path: Path) -> None:
    model = Running().requires_grad_(False)
    f = runtime.compile(model, (torch.randn(5, 3),), backend="aten")
    f(torch.randn(5, 3))
    f.save(tmp_path)
    g, h = runtime.load(tmp_path), runtime.load(tmp_path)
    for _ in range(2):
        x = torch.randn(5, 3)
        want = f(x)
        torch.testing.assert_close(g(x), want)
        torch.testing.assert_close(h(x), want)


def test_weights_of_a_loaded_model_may_change(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()
    x = torch.randn(2, 3)
    runtime.compile(model, (x,), backend="aten").save(tmp_path)
    g = runtime.load(tmp_path)
    g.captured.constants["0.weight"].tensor.mul_(2)
    with torch.no_grad():
        model[0].weight.mul_(2)
    torch.testing.assert_close(g(x), model(x).detach())


def test_the_source_in_the_folder_is_there_to_read(tmp_path: Path) -> None:
    """Not to be run: what is executed is made anew from the graph."""
    f = runtime.compile(net_with_arena(), (X,), backend="aten")
    f.save(tmp_path)
    (tmp_path / "model.py").write_text("raise SystemExit('executed')")
    torch.testing.assert_close(runtime.load(tmp_path)(X), f(X))


def write(name: str, text: str | bytes) -> Callable[[Path], Any]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / name).write_bytes(data)


def setting(**changes: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        settings = json.loads((folder / "settings.json").read_text())
        settings.update(changes)
        settings = {k: v for k, v in settings.items() if v != "gone"}
        (folder / "settings.json").write_text(json.dumps(settings))

    return change


def truncated(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-7])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    runtime.compile(nn.Linear(3, 4), (torch.ones(2, 3),), backend="aten").save(folder)
    return folder


DAMAGE = {
    "no settings": lambda folder: (folder / "settings.json").unlink(),
    "settings are no JSON": write("settings.json", "{"),
    "settings are no text": write("settings.json", b"\xff\xfe\x00"),
    "settings are a list": write("settings.json", "[1]"),
    "settings are null": write("settings.json", "null"),
    "another format": setting(format="theirs"),
    "no memory plan": setting(planned="gone"),
    "threads that are a word": setting(threads="two"),
    "passes that are no list": setting(passes=1),
    "no level": setting(level="gone"),
    "a level that is none": setting(level=17),
    "a level that is a word": setting(level="two"),
    "an unknown backend": setting(backend="cuda"),
    "an unknown pass": setting(disable=["nothing"]),
    "disabled passes that are no list": setting(disable=3),
    "no graph": lambda folder: (folder / "optimized.safetensors").unlink(),
    "an empty graph": write("captured.safetensors", b""),
    "a truncated graph": truncated("optimized.safetensors"),
    "a truncated captured graph": truncated("captured.safetensors"),
    "garbage": write("optimized.safetensors", b"\x00" * 300),
    "a folder for a file": lambda folder: (
        (folder / "settings.json").unlink(),
        (folder / "settings.json").mkdir(),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_one_clear_error(tmp_path: Path, saved: Path, damage: str) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    runtime.load(tmp_path)
    DAMAGE[damage](tmp_path)
    with pytest.raises(CaptureError) as caught:
        runtime.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.hint or caught.value.why


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="cannot load the compiled model"):
        runtime.load(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(CaptureError, match="cannot load the compiled model"):
        runtime.load(tmp_path / "file")


def test_an_interrupted_save_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    f, g = (runtime.compile(nn.Linear(3, n), (torch.ones(2, 3),), backend="aten") for n in (4, 5))
    folder = tmp_path / "saved"
    f.save(folder)

    def fails(self: Any, path: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(g.graph), "save", fails)
    with pytest.raises(KeyboardInterrupt):
        g.save(folder)
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]
    assert runtime.load(folder)(torch.ones(2, 3)).shape == (2, 4)


def test_an_older_save_is_replaced_whole(tmp_path: Path) -> None:
    runtime.compile(nn.Linear(3, 4), (torch.ones(2, 3),), backend="aten").save(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.py").exists()
    runtime.compile(nn.Linear(3, 5), (torch.ones(2, 3),), backend="eager").save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.py").exists()  # it has no source
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]
    assert runtime.load(tmp_path / "saved")(torch.ones(2, 3)).shape == (2, 5)


@pytest.mark.parametrize("names", [["notes.txt"], ["model.py"], ["settings.json"]])
@pytest.mark.parametrize("beside", [True, False])
def test_a_folder_with_files_of_others_is_left_alone(tmp_path: Path, names: list[str], beside: bool) -> None:
    f = runtime.compile(nn.Linear(3, 4), (torch.ones(2, 3),), backend="aten")
    folder = tmp_path / "mine"
    if beside and names == ["notes.txt"]:
        f.save(folder)
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    with pytest.raises(CaptureError, match="cannot write") as caught:
        f.save(folder)
    assert names[0] in str(caught.value)
    assert all((folder / name).read_text() == "{}" for name in names)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    f = runtime.compile(nn.Linear(3, 4), (torch.ones(2, 3),), backend="aten")
    with pytest.raises(CaptureError, match="cannot write"):
        f.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
