"""What becomes of the forward and the backward graph: passes, memory, and what cannot be taken."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import runtime.training
from capture.errors import CaptureError, UsageError
from models.gpt2 import GPT2, Config
from runtime.backend_options import BackendOptions
from runtime.peak import measured_peak
from runtime.training import TrainingGraph
from tests.runtime.training.steps import compiled, graphs_of

DEEP = Config(vocabulary=64, positions=32, width=32, depth=4, heads=2, tokens=32)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, TrainingGraph]:
    """The graphs that are compiled, by their role."""
    found: dict[str, TrainingGraph] = {}

    class Noted(TrainingGraph):
        def __init__(self, role: str, *given: Any) -> None:
            super().__init__(role, *given)
            found[role] = self

    monkeypatch.setattr(runtime.training, "TrainingGraph", Noted)
    return found


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 6), nn.Sigmoid())


def test_both_graphs_are_optimised_and_explained(made: dict[str, TrainingGraph]) -> None:
    call = compiled(mlp())
    call(torch.randn(3, 6)).sum().backward()
    assert list(made) == ["forward", "backward"]
    for graph in made.values():
        assert len(graph.graph.nodes) < len(graph.captured.nodes)
        assert [record.name for record in graph.graph.history][:2] == ["recompose", "simplify"]
        assert graph.graph.memory_plan is None
        assert "linear" in graph.source or "mm" in graph.source
    (record,) = graphs_of(call)
    assert record.nodes == sum(len(graph.captured.nodes) for graph in made.values())
    counts = [f"{len(g.captured.nodes)} -> {len(g.graph.nodes)} nodes" for g in made.values()]
    assert list(record.events) == [f"forward graph: {counts[0]}", f"backward graph: {counts[1]}"]


def test_generated_code_lets_go_of_what_was_kept(made: dict[str, TrainingGraph]) -> None:
    call = compiled(mlp())
    call(torch.randn(3, 6)).sum().backward()
    source = made["backward"].source
    assert "inputs.clear()" in source
    assert "del tangents_1" in source


def test_options_reach_both_graphs(made: dict[str, TrainingGraph]) -> None:
    compiled(mlp(), options={"level": 0})(torch.randn(3, 6)).sum().backward()
    for graph in made.values():
        assert str(graph.graph) == str(graph.captured)


def iteration(model: nn.Module, call: Any) -> Callable[[Tensor], None]:
    def run(ids: Tensor) -> None:
        with torch.enable_grad():
            loss = F.cross_entropy(call(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            torch.autograd.grad(loss, list(model.parameters()))

    return run


def test_a_step_takes_no_more_memory_than_in_eager_and_less_on_request() -> None:
    model = GPT2(DEEP)
    ids = (torch.randint(0, 64, (2, 33)),)
    eager = measured_peak(iteration(model, model), ids)
    assert measured_peak(iteration(model, compiled(model)), ids) <= eager
    torch._dynamo.reset()
    half = compiled(model, options={"activation_memory_budget": 0.5})
    assert measured_peak(iteration(model, half), ids) < 0.8 * eager


@pytest.mark.parametrize("budget", [0.0, 0.5, 1.0])
def test_gradients_do_not_depend_on_the_budget(budget: float) -> None:
    model, x = mlp(), torch.randn(3, 6)
    model(x).square().sum().backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    compiled(model, options={"activation_memory_budget": budget})(x).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)


class Counting(nn.Module):
    """Reads a buffer, through a view and without, before it writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("seen", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(torch.exp(torch.sin(self.fc(x) - self.seen) * 0.5) + torch.cos(self.seen.view(1, 6)))
        self.seen.add_(1)
        return self.fc(h)


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 6))


@pytest.mark.parametrize("budget", [None, 0.0, 0.5])
@pytest.mark.parametrize("make", [Counting, normed])
def test_what_reads_a_buffer_that_is_written_to_is_computed_once(
    make: Callable[[], nn.Module], budget: float | None
) -> None:
    model = make()
    eager, x = copy.deepcopy(model), torch.randn(5, 6)
    call = compiled(model, options={"activation_memory_budget": budget})
    for _ in range(2):
        call(x).square().sum().backward()
        eager(x).square().sum().backward()
    for of in (nn.Module.parameters, nn.Module.buffers):
        pairs = zip(of(model), of(eager), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("budget", [-0.1, 1.5, "half", True, float("nan")])
def test_a_budget_is_a_share(budget: Any) -> None:
    with pytest.raises(UsageError, match="activation_memory_budget"):
        BackendOptions.parse(None, {"activation_memory_budget": budget})


def test_a_graph_that_cannot_be_taken_runs_as_it_came_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(TrainingGraph):
        def __init__(self, role: str, *given: Any) -> None:
            if role == "backward":
                raise CaptureError("no backward graphs here")
            super().__init__(role, *given)

    monkeypatch.setattr(runtime.training, "TrainingGraph", Refusing)
    caplog.set_level(logging.WARNING, logger="capture.backend")
    model, x = mlp(), torch.randn(3, 6)
    model(x).square().sum().backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    compiled(model)(x).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)
    told = [r.message for r in caplog.records if r.name == "capture.backend"]
    assert any("the backward graph: no backward graphs here" in message for message in told)


def test_onnx_runtime_does_not_train_and_says_so() -> None:
    call = compiled(mlp(), options={"backend": "onnx"})
    call(torch.randn(3, 6)).sum().backward()
    (record,) = graphs_of(call)
    assert "ONNX Runtime computes no gradients" in record.events[0]


def test_a_second_derivative_is_refused_as_aotautograd_does() -> None:
    x = torch.randn(4, requires_grad=True)
    (first,) = torch.autograd.grad(compiled(torch.sin)(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        first.sum().backward()


def test_the_graph_may_be_walked_twice_where_it_is_retained() -> None:
    x = torch.randn(4, requires_grad=True)
    loss = compiled(lambda v: torch.sin(v).exp())(x).sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_an_activation_that_was_written_to_is_noticed() -> None:
    x = torch.randn(4, requires_grad=True)
    y = compiled(torch.exp)(x)
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
