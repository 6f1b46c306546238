"""Buffers that forward assigns: written back by the graph, or the step that loses them is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from capture import CaptureError, Graph, capture
from capture.frontends import ladder
from capture.ir import Constant

X = (torch.ones(2, 4),)


class Statistics(nn.Module):
    """`hist` is replaced by one that holds the same zeros on the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("hist", torch.zeros(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
        self.hist = torch.roll(self.hist, 1, 0)
        return y - self.mean + self.hist.sum(0)


class Reset(Statistics):
    """Assigns a buffer where it is not asked to, and puts another in its own place."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.hist = self.hist + 1
        self.mean = self.mean
        return self.linear(x) + self.hist.sum(0)


class Noise(Statistics):
    """A graph that draws random numbers is not compared, but a lost write shows all the same."""

    def forward(self, x: Tensor) -> Tensor:
        self.hist = self.hist + torch.rand(())
        return self.linear(x)


def only(monkeypatch: pytest.MonkeyPatch, steps: Sequence[str]) -> None:
    monkeypatch.setattr(ladder, "_LADDER", {key: ladder._LADDER[key] for key in steps})


def written(graph: Graph) -> set[str]:
    return {target.name for target in graph.writebacks if isinstance(target, Constant)}


@pytest.mark.parametrize("frontend", ["auto", "dispatch"])
def test_a_replaced_buffer_is_written_back(frontend: str) -> None:
    assert written(capture(Statistics().eval(), X, frontend=frontend)) == {"mean", "hist"}


def test_what_was_captured_before_does_not_choose_the_front_end() -> None:
    for _ in range(2):  # with torch's cache of fake tensors empty, then filled
        assert capture(Statistics().eval(), X).frontend == "torch.export (non-strict)"
        FakeTensorMode.cache_clear()
        assert capture(Statistics().eval(), X).frontend == "torch.export (non-strict)"


@pytest.mark.parametrize("model", [Statistics, Noise])
def test_a_step_that_loses_a_buffer_is_passed_over(
    model: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, ["export (strict)", "dispatch"])
    graph = capture(model().eval(), X)
    assert graph.frontend == "dispatch tracing"
    assert "hist" in written(graph)
    assert graph.attempts[0][1] == "torch.export (strict) loses what the model writes to its buffer hist"


def test_where_no_step_is_left_the_buffer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, ["export (strict)"])
    with pytest.raises(CaptureError, match="loses what the model writes to its buffer hist"):
        capture(Statistics().eval(), X)


def test_an_assignment_that_does_not_happen_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, ["export (strict)"])
    graph = capture(Reset().eval(), X)
    assert graph.frontend == "torch.export (strict)"
    assert not written(graph) & {"hist"}
