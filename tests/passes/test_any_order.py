"""Any sequence of the registered passes keeps a graph sound and its results as they were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from capture import Graph
from passes import optimize, registered
from tests.random_graphs import Case, assert_same_results, cases, coarsest

sequences = st.lists(st.sampled_from(sorted(registered())), min_size=1, max_size=8)


@given(cases(max_nodes=16), sequences)
def test_static(case: Case, sequence: list[str]) -> None:
    after = optimize(case.graph, passes=sequence, verify=True)
    assert str(Graph.parse(str(after))) == str(after)
    assert_same_results(case, after, folds=coarsest(case.graph))


@given(cases(max_nodes=12, dynamic=True), sequences, st.sampled_from([1, 2, 3, 7]))
def test_dynamic(case: Case, sequence: list[str], n: int) -> None:
    assert_same_results(
        case, optimize(case.graph, passes=sequence, verify=True), N=n, folds=coarsest(case.graph)
    )


@given(cases(max_nodes=16), st.permutations(sorted(registered())))
def test_all_of_them(case: Case, sequence: list[str]) -> None:
    assert_same_results(case, optimize(case.graph, passes=sequence, verify=True), folds=coarsest(case.graph))
