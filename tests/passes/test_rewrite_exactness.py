"""Rules at work: what is nearly the pattern and must not count as it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import passes
from capture import Graph, capture
from tests.passes.rules import Make


class Function(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


def applied(function: Any, spec: str, *args: torch.Tensor) -> bool:
    """Whether the rule fires in the function; that it computes the same to the last digits is made sure."""
    graph: Graph = capture(Function(function), args)
    after = passes.optimize(graph, passes=[spec], verify=True)
    torch.testing.assert_close(after.run(*args), graph.run(*args), equal_nan=True)
    return after.history[-1].changed


# -- broadcasts


def products(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.matmul(x, y) * x.exp() * y.exp()


def test_a_broadcast_along_a_contracted_axis_is_not_skipped(rule: Make) -> None:
    spec = rule(products, lambda x, y: torch.matmul(x, y) * (x + y).exp(), torch.ones(2, 1), torch.ones(1, 5))
    a, b = torch.randn(2, 1), torch.randn(1, 5)
    assert applied(products, spec, a, b)
    assert not applied(lambda a, b: a.expand(2, 3) @ b.expand(3, 5) * a.exp() * b.exp(), spec, a, b)


def test_a_broadcast_along_an_axis_in_front_is_skipped_at_a_product(rule: Make) -> None:
    spec = rule(
        lambda x, y: torch.sin(x @ y), lambda x, y: torch.cos(x @ y - torch.pi / 2),
        torch.ones(2, 2, 2), torch.ones(2, 2),
    )  # fmt: skip
    assert applied(
        lambda a, b: torch.sin(a @ b.expand(4, 3, 5)), spec, torch.randn(4, 2, 3), torch.randn(3, 5)
    )


def test_an_axis_in_front_of_a_vector_is_not_skipped_at_a_product(rule: Make) -> None:
    spec = rule(
        lambda x, y: torch.sin(x @ y), lambda x, y: torch.cos(x @ y - torch.pi / 2),
        torch.ones(2), torch.ones(2, 2),
    )  # fmt: skip
    a, b = torch.randn(3), torch.randn(3, 5)
    graph = capture(Function(lambda a, b: torch.sin(a.unsqueeze(0) @ b)), (a, b))
    after = passes.optimize(graph, passes=[spec], verify=True)
    assert any("unsqueeze" in str(node.op) for node in after.nodes)
    torch.testing.assert_close(after.run(a, b), graph.run(a, b))


# -- casts


def test_a_widening_cast_is_not_lost_below_arithmetic(rule: Make) -> None:
    """To bf16 many of these numbers are ties, to fp32 none is."""
    spec = rule(
        lambda x: torch.argmax((x + 100) * x, -1), lambda x: torch.max((x + 100) * x, -1)[1], torch.ones(2, 2)
    )
    x = torch.linspace(1, 1.5, 40).to(torch.bfloat16)[None]
    assert applied(lambda x: torch.argmax((x.float() + 100) * x, -1), spec, x.float())
    graph = capture(Function(lambda x: torch.argmax((x.float() + 100) * x, -1)), (x,))
    after = passes.optimize(graph, passes=[spec], verify=True)
    assert torch.equal(after.run(x), graph.run(x))


def test_a_widening_cast_is_not_lost_where_a_number_is_compared(rule: Make) -> None:
    """0.1 is another number in bf16."""
    spec = rule(lambda x: torch.logical_not(x.exp() > 0.1), lambda x: x.exp() <= 0.1, torch.ones(2, 2))
    x = torch.full((2,), 0.1).to(torch.bfloat16).log()
    assert not applied(lambda x: torch.logical_not(x.exp().float() > 0.1), spec, x)


# -- numbers


def test_zero_is_not_negative_zero(rule: Make) -> None:
    spec = rule(lambda x: torch.sin(x.masked_fill(x > 0, 0.0)), lambda x: x.clamp(max=0).sin(), torch.ones(2))
    x = torch.randn(5)
    assert applied(lambda x: torch.sin(x.masked_fill(x > 0, 0.0)), spec, x)
    assert not applied(lambda x: torch.sin(x.masked_fill(x > 0, -0.0)), spec, x)


@pytest.mark.parametrize("number", [0.0, -0.0])
def test_the_sign_of_a_zero_that_was_found_reaches_the_replacement(rule: Make, number: float) -> None:
    """Traces are remembered by the numbers that they were made for."""
    spec = rule(
        lambda x, c: torch.sin(torch.clamp(x, min=c)), lambda x, c: torch.sin(torch.clamp(x, c, 9.0)),
        torch.ones(2, 2), 0.5,
    )  # fmt: skip
    for one in (-number, number):
        graph = capture(Function(lambda x, one=one: torch.sin(torch.clamp(x, min=one))), (torch.randn(3),))
        after = passes.optimize(graph, passes=[spec])
        assert f", {one}, 9.0)" in str(after)


def test_nan_is_found_in_a_graph(rule: Make) -> None:
    nan, x = float("nan"), torch.randn(3)
    spec = rule(lambda x: torch.sin(x.masked_fill(x > 0, nan)), lambda x: torch.where(x > 0, nan, x.sin()))
    assert applied(lambda x: torch.sin(x.masked_fill(x > 0, nan)), spec, x)


def test_a_constant_is_compared_by_its_bits(rule: Make) -> None:
    spec = rule(lambda x: torch.copysign(x, torch.zeros(1)), lambda x: x.abs(), torch.ones(2))
    positive, negative = torch.zeros(1), torch.tensor([-0.0])
    x = torch.randn(3)
    assert not applied(lambda x: torch.copysign(x, negative), spec, x)
    assert applied(lambda x: torch.copysign(x, positive), spec, x)


# -- other arguments


def test_a_list_among_the_example_arguments_is_passed_on(rule: Make) -> None:
    spec = rule(
        lambda x, axes: x.exp().sum(axes),
        lambda x, axes: x.exp().sum(axes, True).flatten(),
        torch.ones(2, 2, 2),
        [0, 1],
    )
    assert applied(lambda x: x.exp().sum([0, 1]), spec, torch.randn(2, 3, 4))
    assert not applied(lambda x: x.exp().sum([1, 2]), spec, torch.randn(2, 3, 4))
