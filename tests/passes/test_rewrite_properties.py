"""Random graphs under a set of algebraic rules: what they compute stays, checked or not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import passes
from tests.random_graphs import Case, assert_same_results, cases

X = torch.randn(2, 3)
RULES = {
    "double": (lambda x: x + x, lambda x: x * 2, (X,)),
    "square": (lambda x: x * x, lambda x: x.square(), (X,)),
    "clipped": (lambda x, y: torch.maximum(x, y).relu(), lambda x, y: torch.maximum(x.relu(), y), (X, X)),
    "negated-sum": (lambda x, y: -(x + y), lambda x, y: -x - y, (X, X)),
    "minus-negated": (lambda x, y: x - (-y), lambda x, y: x + y, (X, X)),
    "scaled-sum": (lambda x, y, s: (x + y) * s, lambda x, y, s: x * s + y * s, (X, X, 3.0)),
    "silu": (lambda x: x * torch.sigmoid(x), torch.nn.functional.silu, (X,)),
    "abs-negated": (lambda x: torch.abs(-x), torch.abs, (X,)),
    "two-of-one": (
        lambda x: (torch.sin(x), torch.cos(x)),
        lambda x: (torch.cos(x - torch.pi / 2), torch.sin(x + torch.pi / 2)),
        (X,),
    ),
    "transposed-pointwise": (lambda x: x.transpose(0, 1).exp(), lambda x: x.exp().transpose(0, 1), (X,)),
}  # fmt: skip
SPEC = "rewrite{rules=" + "+".join(f"property-{name}" for name in RULES) + "}"
GRAPHS = st.one_of(cases(), cases(dynamic=True))


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    for name, (pattern, replacement, args) in RULES.items():
        passes.register_rule(f"property-{name}", pattern, replacement, args)
    yield
    for name in RULES:
        passes.remove_rule(f"property-{name}")


@settings(max_examples=80)
@given(GRAPHS, st.integers(1, 7))
def test_rules_keep_results_and_the_ledger(case: Case, n: int) -> None:
    sizes = {"N": n} if case.graph.dims else {}
    after = passes.optimize(case.graph, passes=["simplify", SPEC, "eliminate-dead-code"], verify=True)
    assert_same_results(case, after, **sizes)
    alive = {number for node in after.nodes for number in node.origin.ids}
    assert set(case.graph.captured) == alive | set(after.fates)


@settings(max_examples=25)
@given(GRAPHS)
def test_nothing_is_found_the_second_time(case: Case) -> None:
    once = passes.optimize(case.graph, passes=[SPEC])
    twice = passes.optimize(once, passes=[SPEC])
    assert str(twice) == str(once)
    assert once.history[-1].changed == (str(once) != str(case.graph))


@settings(max_examples=25)
@given(GRAPHS)
def test_right_rules_pass_the_check_on_random_graphs(case: Case) -> None:
    args = case.args(**({"N": 3} if case.graph.dims else {}))
    after = passes.optimize(case.graph, passes=[SPEC], check_rewrites=True, args=args)
    sizes = {"N": 3} if case.graph.dims else {}
    assert_same_results(case, after, **sizes)
