"""The random graphs that property tests draw are sound themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.ir import Graph
from tests.random_graphs import FAMILIES, LIMIT, Case, assert_same_results, cases, flat_run


@settings(max_examples=50)
@given(st.one_of(cases(), cases(dynamic=True)))
def test_cases_verify_round_trip_and_stay_bounded(case: Case) -> None:
    graph = case.graph.verify()
    assert len(graph.nodes) >= 1
    assert str(Graph.parse(str(graph))) == str(graph)
    for result in flat_run(graph, case.args()):
        assert not result.numel() or result.abs().max() <= LIMIT
    assert_same_results(case, graph.clone(), exact=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_yields_nodes_of_its_own(family: str) -> None:
    seen: set[str] = set()

    @settings(max_examples=30, derandomize=True, database=None)
    @given(cases(families=[family], dtypes=[torch.float32], max_nodes=4))
    def collect(case: Case) -> None:
        seen.update(str(n.op) for n in case.graph.nodes)

    collect()
    assert seen - {"aten.relu.default", "aten.tanh.default"}


def test_the_comparison_sees_a_difference_and_shared_memory() -> None:
    text = "graph(%x0: f32[3])\n  %0: f32[3] = aten.neg(%x0)\n  return %0\n"
    case = Case(Graph.parse(text), seed=1)
    with pytest.raises(AssertionError):
        assert_same_results(case, Graph.parse(text.replace("neg", "abs")))
    clone = Case(Graph.parse(text.replace("neg", "clone")), seed=1)
    with pytest.raises(AssertionError, match="share memory"):
        assert_same_results(clone, Graph.parse("graph(%x0: f32[3])\n  return %x0\n"))
