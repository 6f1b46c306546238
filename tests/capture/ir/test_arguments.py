"""A call's arguments reach the inputs that they were captured for, or the call is refused."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from capture import Graph, capture
from capture.errors import GuardError
from capture.ir.arguments import flatten_inputs

A, B, C = torch.zeros(2), torch.ones(2), torch.full((2,), 2.0)
Pair = namedtuple("Pair", "left right")


class Model(nn.Module):
    def forward(self, x: Any, y: Any, z: Any = None) -> Any:
        return torch.stack(torch.utils._pytree.tree_leaves([x, y] + ([] if z is None else [z])))


def captured(*args: Any, **kwargs: Any) -> Graph:
    return capture(Model(), args, kwargs)


def order(graph: Graph, *args: Any, **kwargs: Any) -> list[int]:
    """Which of A, B, C stands for each input."""
    return [int(t[0]) for t in flatten_inputs(graph, args, kwargs)]


def test_by_position_and_by_name() -> None:
    graph = captured(A, B)
    assert order(graph, A, B) == order(graph, A, y=B) == order(graph, y=B, x=A) == [0, 1]
    assert torch.equal(graph.run(y=B, x=A), torch.stack([A, B]))


def test_keywords_in_any_order() -> None:
    graph = captured(A, z=C, y=B)
    by_name = dict(zip([v.name for v in graph.inputs], order(graph, A, y=B, z=C), strict=True))
    assert by_name == {"x": 0, "y": 1, "z": 2}
    assert torch.equal(graph.run(A, y=B, z=C), torch.stack([A, B, C]))


def test_positions_of_keywords_are_not_guessed() -> None:
    """Captured as f(x, z=..., y=...), the order of y and z by position is not known."""
    graph = captured(A, z=C, y=B)
    with pytest.raises(GuardError, match="3 inputs are needed, 3 given"):
        flatten_inputs(graph, (A, B, C), {})


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_dictionary_in_another_order(kind: type) -> None:
    graph = captured(kind(a=A, b=B), C)
    assert order(graph, kind(b=B, a=A), C) == [0, 1, 2]
    assert order(graph, kind(b=B, a=A), y=C) == [0, 1, 2]
    nested = captured([{"a": A, "b": B}, (C,)], y=A)
    assert order(nested, [{"b": B, "a": A}, (C,)], y=A) == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("example", "given", "message"),
    [
        ((A, B), (A,), "2 inputs are needed, 1 given"),
        ((A, B), (A, B, C), "2 inputs are needed, 3 given"),
        ((A, [B, C]), (A, [B]), "the input argument 1 has another structure: a list of 1, not a list of 2"),
        ((A, [B, C]), (A, (B, C)), "a tuple of 2, not a list of 2"),
        ((A, {"a": B}), (A, {"b": B}), "a dict of 'b', not a dict of 'a'"),
        ((A, {"a": B}), (A, {"a": B, "b": C}), "a dict of 'a', 'b', not a dict of 'a'"),
        (
            (A, {"a": [B]}),
            (A, {"a": B}),
            r"argument 1\['a'\] has another structure: a tensor or a number, not",
        ),
        ((A, B), ([A], B), "the input x has another structure: a list of 1, not a tensor or a number"),
        ((A, Pair(B, C)), (A, (B, C)), "a tuple of 2, not a Pair of 2"),
    ],
)
def test_another_structure_is_refused(example: tuple, given: tuple, message: str) -> None:
    with pytest.raises(GuardError, match=message):
        flatten_inputs(captured(*example), given, {})


def test_unknown_and_doubled_names() -> None:
    graph = captured(A, B)
    with pytest.raises(GuardError, match="captured: x, y; given: 1 by position, mask="):
        flatten_inputs(graph, (A,), {"mask": B})
    with pytest.raises(GuardError, match="2 inputs are needed, 3 given"):
        flatten_inputs(graph, (A, B), {"x": A})


def test_a_graph_without_structure_takes_its_inputs_by_place_or_name() -> None:
    graph = Graph.parse(
        "graph(%x: f32[2], %y: f32[2])\n  %0: f32[2] = aten.sub.Tensor(%x, %y)\n  return %0\n"
    )
    assert order(graph, A, B) == order(graph, y=B, x=A) == [0, 1]
    with pytest.raises(GuardError, match="2 inputs are needed, 1 given"):
        flatten_inputs(graph, (A,), {})
    with pytest.raises(GuardError, match="captured: x, y; given: 1 by position, z="):
        flatten_inputs(graph, (A,), {"z": B})
