"""MODEL as users type it, its weights and inputs; and each way to get it wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.export import Dim

from capture import CaptureError, capture
from capture.errors import ModelError, UsageError
from capture.loading import load, parse_dynamic, parse_input

MODULE = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, rows: int = 1):
        super().__init__()
        self.rows = rows
        self.layer = nn.Linear(4, 2)
        self.tied = nn.Linear(4, 2, bias=False)
        self.tied.weight = self.layer.weight
        self.drop = nn.Dropout(0.5)

    def forward(self, x, scale=None, *, shift=None):
        y = self.drop(self.layer(x)) + self.tied(x)
        y = y if scale is None else y * scale
        return y if shift is None else y + shift

def build():
    """Net: a small one."""
    return Net()

def batched(batch=1):
    return Net(batch)

def broken():
    raise ValueError("no such checkpoint")

def number():
    return 3

instance = Net()
WIDTH = 4

def example_inputs(batch=1):
    return torch.ones(batch, WIDTH)

def evaluate(fn):
    return 1.0
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's working directory with a module of theirs in it."""
    (tmp_path / "my_net.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in [
        n for n in sys.modules if n.partition(".")[0] in ("my_net", "my_other", "my_net_2", "odd_name")
    ]:
        del sys.modules[name]


def usage_error(spec: str, **options: object) -> str:
    with pytest.raises(UsageError) as caught:
        load(spec, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_module_of_ours() -> None:
    loaded = load("models.resnet:small", batch=3)
    assert (loaded.name, loaded.factory) == ("resnet-small", "small")
    assert loaded.source.endswith("models/resnet.py")
    assert [list(a.shape) for a in loaded.args] == [[3, 3, 64, 64]]
    assert not loaded.module.training
    assert loaded.evaluate is None


def test_a_module_of_the_users(folder: Path) -> None:
    loaded = load("my_net", batch=5)
    assert (loaded.name, loaded.factory, loaded.source) == ("my_net", "build", str(folder / "my_net.py"))
    assert [list(a.shape) for a in loaded.args] == [[5, 4]]
    assert not loaded.module.training  # its dropout would make every run another
    assert loaded.evaluate is not None
    assert loaded.evaluate(None) == 1.0


@pytest.mark.parametrize("spec", ["my_net:Net", "my_net:instance", "my_net.py", "my_net.py:build"])
def test_classes_instances_and_files_do_too(folder: Path, spec: str) -> None:
    assert type(load(spec).module).__name__ == "Net"


def test_a_file_outside_the_folder_or_with_an_odd_name(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "odd-name.py"
    elsewhere.write_text(MODULE)
    assert load(f"{elsewhere}:build").name == "odd_name"


def test_a_factory_that_takes_the_batch_gets_it(folder: Path) -> None:
    assert load("my_net:batched", batch=7).module.rows == 7


@pytest.mark.parametrize(
    ("text", "args", "kwargs"),
    [
        ("return torch.ones(2, 4), torch.ones(2)", 2, set()),
        ("return [torch.ones(2, 4)]", 1, set()),
        ("return {'x': torch.ones(2, 4), 'shift': torch.ones(2)}", 0, {"x", "shift"}),
        ("return (torch.ones(2, 4),), {'shift': torch.ones(2)}", 1, {"shift"}),
    ],
)
def test_forms_of_example_inputs(folder: Path, text: str, args: int, kwargs: set[str]) -> None:
    source = MODULE.replace("return torch.ones(batch, WIDTH)", text)
    (folder / "my_other.py").write_text(source)
    loaded = load("my_other")
    assert (len(loaded.args), set(loaded.kwargs)) == (args, kwargs)
    capture(loaded.module, loaded.args, loaded.kwargs).verify()


def test_inputs_by_name_are_put_in_their_places(folder: Path) -> None:
    shift, x = torch.ones(2), torch.ones(3, 4)
    loaded = load("my_net", inputs={"shift": shift, "x": x})
    assert loaded.args[0] is x
    assert list(loaded.kwargs) == ["shift"]
    skipped = load("my_net", inputs={"scale": torch.ones(2), "x": x})
    assert [len(skipped.args), skipped.kwargs] == [2, {}]


def test_inputs_from_an_npz_file(folder: Path) -> None:
    np.savez(folder / "data.npz", x=np.ones((6, 4), dtype=np.float32))
    loaded = load("my_net", inputs=str(folder / "data.npz"))
    assert (loaded.args[0].shape, loaded.args[0].dtype) == ((6, 4), torch.float32)


def test_weights(folder: Path) -> None:
    """A file that leaves out a tied tensor is complete."""
    state = {"layer.weight": torch.randn(2, 4), "layer.bias": torch.randn(2)}
    save_file(state, folder / "net.safetensors")
    module = load("my_net", weights=folder / "net.safetensors").module
    torch.testing.assert_close(module.tied.weight.detach(), state["layer.weight"])


def test_a_published_checkpoint_is_converted(tmp_path: Path) -> None:
    """GPT-2's file holds the matrices of linear layers transposed; models/gpt2.py knows how to turn them."""
    import models.gpt2

    state = {k: v.detach().clone() for k, v in models.gpt2.small().state_dict().items()}
    turned = {
        k: v.t().contiguous() if k.endswith(("attn.weight", "proj.weight", "fc.weight")) else v
        for k, v in state.items()
    }
    save_file(turned, tmp_path / "gpt2.safetensors")
    loaded = load("models.gpt2:small", weights=tmp_path / "gpt2.safetensors").module.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_weights_that_do_not_fit(folder: Path) -> None:
    before = load("my_net:instance").module.layer.bias.detach().clone()
    save_file({"layer.weight": torch.ones(3, 4), "head.weight": torch.ones(1)}, folder / "net.safetensors")
    with pytest.raises(CaptureError) as caught:
        load("my_net:instance", weights=folder / "net.safetensors")
    text = str(caught.value)
    assert "missing: layer.bias" in text
    assert "unexpected: head.weight" in text
    assert "of another shape: layer.weight [3, 4], not [2, 4]" in text
    assert torch.equal(load("my_net:instance").module.layer.bias, before)


@pytest.mark.parametrize(
    ("spec", "options", "what"),
    [
        ("my_missing", {}, "there is no module 'my_missing'"),
        ("my_net:biuld", {}, "try: my_net:build"),
        ("my_net:WIDTH", {}, "my_net:WIDTH is a int"),
        ("my_net:number", {}, "returned a int, not an nn.Module"),
        ("missing.py", {}, "there is no file missing.py"),
        ("missing.pt2", {}, "there is no file missing.pt2"),
        ("my_net", {"batch": 0}, "a batch of 0"),
        ("my_net", {"weights": "missing.safetensors"}, "there is no file missing.safetensors"),
        ("my_net", {"weights": "my_net.py"}, "is not a .safetensors file"),
        ("my_net", {"inputs": "missing.npz"}, "there is no file missing.npz"),
        ("my_net", {"inputs": "my_net.py"}, "cannot read my_net.py"),
        ("my_net", {"inputs": {"y": torch.ones(1)}}, "the model has no input 'y'"),
        ("my_net.number:", {}, "no module"),
        ("not a module", {}, "is not the name of a module"),
    ],
)
def test_what_does_not_exist_or_fit(folder: Path, spec: str, options: dict[str, object], what: str) -> None:
    assert what in usage_error(spec, **options)


def test_damaged_weights(folder: Path) -> None:
    (folder / "bad.safetensors").write_bytes(b"not this")
    assert "cannot read the weights" in usage_error("my_net", weights="bad.safetensors")


def test_arrays_of_objects_are_refused(folder: Path) -> None:
    np.savez(folder / "objects.npz", x=np.array([{}], dtype=object))
    assert "cannot read" in usage_error("my_net", inputs="objects.npz")


def test_a_module_without_example_inputs(folder: Path) -> None:
    (folder / "my_other.py").write_text(MODULE.replace("def example_inputs", "def other_inputs"))
    text = usage_error("my_other")
    assert text.startswith("my_other gives no example inputs")
    assert "--input x=1x3x224x224:float32" in text
    assert load("my_other", inputs={"x": torch.ones(1, 4)}).args[0].shape == (1, 4)


@pytest.mark.parametrize(
    ("spec", "where", "why"),
    [
        (
            "my_net:broken",
            'my_net.py:27   raise ValueError("no such checkpoint")',
            "ValueError: no such checkpoint",
        ),
        ("my_other", "my_other.py:1   import not_there", "No module named 'not_there'"),
        ("my_net_2", "my_net_2.py:2   WIDTH", "NameError"),
    ],
)
def test_the_users_own_failures_name_their_line(folder: Path, spec: str, where: str, why: str) -> None:
    (folder / "my_other.py").write_text("import not_there\n")
    (folder / "my_net_2.py").write_text("\nWIDTH\n")
    with pytest.raises(ModelError) as caught:
        load(spec)
    assert where in str(caught.value)
    assert why in str(caught.value)


def test_parse_input() -> None:
    name, x = parse_input("x=1x3x8x8:float32")
    assert (name, list(x.shape), x.dtype) == ("x", [1, 3, 8, 8], torch.float32)
    assert len(x.unique()) > 100
    assert parse_input("x=2x3")[1].dtype == torch.float32
    assert parse_input("scale=:bf16")[1].shape == ()
    ids = parse_input("ids=40x50:int64[5..7]")[1]
    assert (ids.dtype, ids.unique().tolist()) == (torch.int64, [5, 6, 7])
    assert parse_input("mask=100:bool")[1].unique().tolist() == [False, True]


@pytest.mark.parametrize(
    "text", ["x", "x=", "=2", "x=2xx3", "x=-1", "x=2:float33", "x=2:int64[3..1]", "x=2:int64[a..b]"]
)
def test_a_malformed_input(text: str) -> None:
    if text == "x=":
        assert parse_input(text)[1].shape == ()
        return
    with pytest.raises(UsageError, match="try: "):
        parse_input(text)


def test_parse_dynamic() -> None:
    shapes = parse_dynamic(["x:0=batch[1..64],x:2=seq[2..]", "mask:0=batch"])
    assert {name: list(axes) for name, axes in shapes.items()} == {"x": [0, 2], "mask": [0]}
    batch, seq = shapes["x"].values()
    assert shapes["mask"][0] is batch
    assert (batch.__name__, batch.min, batch.max) == ("batch", 1, 64)
    assert (seq.__name__, seq.min, isinstance(seq.max, int)) == ("seq", 2, False)
    assert parse_dynamic("x:0=n")["x"][0].min == 1


@pytest.mark.parametrize(
    "text",
    ["", "x", "x:0", "x:0=", "x:a=n", "x:0=n[4..2]", "x:0=n[3..3]", "x:0=n[1..2],y:0=n[1..3]", "x:0=n,x:0=m"],
)
def test_a_malformed_dynamic_size(text: str) -> None:
    if not text:
        assert parse_dynamic(text) == {}
        return
    with pytest.raises(UsageError, match="try: x:0=batch"):
        parse_dynamic(text)


def test_dynamic_sizes_reach_the_graph(folder: Path) -> None:
    loaded = load("my_net")
    graph = capture(loaded.module, loaded.args, dynamic_shapes=parse_dynamic("x:0=batch[1..64]"))
    assert str(graph).startswith("graph(%x: f32[batch, 4]) where batch in [1, 64]")
    assert isinstance(parse_dynamic("x:0=batch")["x"][0], Dim)


def test_a_file_of_a_package_is_to_be_named_as_a_module(folder: Path, tmp_path_factory) -> None:
    package = tmp_path_factory.mktemp("elsewhere") / "nets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "parts.py").touch()
    (package / "net.py").write_text("from . import parts\n")
    with pytest.raises(ModelError, match="attempted relative import") as caught:
        load(str(package / "net.py"))
    assert f"nets.net in the place of the file, from the folder {package.parent}" in str(caught.value)
