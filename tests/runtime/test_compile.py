"""`runtime.compile`: the callable it returns takes what the model took, and gives what the model gave."""

from __future__ import annotations

import gc
import re
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import runtime
from capture import capture
from capture.errors import CaptureError, GuardError, UnsupportedOpError, UsageError

BACKENDS = ["aten", "onnx", "eager"]
Pair = namedtuple("Pair", "left right")


def assert_same(f: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Equal results in an equal structure; inputs are as they were."""
    before = pytree.tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, (args, kwargs))
    got = f(*args, **kwargs)
    torch.testing.assert_close(tensors((args, kwargs)), tensors(before), rtol=0, atol=0)
    with torch.no_grad():
        want = model(*args, **kwargs)
    assert pytree.tree_structure(got) == pytree.tree_structure(want)
    torch.testing.assert_close(tensors(got), tensors(want))
    assert rest(got) == rest(want)


def tensors(tree: Any) -> list[torch.Tensor]:
    return [v for v in pytree.tree_leaves(tree) if isinstance(v, torch.Tensor)]


def rest(tree: Any) -> list[Any]:
    return [v for v in pytree.tree_leaves(tree) if not isinstance(v, torch.Tensor)]


class Nested(nn.Module):
    """Nested inputs and results, a flag, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, xs: Any, mask: Any = None, *, scale: float = 1.0, mode: str = "sum") -> Any:
        y = self.fc(xs["a"]) + xs["b"][0]
        if mask is not None:
            y = y.masked_fill(mask, 0.0)
        y = (y.sum(-1) if mode == "sum" else y.mean(-1)) * scale
        return {"y": y, "pair": Pair(y + 1, [xs["b"][1]]), "none": None, "scale": scale}


def nested_inputs() -> tuple[dict[str, Any], torch.Tensor]:
    return {"a": torch.randn(2, 3), "b": [torch.randn(2, 4), torch.randn(1)]}, torch.rand(2, 4) > 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_nested_inputs_and_results(backend: str) -> None:
    model = Nested().eval()
    xs, mask = nested_inputs()
    f = runtime.compile(model, (xs,), {"mask": mask, "scale": 2.0, "mode": "mean"}, backend=backend)
    assert f.backend == backend
    xs, mask = nested_inputs()
    assert_same(f, model, xs, mask=mask, scale=2.0, mode="mean")
    assert_same(f, model, {"b": xs["b"], "a": xs["a"]}, mode="mean", scale=2.0, mask=mask)
    if backend == "eager":  # the model looks after its own inputs
        return
    with pytest.raises(GuardError, match=r"the input scale was 2\.0 when captured, it is 3\.0 now"):
        f(xs, mask=mask, scale=3.0, mode="mean")
    with pytest.raises(GuardError, match="the input mode was 'mean' when captured, it is 'sum' now"):
        f(xs, mask=mask, scale=2.0, mode="sum")
    with pytest.raises(GuardError, match="4 inputs are needed, 2 given"):
        f(xs, mask=mask)
    with pytest.raises(GuardError, match="has another structure: a dict of 'a', not a dict of 'a', 'b'"):
        f({"a": xs["a"]}, mask=mask, scale=2.0, mode="mean")
    with pytest.raises(GuardError, match="the input mask has the wrong dtype"):
        f(xs, mask=mask.float(), scale=2.0, mode="mean")


@pytest.mark.parametrize("backend", BACKENDS)
def test_structures_of_results(backend: str) -> None:
    class Results(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: torch.Tensor) -> Any:
            y = x + 1
            return {"one": y, "tuple": (y,), "list": [y, x], "empty": (), "twice": (y, y), "input": x}[
                self.kind
            ]

    x = torch.randn(3)
    for kind in ("one", "tuple", "list", "twice", "input"):
        model = Results(kind)
        assert_same(runtime.compile(model, (x,), backend=backend), model, x)


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.Softmax(-1)
    ).eval()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dynamic_shapes(backend: str) -> None:
    model, batch = small_net(), torch.export.Dim("N", min=1, max=6)
    x = torch.randn(3, 3, 6, 6)
    f = runtime.compile(model, (x,), backend=backend, dynamic_shapes=({0: batch},))
    for n in (1, 3, 6):
        assert_same(f, model, torch.randn(n, 3, 6, 6))
    if backend == "eager":
        return
    with pytest.raises(GuardError, match=r"the size N is 7, outside of its range \[1, 6\]"):
        f(torch.randn(7, 3, 6, 6))
    with pytest.raises(GuardError, match="the input input has size 5 in dimension 2, 6 is needed"):
        f(torch.randn(3, 3, 5, 6))


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_levels(level: int) -> None:
    model, x = small_net(), torch.randn(2, 3, 6, 6)
    f = runtime.compile(model, (x,), level=level, backend="aten")
    assert_same(f, model, x)
    assert [r.name for r in f.graph.history] == [r.name for r in f.recipe.optimize(f.captured).history]
    assert f.source is not None
    assert {"capture", "optimize", "compile"} == set(f.seconds)


