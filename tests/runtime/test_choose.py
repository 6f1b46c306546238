"""`backend="auto"`: the fastest that is right, and eager where nothing is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import runtime
from capture import capture
from capture.errors import ModelError
from runtime import choose, executables
from runtime.compile import Candidate

X = torch.ones(2, 3)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "ROUNDS", 1)
    monkeypatch.setattr(choose, "SECONDS", 0.0)
    monkeypatch.setattr(choose, "_SETTLE", 0.0)


def clock(monkeypatch: pytest.MonkeyPatch, **milliseconds: float) -> None:
    """Let the backends take these times."""

    def time_block(call: Any, restore: Callable[[], None]) -> list[float]:
        call()
        restore()
        return [milliseconds[call.func.backend]]

    monkeypatch.setattr(choose, "_time_block", time_block)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)).eval()


def broken(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Any]], Any]) -> None:
    """Let generated code return something else."""
    right = executables.AtenExecutable.__call__
    monkeypatch.setattr(
        executables.AtenExecutable, "__call__", lambda self, *flat: change(list(right(self, *flat)))
    )


@pytest.mark.parametrize(
    ("times", "order"),
    [
        (dict(eager=3.0, aten=1.0, onnx=2.0), ["aten", "onnx", "eager"]),
        (dict(eager=3.0, aten=2.0, onnx=1.0), ["onnx", "aten", "eager"]),
        (dict(eager=1.0, aten=2.0, onnx=3.0), ["eager", "aten", "onnx"]),
        (dict(eager=1.0, aten=0.99, onnx=3.0), ["eager", "aten", "onnx"]),  # within the noise
    ],
)
def test_the_fastest_is_kept_and_eager_where_nothing_is_faster(
    monkeypatch: pytest.MonkeyPatch, times: dict[str, float], order: list[str]
) -> None:
    clock(monkeypatch, **times)
    net = model()
    f = runtime.compile(net, (X,))
    assert f.backend == order[0]
    assert f.candidates == [Candidate(name, times[name]) for name in order]
    assert f.reference is not None
    assert (f.source is not None) is (order[0] == "aten")
    torch.testing.assert_close(f(X), net(X).detach())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda out: [out[0] * 1.01], "not right: out: error vs fp64 "),
        (lambda out: [out[0] * float("nan")], "not right: out: NaN in 10 of 10 elements, first at [0, 0]"),
        (lambda out: [out[0][:1]], "not right: out: is f32[1, 5], eager's is f32[2, 5]"),
        (lambda out: [out[0].double()], "not right: out: is f64[2, 5], eager's is f32[2, 5]"),
        (lambda out: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda out: (_ for _ in ()).throw(AssertionError()), "AssertionError"),
    ],
)
def test_a_backend_that_is_wrong_or_fails_is_out(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Any]], Any], reason: str
) -> None:
    clock(monkeypatch, eager=3.0, aten=1.0, onnx=5.0)
    broken(monkeypatch, change)
    net = model()
    f = runtime.compile(net, (X,))
    assert f.backend == "eager"
    out = f.candidates[-1]
    assert (out.backend, out.milliseconds) == ("aten", None)
    assert out.reason.startswith(reason)
    torch.testing.assert_close(f(X), net(X).detach())


def test_a_backend_that_cannot_be_built_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("No module named 'onnxruntime'")

    clock(monkeypatch, eager=3.0, aten=1.0)
    monkeypatch.setattr(executables.OnnxExecutable, "__init__", missing)
    f = runtime.compile(model(), (X,))
    assert f.backend == "aten"
    assert f.candidates[-1] == Candidate("onnx", None, "ImportError: No module named 'onnxruntime'")


def test_one_that_writes_to_the_wrong_place_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An input that eager leaves alone."""
    clock(monkeypatch, eager=3.0, aten=1.0, onnx=5.0)
    right = executables.AtenExecutable.__call__

    def call(self: Any, x: torch.Tensor) -> Any:
        results = right(self, x)
        x.zero_()
        return results

    monkeypatch.setattr(executables.AtenExecutable, "__call__", call)
    x = X.clone()
    f = runtime.compile(model(), (x,))
    assert f.backend == "eager"
    assert f.candidates[-1].reason.startswith("not right: input [0]: ours writes to it, eager does not")
    assert torch.equal(x, X)


