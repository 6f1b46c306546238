"""Random graphs through the clean-up and folding passes, in every order."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import passes
from capture.ir import CapturedOp, Graph, Origin, TensorType
from tests.random_graphs import Case, assert_same_results, cases, coarsest

aten = torch.ops.aten

EXACT = ["recompose", "simplify", "fold-constants", "eliminate-common-subexpressions", "eliminate-dead-code"]
NAMES = [*EXACT, "fold-batch-norm"]
GRAPHS = st.one_of(cases(), cases(dynamic=True))


@settings(max_examples=150)
@given(GRAPHS, st.lists(st.sampled_from(NAMES), min_size=1, max_size=7), st.integers(1, 7))
def test_any_order_keeps_results_and_the_ledger(case: Case, order: list[str], n: int) -> None:
    """Equal to the last bit, but for BatchNorm; and what may be seen to share memory stays the same."""
    sizes = {"N": n} if case.graph.dims else {}
    after = passes.optimize(case.graph, passes=order, verify=True)
    # Folded constants are rounded to their dtype, which the fp64 run of the graph before them is not.
    rounds = {"fold-constants", "fold-batch-norm"} & set(order)
    folds = coarsest(case.graph) if rounds else None
    assert_same_results(case, after, exact="fold-batch-norm" not in order, folds=folds, **sizes)
    assert len(after.nodes) <= len(case.graph.nodes)
    alive = {number for node in after.nodes for number in node.origin.ids}
    assert set(case.graph.captured) == alive | set(after.fates)
    assert len(passes.ledger(after)) == len(case.graph.captured)


@settings(max_examples=60)
@given(GRAPHS, st.sampled_from(NAMES))
def test_a_pass_tells_truly_whether_it_changed_the_graph_and_finds_nothing_the_second_time(
    case: Case, name: str
) -> None:
    once = passes.optimize(case.graph, passes=[name])
    assert once.history[-1].changed == (str(once) != str(case.graph))
    assert bool(once.history[-1].stats) == once.history[-1].changed
    twice = passes.optimize(once, passes=[name])
    assert str(twice) == str(once)
    assert not twice.history[-1].changed


@settings(max_examples=40)
@given(GRAPHS)
def test_the_same_graph_gives_the_same_text(case: Case) -> None:
    assert str(passes.optimize(case.graph, 1)) == str(passes.optimize(case.graph.clone(), 1))


def repetitive(length: int) -> Graph:
    """Blocks of work that every pass takes something from: equal, dead, undone, constant."""
    graph = Graph()
    type_, turned = TensorType(torch.float32, (4, 6)), TensorType(torch.float32, (6, 4), "strided")
    value = graph.add_input("x", type_)
    weight = graph.add_constant("weight", torch.randn(6))

    def add(op: Any, *operands: Any, type_: TensorType = type_) -> Any:
        number = len(graph.captured)
        graph.captured[number] = CapturedOp(number, str(op))
        origin = Origin.of(graph.captured[number])
        return graph.add_node(op, operands, types=[type_], origin=origin).result

    for _ in range(length):
        a, b = add(aten.relu.default, value), add(aten.relu.default, value)
        c = add(aten.t.default, add(aten.t.default, a, type_=turned))
        scale = add(aten.exp.default, weight, type_=TensorType(torch.float32, (6,)))
        add(aten.sin.default, c)
        value = add(aten.mul.Tensor, add(aten.add.Tensor, c, b), scale)
    graph.set_results([value])
    return graph


@pytest.mark.parametrize("name", NAMES)
def test_work_grows_as_the_graph_does(name: str) -> None:
    """Counted in function calls, which, unlike seconds, are the same on every run."""

    def calls(length: int) -> int:
        graph, count = repetitive(length), 0

        def tally(frame: FrameType, event: str, argument: object) -> None:
            nonlocal count
            count += event == "call"

        before = sys.getprofile()
        sys.setprofile(tally)
        try:
            passes.optimize(graph, passes=[name])
        finally:
            sys.setprofile(before)
        return count

    calls(10)  # fills the caches that are made once
    assert calls(200) < 2.3 * calls(100)