def test_disabled_and_own_passes_titles_and_progress() -> None:
    model, x, phases = small_net(), torch.randn(2, 3, 6, 6), []
    f = runtime.compile(
        model, (x,), backend="aten", disable=["layout", "memory"], title="a title", progress=phases.append
    )
    ran = [r.name for r in f.graph.history]
    assert "fuse" in ran
    assert not {"layout", "memory"} & set(ran)
    assert phases[0] == "capture"
    assert phases[-1] == "compile"
    assert [p for p in phases if p.startswith("optimize: ")] == [f"optimize: {name}" for name in ran]
    assert (f.source or "").startswith("# a title, captured by torch.export")
    assert_same(f, model, x)
    assert f(x).is_contiguous()
    mine = runtime.compile(model, (x,), backend="aten", passes=["fuse", "lower"])
    assert [r.name for r in mine.graph.history] == ["fuse", "lower"]
    assert_same(mine, model, x)


def test_wrong_options() -> None:
    model, x = nn.Linear(3, 4), torch.randn(2, 3)
    with pytest.raises(UsageError, match="there is no backend 'cuda'") as caught:
        runtime.compile(model, (x,), backend="cuda")
    assert caught.value.hint == "one of auto, aten, onnx, eager"
    with pytest.raises(UsageError, match="there is no optimisation level 9"):
        runtime.compile(model, (x,), level=9)
    with pytest.raises(UsageError, match="there is no pass named 'fusion'"):
        runtime.compile(model, (x,), disable=["fusion"])


# -- what is given to compile -----------------------------------------------------------------------------


def test_a_graph_and_an_exported_program() -> None:
    model, x = small_net(), torch.randn(2, 3, 6, 6)
    graph = capture(model, (x,))
    text = str(graph)
    for given in (graph, torch.export.export(model, (x,))):
        for backend in ("aten", "eager"):
            f = runtime.compile(given, (x,), backend=backend)
            assert f.module is None
            torch.testing.assert_close(f(x), model(x).detach())
    assert str(graph) == text
    assert graph.history == []


def test_a_graph_with_unbound_weights() -> None:
    graph = type(capture(nn.Linear(3, 4), (torch.ones(2, 3),))).parse(
        "graph(%x: f32[2, 3])\n  @w: f32[4, 3]\n  %0: f32[2, 4] = aten.linear(%x, @w)\n  return %0\n"
    )
    for backend in ("aten", "auto"):
        with pytest.raises(CaptureError, match=re.escape("the constant @w has no value")):
            runtime.compile(graph, (torch.ones(2, 3),), backend=backend)


def test_a_backend_that_cannot_run_the_graph_says_so() -> None:
    class Rows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            from torch._higher_order_ops.map import map

            return map(lambda row: row.sin() + 1, x)

    with pytest.raises(UnsupportedOpError, match=r"higher_order\.map_impl has no Python form"):
        runtime.compile(Rows(), (torch.ones(2, 3),), backend="aten")
    f = runtime.compile(Rows(), (torch.ones(2, 3),))
    assert f.backend == "eager"
    reasons = {c.backend: c.reason for c in f.candidates}
    assert reasons["aten"] == "higher_order.map_impl has no Python form"
    assert reasons["onnx"]


# -- calls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["aten", "onnx"])
def test_results_of_a_call_stay_when_another_is_made(backend: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.Tanh(), nn.Flatten(0)).eval()
    f = runtime.compile(model, (torch.randn(4, 6),), backend=backend)
    first = f(torch.randn(4, 6))
    kept = first.clone()
    results = [f(torch.randn(4, 6)) for _ in range(3)]
    assert torch.equal(first, kept)
    storages = {t.untyped_storage().data_ptr() for t in (first, *results)}
    assert len(storages) == 4
    first.zero_()  # the caller's own
    x = torch.randn(4, 6)
    torch.testing.assert_close(f(x), model(x).detach())


def net_with_arena() -> nn.Module:
    """All that lives inside a call is made by operators that write where they are told."""
    return Attended().eval()


