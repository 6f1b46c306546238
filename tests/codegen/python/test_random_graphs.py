"""Random graphs through layout, fusion, lowering and memory plan: generated code against the interpreter."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings

from capture.ir import Graph
from codegen import python
from passes import optimize
from runtime.executables import AtenExecutable, bound_constants
from tests.random_graphs import EPSILON, Case, cases, close, coarsest, flat_run

ORDERS = [list(order) for order in itertools.permutations(["layout", "fuse", "lower"])]


def assert_generated_code_agrees(case: Case, after: Graph, **sizes: int) -> None:
    """Twice in a row, on inputs and constants that stay as they were, with results that stay as they are."""
    args = case.args(**sizes)
    given = [a.clone() for a in args]
    constants = {name: c.tensor.clone() for name, c in after.constants.items() if c.tensor is not None}
    want = flat_run(case.graph, args)
    f = AtenExecutable(after)
    with torch.no_grad():
        first = list(f(*given))
        kept = [t.clone() for t in first]
        second = list(f(*given))
    epsilon = EPSILON[coarsest(case.graph)]
    for results in (kept, first, second):
        for a, b in zip(want, results, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), f.source
            assert close(a, b, epsilon), f"{a}\n{b}\n{after}\n{f.source}"
    assert all(torch.equal(a, b) for a, b in zip(args, given, strict=True)), f.source
    for name, before in constants.items():
        assert torch.equal(after.constants[name].tensor, before), f"{name}\n{f.source}"


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@settings(max_examples=12)
@given(case=cases())
def test_every_order_of_the_passes(order: list[str], case: Case) -> None:
    assert_generated_code_agrees(case, optimize(case.graph, passes=[*order, "schedule", "memory"]))


@settings(max_examples=60)
@given(case=cases(max_nodes=20))
def test_level_two(case: Case) -> None:
    assert_generated_code_agrees(case, optimize(case.graph, 2))


@settings(max_examples=25)
@given(case=cases(dynamic=True))
def test_level_two_with_a_symbolic_batch(case: Case) -> None:
    after = optimize(case.graph, 2)
    for n in (1, 2, 5):
        assert_generated_code_agrees(case, after, N=n)


@settings(max_examples=40)
@given(case=cases(dtypes=[torch.float32], families=["conv_norm", "binary", "unary", "twin", "linear"]))
def test_convolutions_and_residuals(case: Case) -> None:
    assert_generated_code_agrees(case, optimize(case.graph, 2))


@settings(max_examples=40)
@given(case=cases())
def test_the_source_is_made_of_the_text_alone(case: Case) -> None:
    after = optimize(case.graph, 2, disable=["memory"])
    source = python.emit(after)
    again = Graph.parse(str(after)).bind(bound_constants(after))
    assert str(again) == str(after)
    assert python.emit(again).splitlines()[1:] == source.splitlines()[1:]  # the first line names the graph
    assert python.emit(optimize(case.graph, 2, disable=["memory"])) == source
