"""Tensors of a model, and inputs, that share memory: modelled as they are, or refused, never got wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from capture import CaptureError, capture
from capture.errors import GuardError
from tests.capture.cases import check_against_eager

X = torch.arange(4.0)


class Overlapping(nn.Module):
    """Two buffers, the second a part of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.zeros(4))
        self.register_buffer("part", self.whole[:2])


class WritesWhole(Overlapping):
    def forward(self, x: Tensor) -> Tensor:
        self.whole.add_(x)
        return self.part * 1


class WritesPart(Overlapping):
    def forward(self, x: Tensor) -> Tensor:
        self.part.add_(x[:2])
        return self.whole * 1


class ReadsBoth(Overlapping):
    def forward(self, x: Tensor) -> Tensor:
        return self.whole * x + self.part.sum()


class WritesTheOneItUses(Overlapping):
    def forward(self, x: Tensor) -> Tensor:
        self.whole.add_(x)
        return self.whole * 1


class Columns(nn.Module):
    """Two columns of one matrix: the same storage, no element in common."""

    def __init__(self) -> None:
        super().__init__()
        memory = torch.zeros(4, 2)
        self.register_buffer("left", memory[:, 0])
        self.register_buffer("right", memory[:, 1])

    def forward(self, x: Tensor) -> Tensor:
        self.left.add_(x)
        return self.right - self.left


class Awkward(nn.Module):
    """Buffers of which some cannot be written to, and some not be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("expanded", torch.full((1,), torch.nan).expand(4))
        self.register_buffer("flags", torch.ones(1, 1, dtype=torch.bool).expand(1, 4))
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("lazy", torch.empty(3, device="meta"))
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return torch.where(self.flags, x * self.count, self.expanded)


class Twice(nn.Module):
    """One memory under two names, as two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.zeros(4))
        self.register_buffer("second", self.first.detach())

    def forward(self, x: Tensor) -> Tensor:
        self.first.add_(x)
        return self.second * 1


class AssignsOneOfTwo(Twice):
    def forward(self, x: Tensor) -> Tensor:
        self.first = self.first + x
        return self.second * 1


class InAnAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.tail = self.weight.detach()[2:]

    def forward(self, x: Tensor) -> Tensor:
        self.tail.add_(x[2:])
        return self.weight * 1


FRONTENDS = ["auto", "export", "fx", "dispatch"]


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(
    ("model", "names"),
    [(WritesWhole, "whole and part"), (WritesPart, "whole and part"), (InAnAttribute, "weight and tail")],
)
def test_a_write_that_another_tensor_would_show_is_refused(
    model: type[nn.Module], names: str, frontend: str
) -> None:
    with pytest.raises(CaptureError, match=f"the model's tensors {names} share memory") as caught:
        capture(model(), (X,), frontend=frontend)
    assert "writes" in str(caught.value)
    assert "clone()" in str(caught.value)


@pytest.mark.parametrize("frontend", ["auto", "fx", "dispatch"])  # torch.export refuses some of them
@pytest.mark.parametrize("model", [ReadsBoth, WritesTheOneItUses, Columns])
def test_shared_memory_that_no_write_shows_through_is_captured(model: type[nn.Module], frontend: str) -> None:
    made = model()
    graph = capture(made, (X,), frontend=frontend)
    check_against_eager(graph, made, (X,))


@pytest.mark.parametrize("frontend", ["fx", "dispatch"])
def test_buffers_that_cannot_be_written_to_are_left_alone(frontend: str) -> None:
    model = Awkward()
    before = model.expanded._version, model.flags._version
    graph = capture(model, (X,), frontend=frontend)
    check_against_eager(graph, model, (X,))
    assert (model.expanded._version, model.flags._version) == before


@pytest.mark.parametrize("frontend", ["auto", "fx", "dispatch"])
def test_one_memory_under_two_names_is_one_tensor(frontend: str) -> None:
    model = Twice()
    graph = capture(model, (X,), frontend=frontend)
    assert list(graph.constants) == ["first"]
    assert graph.run(X).tolist() == [0, 1, 2, 3]
    assert graph.run(X).tolist() == model.second.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_assigning_one_of_two_names_is_refused(frontend: str) -> None:
    said = "assigns its buffer first, which is one tensor with second|loses what .* buffer first|be captured"
    with pytest.raises(CaptureError, match=said):
        capture(AssignsOneOfTwo(), (X,), frontend=frontend)


class WritesInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x.add_(1)
        self.total.add_(y)
        return x * y


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_overlapping_example_inputs_are_taken_for_separate_ones(frontend: str) -> None:
    model, memory = WritesInput(), torch.ones(6)
    graph = capture(model, (memory[:4], memory[2:]), frontend=frontend)
    check_against_eager(graph, model, (X, X + 1))
    assert memory.tolist() == [1] * 6
    with pytest.raises(GuardError, match="the inputs x and y share memory"):
        graph.run(memory[:4], memory[2:])


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_buffer_as_example_input_stays_an_input(frontend: str) -> None:
    model = WritesInput()
    graph = capture(model, (X, model.total), frontend=frontend)
    check_against_eager(graph, copy.deepcopy(model), (X, X + 1))
    with pytest.raises(GuardError, match="the input y and the constant @total share memory"):
        graph.run(X.clone(), model.total)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_conjugated_weight_is_another_constant(frontend: str) -> None:
    class Conjugated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(4, dtype=torch.complex64))
            self.register_buffer("conjugate", self.weight.conj())

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x + 2 * self.conjugate

    model = Conjugated()
    check_against_eager(capture(model, (X,), frontend=frontend), model, (X,))
