"""Random graphs through the clean-up and folding passes, in every order: same results, sound graphs, a full ledger."""

from __future__ import annotations

import time

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import passes
from capture.ir import Graph
from tests.random_graphs import Case, assert_same_results, cases, coarsest

EXACT = ["simplify", "fold-constants", "eliminate-common-subexpressions", "eliminate-dead-code"]
ORDERS = st.lists(st.sampled_from([*EXACT, "fold-batch-norm"]), min_size=1, max_size=7)


@settings(max_examples=150)
@given(st.one_of(cases(), cases(dynamic=True)), ORDERS, st.integers(1, 7))
def test_any_order_keeps_results(case: Case, order: list[str], n: int) -> None:
    sizes = {"N": n} if case.graph.dims else {}
    after = passes.optimize(case.graph, passes=order, verify=True)
    # Folded constants hold values rounded to their dtype, which the fp64 run of the graph before did not round.
    rounds = {"fold-constants", "fold-batch-norm"} & set(order)
    folds = coarsest(case.graph) if rounds else None
    assert_same_results(case, after, exact="fold-batch-norm" not in order, folds=folds, **sizes)
    assert len(after.nodes) <= len(case.graph.nodes)