def test_measuring_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs, buffers, gradients' mode and the random state are as before."""

    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.drop(self.norm(x))
            x.add_(1)
            return y

    clock(monkeypatch, eager=3.0, aten=1.0, onnx=2.0)
    net, x = Restless().train(), torch.randn(4, 3)
    kept = x.clone()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(7)
    f = runtime.compile(net, (x,))
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(x, kept)
    torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)
    assert torch.is_grad_enabled()
    f(x)
    assert torch.equal(x, kept + 1)
    assert int(net.norm.num_batches_tracked) == 1


def test_each_timed_call_is_given_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float, float]] = []

    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(3))
            self.register_buffer("count", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.compiler.is_compiling() and type(x) is torch.Tensor:
                seen.append((float(x[0]), float(self.total[0]), float(self.count[0])))
            x.mul_(2)
            self.total.add_(x)
            self.count = self.count + 1
            return self.total * self.count

    monkeypatch.setattr(choose, "SECONDS", 0.002)
    net, x = Drifting(), torch.ones(3)
    count = net.count
    f = runtime.compile(net, (x,))
    assert [c.backend for c in f.candidates if c.milliseconds is None] == []
    assert len(seen) > 4
    assert set(seen) == {(1.0, 0.0, 0.0)}
    assert net.count is count
    assert net.count.tolist() == net.total.tolist() == [0, 0, 0]
    assert x.tolist() == [1, 1, 1]


def test_a_graph_is_judged_by_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, eager=3.0, aten=1.0, onnx=2.0)
    graph = capture(model(), (X,))
    f = runtime.compile(graph, (X,))
    assert f.backend == "aten"
    broken(monkeypatch, lambda out: [out[0] + 1])
    assert runtime.compile(graph, (X,)).backend == "onnx"


def test_without_example_inputs_there_is_nothing_to_measure() -> None:
    graph = capture(model(), (X,))
    f = runtime.compile(graph)
    assert f.backend == "aten"
    assert f.candidates == [Candidate("aten", None, "no example inputs to measure with")]
    torch.testing.assert_close(f(X), graph.run(X))


def test_a_graph_that_needs_no_inputs_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))

        def forward(self) -> torch.Tensor:
            return self.weight.exp().sum()

    clock(monkeypatch, eager=3.0, aten=1.0, onnx=2.0)
    net = Constant()
    f = runtime.compile(net)
    assert f.backend == "aten"
    torch.testing.assert_close(f(), net().detach())


def test_keyword_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(nn.Module):
        def forward(self, x: torch.Tensor, *, y: dict[str, torch.Tensor]) -> torch.Tensor:
            return x @ y["w"]

    clock(monkeypatch, eager=3.0, aten=1.0, onnx=2.0)
    f = runtime.compile(Named(), (X,), {"y": {"w": torch.ones(3, 2)}})
    assert f.backend == "aten"
    torch.testing.assert_close(f(X, y={"w": torch.ones(3, 2)}), torch.full((2, 2), 3.0))


def test_a_model_that_fails_is_the_models_own_error() -> None:
    class Wrong(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ torch.ones(7, 2)

    with pytest.raises(ModelError, match="the model raises on the given input"):
        runtime.compile(Wrong(), (X,))


def test_real_times_are_taken() -> None:
    f = runtime.compile(model(), (X,))
    measured = [c for c in f.candidates if c.milliseconds is not None]
    assert {c.backend for c in measured} >= {"eager", "aten"}
    assert all(c.milliseconds > 0 for c in measured)
    assert f.candidates[0].backend == f.backend