class Attended(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(x @ x.transpose(-1, -2), -1)
        return torch.softmax(weights @ x, 1) + 1


def test_eight_threads_at_once() -> None:
    model = net_with_arena()
    inputs = [torch.randn(2, 3, 8, 8) for _ in range(8)]
    f = runtime.compile(model, (inputs[0],), backend="aten")
    with torch.no_grad():
        want = [model(x) for x in inputs]
    start = threading.Barrier(8)

    def call(i: int) -> list[torch.Tensor]:
        start.wait()
        return [f(inputs[i]) for _ in range(25)]

    with ThreadPoolExecutor(8) as pool:
        for expected, results in zip(want, pool.map(call, range(8)), strict=True):
            for result in results:
                torch.testing.assert_close(result, expected)
    module: Any = f.executable.module
    assert 1 <= len(module.arenas) <= 8


def test_threads_that_meet_changed_weights_pack_them_once() -> None:
    model, x = small_net(), torch.randn(2, 3, 6, 6)
    f = runtime.compile(model, (x,), backend="aten")
    with torch.no_grad():
        model[4].bias.add_(torch.randn(16))
        want = model(x)
    start = threading.Barrier(8)

    def call(_: int) -> torch.Tensor:
        start.wait()
        return f(x)

    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(call, range(8)):
            torch.testing.assert_close(result, want)
    assert f.recompiles == 1


def test_calls_leave_no_memory_behind() -> None:
    x = torch.randn(2, 3, 8, 8)
    f = runtime.compile(net_with_arena(), (x,), backend="aten")

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    f(x)
    before = alive()
    for _ in range(50):
        f(x)
    assert alive() == before
    module: Any = f.executable.module
    assert len(module.arenas) == 1


def test_recompiles_leave_no_source_behind() -> None:
    import linecache

    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), torch.randn(2, 3)
    f = runtime.compile(model, (x,), backend="aten")

    def ours() -> int:
        gc.collect()
        return sum(name.startswith("<torch-capture") for name in linecache.cache)

    before = ours()
    for _ in range(5):
        with torch.no_grad():
            model[0].weight.mul_(0.5)
        torch.testing.assert_close(f(x), model(x).detach())
    assert f.recompiles == 5
    assert ours() == before


def test_a_traceback_shows_the_generated_line() -> None:
    class Check(nn.Module):
        def forward(self, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
            return x[i] * 2

    f = runtime.compile(Check(), (torch.ones(3), torch.tensor([0, 2])), backend="aten")
    with pytest.raises(IndexError) as caught:
        f(torch.ones(3), torch.tensor([0, 3]))
    assert any("aten.index" in str(entry.statement) for entry in caught.traceback)
    torch.testing.assert_close(f(torch.ones(3), torch.tensor([1])[[0, 0]]), torch.full((2,), 2.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_modes(backend: str) -> None:
    model, x = small_net(), torch.randn(2, 3, 6, 6)
    want = model(x).detach()
    with torch.inference_mode():
        inside = runtime.compile(model, (x,), backend=backend)
        torch.testing.assert_close(inside(x), want)
    outside = runtime.compile(model, (x,), backend=backend)
    for f in (inside, outside):
        for mode in (torch.enable_grad, torch.inference_mode, torch.no_grad, torch.enable_grad):
            with mode():
                result = f(x.clone().requires_grad_(mode is torch.enable_grad))
                torch.testing.assert_close(result, want)
                assert not result.requires_grad


class Running(nn.Module):
    """A mean of what was seen, as a norm keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        self.mean.lerp_(y.mean(0), 0.1)
        return y - self.mean


@pytest.mark.parametrize("backend", BACKENDS)
def test_buffers_are_written(backend: str) -> None:
    ours, eager = Running().requires_grad_(False), Running().requires_grad_(False)
    eager.load_state_dict(ours.state_dict())
    f = runtime.compile(ours, (torch.randn(5, 3),), backend=backend)
    for _ in range(3):
        x = torch.randn(5, 3)
        torch.testing.assert_close(f(x), eager(x))
    torch.testing.assert_close(dict(ours.state_dict()), dict(eager.state_dict()))
    assert f.recompiles == 0


@pytest.mark.parametrize("backend", ["aten", "onnx"])
def test_autocast_is_noticed(backend: str) -> None:
    """Eager would compute in bfloat16; what was captured does not."""
    model, x = small_net(), torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        f = runtime.compile(model, (x,), backend=backend)
        with pytest.raises(GuardError, match=r"captured without torch\.autocast, called under it"):
            f(x)
        with torch.autocast("cpu", enabled=False):
            assert_same(f, model, x)
    assert_same(f, model, x)
    eager = runtime.compile(model, (x,), backend="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert eager(x).dtype == torch.bfloat16


def test_dropout_in_training_draws_anew() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5)).train()
    x = torch.ones(4, 64)
    f = runtime.compile(model, (x,), backend="aten")
    torch.manual_seed(0)
    first, second = f(x), f(x)
    assert not torch.equal(first == 0, second == 0)
    torch.manual_seed(0)
    assert torch.equal(f(x), first)


def test_half_precision() -> None:
    model, x = small_net().bfloat16(), torch.randn(2, 3, 6, 6).bfloat16()
    f = runtime.compile(model, (x,), backend="aten")
    assert f(x).dtype == torch.bfloat16
    assert runtime.compare(model, f, (x,)).ok


def test_sources_say_what_runs(tmp_path: Path) -> None:
    model, x = small_net(), torch.randn(2, 3, 6, 6)
    assert runtime.compile(model, (x,), backend="eager").source is None
    f = runtime.compile(model, (x,), backend="aten")
    module: dict[str, Any] = {}
    exec(f.source or "", module)
    module["load"]({name: c.tensor for name, c in f.graph.constants.items()})
    with torch.no_grad():
        torch.testing.assert_close(module["forward"](x)[0], model(x))
