"""The cache on disk: what is found again, what is passed over, and who shares it."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import passes
import runtime
import runtime.training
from capture.errors import UsageError
from passes import Pass, PassResult
from runtime.cache import GraphStore, cache_root, size_limit
from tests.runtime.nets import Running, small_net

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the entries of a test are; the cache is on."""
    monkeypatch.setenv("CAPTURE_CACHE", "1")
    monkeypatch.setenv("CAPTURE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graphs"


@pytest.fixture
def optimized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A row for each graph that passes have run on."""
    rows: list[str] = []

    def counted(graph: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(graph.name)
        return passes.optimize(graph, *args, **kwargs)

    for module in ("runtime.compile", "runtime.training"):
        monkeypatch.setattr(sys.modules[module], "optimize", counted)
    return rows


def compiled(model: nn.Module, *shape: int, **options: Any) -> Any:
    options.setdefault("frontend", "dispatch")  # the quick one
    return runtime.compile(model, (torch.randn(*shape),), backend="aten", **options)


def assert_right(f: Any, model: nn.Module, *shape: int) -> None:
    x = torch.randn(*shape)
    with torch.no_grad():
        torch.testing.assert_close(f(x), model(x))


IMAGE = (2, 3, 6, 6)


def test_the_second_start_takes_what_the_first_has_made(folder: Path, optimized: list[str]) -> None:
    model = small_net()
    first, second = compiled(model, *IMAGE), compiled(model, *IMAGE)
    assert len(optimized) == 1
    assert str(second.graph) == str(first.graph)
    assert second.source == first.source
    assert second.graph.history == first.graph.history
    assert second.graph.fates == first.graph.fates
    assert second.graph.memory_plan.arena_bytes == first.graph.memory_plan.arena_bytes
    assert [n.origin for n in second.graph.nodes] == [n.origin for n in first.graph.nodes]
    assert_right(second, model, *IMAGE)


def test_weights_that_passes_left_alone_are_the_models(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    for _ in range(2):
        f = compiled(model, 3, 64)
    (file,) = folder.glob("*.safetensors")
    assert file.stat().st_size < model[0].weight.nbytes
    memory = {t.untyped_storage().data_ptr() for t in model.parameters()}
    assert {c.tensor.untyped_storage().data_ptr() for c in f.graph.constants.values()} <= memory
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert_right(f, model, 3, 64)
    assert f.recompiles == 1


def test_a_buffer_that_is_written_to_is_the_models(folder: Path, optimized: list[str]) -> None:
    first = Running()
    for _ in range(2):
        model, eager = copy.deepcopy(first), copy.deepcopy(first)
        f = runtime.compile(model, (torch.ones(2, 3),), backend="aten")
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(f(torch.ones(2, 3)), eager(torch.ones(2, 3)))
        torch.testing.assert_close(dict(model.named_buffers()), dict(eager.named_buffers()))
    assert len(optimized) == 1


def test_sizes_that_vary_still_do(folder: Path, optimized: list[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8)).eval()
    for _ in range(2):
        f = compiled(model, 3, 4, dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
        for batch in (1, 3, 9):
            assert_right(f, model, batch, 4)
    assert len(optimized) == 1


def note(folder: Path) -> Path:
    return next(folder.glob("*.json"))


def graph_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def take_another_entry(folder: Path) -> None:
    """What belongs to another key, whole as it is."""
    ours = note(folder)
    compiled(nn.Linear(6, 2), 1, 6)
    (other,) = (file for file in folder.glob("*.json") if file != ours)
    ours.write_bytes(other.read_bytes())
    for file in folder.glob(f"{other.stem}.*.safetensors"):
        file.rename(folder / file.name.replace(other.stem, ours.stem))
    other.unlink()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "note cut off": lambda at: note(at).write_bytes(note(at).read_bytes()[:100]),
    "note empty": lambda at: note(at).write_bytes(b""),
    "note changed": lambda at: flip(note(at), note(at).stat().st_size // 2),
    "note of another program": lambda at: note(at).write_text(json.dumps({"format": "other", "content": 1})),
    "note no text": lambda at: note(at).write_bytes(b"\xff\x00\xfe"),
    "note a list": lambda at: note(at).write_text("[1, 2]"),
    "note a folder": lambda at: (note(at).rename(at / "away"), (at / "away").with_name("x").mkdir()),
    "graph cut off": lambda at: os.truncate(graph_file(at), 64),
    "graph changed": lambda at: flip(graph_file(at), graph_file(at).stat().st_size - 3),
    "graph foreign": lambda at: graph_file(at).write_text("not a graph"),
    "graph missing": lambda at: graph_file(at).unlink(),
    "another entry": take_another_entry,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_or_foreign_entry_is_passed_over_and_made_again(
    damage: Callable[[Path], Any], folder: Path, optimized: list[str]
) -> None:
    model = small_net()
    compiled(model, *IMAGE)
    damage(folder)
    optimized.clear()
    assert_right(compiled(model, *IMAGE), model, *IMAGE)
    assert len(optimized) == 1
    assert_right(compiled(model, *IMAGE), model, *IMAGE)
    assert len(optimized) == 1


def test_other_weights_are_another_entry(folder: Path, optimized: list[str]) -> None:
    for scale in (1.0, 2.0):
        torch.manual_seed(0)
        model = small_net()
        with torch.no_grad():
            model[0].weight.mul_(scale)
        assert_right(compiled(model, *IMAGE), model, *IMAGE)
    assert len(optimized) == 2


@pytest.mark.parametrize(
    "options", [{"level": 1}, {"disable": ["fuse"]}, {"passes": ["recompose", "fuse{max_ops=2}"]}], ids=str
)
def test_other_passes_are_another_entry(options: dict[str, Any], folder: Path, optimized: list[str]) -> None:
    model = small_net()
    for given in ({}, options, {}, options):
        assert_right(compiled(model, *IMAGE, **given), model, *IMAGE)
    assert len(optimized) == 2


class Mine(Pass):
    """A pass that is not the toolkit's own."""

    name = "mine"

    def run(self, graph: Any) -> PassResult:
        return PassResult(False)


def test_passes_and_rules_of_the_users_own_are_run_each_time(folder: Path, optimized: list[str]) -> None:
    model = small_net()
    for _ in range(2):
        compiled(model, *IMAGE, passes=[Mine()])
    passes.register_rule("double", lambda x: x + x, lambda x: x * 2, (torch.ones(2, 2),))
    try:
        for _ in range(2):
            compiled(model, *IMAGE)
    finally:
        passes.remove_rule("double")
    assert len(optimized) == 4
    assert not folder.exists()


@pytest.mark.parametrize("how", ["verify", "check_rewrites", "dump_dir"])
def test_whoever_wants_to_see_the_passes_sees_them(
    how: str, folder: Path, optimized: list[str], tmp_path: Path
) -> None:
    model = small_net()
    for _ in range(2):
        compiled(model, *IMAGE, **{how: tmp_path / "dump" if how == "dump_dir" else True})
    assert len(optimized) == 2


def test_it_can_be_switched_off(folder: Path, optimized: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTURE_CACHE", "0")
    for _ in range(2):
        compiled(small_net(), *IMAGE)
    assert len(optimized) == 2
    assert not folder.exists()


def test_a_place_that_cannot_be_written_to_costs_nothing_but_time(
    tmp_path: Path, folder: Path, optimized: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CAPTURE_CACHE_DIR", str(tmp_path / "file"))
    model = small_net()
    for _ in range(2):
        assert_right(compiled(model, *IMAGE), model, *IMAGE)
    assert len(optimized) == 2


def test_threads_share_it(folder: Path) -> None:
    graph = compiled(small_net(), *IMAGE, cache=False).graph
    found: list[Any] = []

    def use() -> None:
        for _ in range(10):
            GraphStore().save("key", graph, {"number": 1})
            found.append(GraphStore().load("key"))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(str(loaded), beside) for loaded, beside in found] == [(str(graph), {"number": 1})] * 40
    assert len(GraphStore().entries()) == 1


PROGRAM = """
import sys, torch
import passes, runtime
runtime.compile
from tests.runtime.nets import small_net
ran = []
sys.modules["runtime.compile"].optimize = lambda *a, **k: ran.append(1) or passes.optimize(*a, **k)
torch.manual_seed(0)
model = small_net()
x = torch.randn(2, 3, 6, 6)
print("ready", flush=True)
sys.stdin.readline()
f = runtime.compile(model, (x,), backend="aten", frontend="dispatch")
with torch.no_grad():
    torch.testing.assert_close(f(x), model(x))
print("ran", len(ran))
"""


def test_two_processes_on_a_cold_cache_both_win(folder: Path) -> None:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def go(*processes: subprocess.Popen[str]) -> list[str]:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [process.communicate(timeout=120)[0] for process in processes]

    both = go(start(), start())
    assert all(told in ("ran 0\n", "ran 1\n") for told in both)
    assert "ran 1\n" in both
    assert len(GraphStore().entries()) == 1
    assert go(start()) == ["ran 0\n"]


def test_what_was_not_used_for_longest_goes_first(folder: Path, optimized: list[str]) -> None:
    models = [nn.Linear(4, 4, bias=False).eval() for _ in range(3)]
    for age, model in zip((300, 200, 100), models, strict=True):
        known = {entry.files for entry in GraphStore().entries()}
        compiled(model, 2, 4)
        (new,) = (entry for entry in GraphStore().entries() if entry.files not in known)
        for file in new.files:
            os.utime(file, (new.used - age, new.used - age))
    compiled(models[0], 2, 4)  # used again
    store = GraphStore(limit=sum(entry.bytes for entry in GraphStore().entries()))
    graph = compiled(nn.Linear(4, 4), 2, 4, cache=False).graph
    store.save("0" * 64, graph, {})
    optimized.clear()
    compiled(models[0], 2, 4)
    compiled(models[2], 2, 4)
    assert optimized == []
    compiled(models[1], 2, 4)
    assert len(optimized) == 1


def test_an_entry_over_the_limit_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTURE_CACHE_SIZE", "100")
    compiled(small_net(), *IMAGE)
    assert GraphStore().entries() == []


def test_what_a_killed_process_left_counts_and_goes(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / ".0123.part").write_bytes(b"half")
    (folder / "notes.txt").write_text("not ours")
    store = GraphStore()
    assert [entry.bytes for entry in store.entries()] == [4]
    assert store.clear() == 4
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def test_a_size_that_is_none_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTURE_CACHE_SIZE", "much")
    with pytest.raises(UsageError, match="much"):
        size_limit()


def test_it_is_in_the_users_cache_folder_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPTURE_CACHE_DIR")
    assert cache_root() == Path.home() / ".cache" / "torch-capture"


def test_the_backend_shares_it(folder: Path, optimized: list[str]) -> None:
    model, x = small_net(), torch.randn(*IMAGE)
    trained = nn.Linear(3, 2)
    for _ in range(2):
        torch._dynamo.reset()
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(model, backend="capture")(x), model(x))
        torch.compile(trained, backend="capture")(torch.ones(4, 3)).sum().backward()
    torch._dynamo.reset()
    assert sorted(optimized) == sorted(set(optimized))
    assert {"forward", "backward"} < set(optimized)
    assert len(optimized) == 3
