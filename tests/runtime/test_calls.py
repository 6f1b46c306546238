"""Calls of a compiled model: in turn, at once, in other modes, with buffers; nothing stays behind."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import runtime
from capture.errors import GuardError
from tests.runtime.nets import BACKENDS, Running, assert_same, net_with_arena, small_net


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
    assert alive() <= before  # what other tests left may go meanwhile
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
