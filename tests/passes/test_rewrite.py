"""Rules at work: where they fire, in which order, and what the ledger says of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import passes
from capture import capture
from tests.passes.golden import check, parse
from tests.passes.rules import Make, Manual, X, silu

aten = torch.ops.aten


def test_a_pattern_is_replaced(rule: Make) -> None:
    check(
        """
        graph(%x: f32[4, 8])
          %0: f32[4, 8] = aten.sigmoid(%x)
          %1: f32[4, 8] = aten.mul.Tensor(%x, %0)
          %2: f32[4, 8] = aten.neg(%1)
          return %2
        """,
        rule(silu, F.silu),
        """
        graph(%x: f32[4, 8])
          %0: f32[4, 8] = aten.silu(%x)
          %1: f32[4, 8] = aten.neg(%0)
          return %1
        """,
        exact=False,
    )


def test_operands_that_commute_are_tried_both_ways(rule: Make) -> None:
    check(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.sigmoid(%x)
          %1: f32[4] = aten.mul.Tensor(%0, %x)
          return %1
        """,
        rule(silu, F.silu),
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.silu(%x)
          return %0
        """,
        exact=False,
    )


def test_operands_that_do_not_commute_are_not_swapped(rule: Make) -> None:
    check(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.sigmoid(%x)
          %1: f32[4] = aten.div.Tensor(%0, %x)
          return %1
        """,
        rule(lambda x: x / torch.sigmoid(x), lambda x: x * (1 + torch.exp(-x))),
    )


def test_ranks_sizes_and_dtypes_are_those_of_the_graph(rule: Make) -> None:
    """Both functions ask for a size; the example has another one, and another rank."""

    def attention(q: Any, k: Any, v: Any) -> Any:
        return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v

    example = torch.randn(2, 3, 5)
    spec = rule(attention, F.scaled_dot_product_attention, example, example, example)
    text = """
        graph(%q: bf16[2, 3, N, 16], %k: bf16[2, 3, N, 16], %v: bf16[2, 3, N, 16]) where N in [1, 64]
          %0: bf16[2, 3, 16, N] strided = aten.transpose.int(%k, 2, 3)
          %1: bf16[2, 3, N, N] = aten.matmul(%q, %0)
          %2: bf16[2, 3, N, N] = aten.mul.Tensor(%1, 0.25)
          %3: bf16[2, 3, N, N] = aten.softmax.int(%2, 3)
          %4: bf16[2, 3, N, 16] = aten.matmul(%3, %v)
          return %4
        """
    check(
        text,
        spec,
        """
        graph(%q: bf16[2, 3, N, 16], %k: bf16[2, 3, N, 16], %v: bf16[2, 3, N, 16]) where N in [1, 64]
          %0: bf16[2, 3, N, 16] = aten.scaled_dot_product_attention(%q, %k, %v)
          return %0
        """,
        exact=False,
        sizes={"N": 5},
    )
    check(text.replace("0.25", "0.2"), spec)
    check(text.replace("%2, 3)", "%2, 2)"), spec)


def test_a_number_is_a_wildcard_and_reaches_the_replacement_and_the_guard(rule: Make) -> None:
    asked: list[Any] = []

    def guard(match: passes.Match) -> bool:
        asked.append((match.scalars, match["x"], match.node(aten.sigmoid)))
        return True

    graph = parse(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.mul.Tensor(%x, 1.5)
          %1: f32[4] = aten.sigmoid(%0)
          %2: f32[4] = aten.mul.Tensor(%1, %x)
          return %2
        """
    )
    spec = rule(lambda x, s: x * torch.sigmoid(s * x), lambda x, s: F.silu(x * s) / s, X, 1.0, guard=guard)
    after = check(
        graph,
        spec,
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.mul.Tensor(%x, 1.5)
          %1: f32[4] = aten.silu(%0)
          %2: f32[4] = aten.div.Tensor(%1, 1.5)
          return %2
        """,
        exact=False,
    )
    assert len(after.nodes) == 3
    ((scalars, x, node),) = asked
    assert scalars == {"s": 1.5}
    assert x.name == "x"
    assert node.is_op(aten.sigmoid)


def test_one_number_in_two_places_must_be_one_number(rule: Make) -> None:
    text = """
        graph(%x: f32[4])
          %0: f32[4] = aten.add.Tensor(%x, 2.0)
          %1: f32[4] = aten.sin(%0)
          %2: f32[4] = aten.mul.Tensor(%1, 2.0)
          return %2
        """
    spec = rule(lambda x, s: torch.sin(x + s) * s, lambda x, s: s * torch.cos(x + (s - 1)), X, 1.0)
    assert passes.optimize(parse(text), passes=[spec]).history[-1].changed
    check(text.replace("%1, 2.0", "%1, 3.0"), spec)


def test_a_constant_of_no_dims_is_a_number(rule: Make) -> None:
    graph = parse(
        """
        graph(%x: f32[4])
          @half: f32[]
          %0: f32[4] = aten.sin(%x)
          %1: f32[4] = aten.mul.Tensor(%0, @half)
          return %1
        """,
        half=torch.tensor(0.5),
    )
    spec = rule(lambda x: torch.sin(x) * 0.5, lambda x: torch.cos(x - math.pi / 2) / 2)
    assert passes.optimize(graph, passes=[spec], verify=True).history[-1].changed
    graph.constants["half"].tensor = torch.tensor(0.25)
    assert not passes.optimize(graph, passes=[spec], verify=True).history[-1].changed


def test_defaults_may_be_spelled_out(rule: Make) -> None:
    check(
        """
        graph(%x: f32[4, 8])
          %0: f32[4, 8] = aten.softmax.int(%x, 1)
          %1: f32[4] = aten.sum.dim_IntList(%0, [1])
          return %1
        """,
        rule(lambda x: torch.softmax(x, dim=-1).sum(-1, keepdim=False), lambda x: x.sum(-1) * 0 + 1),
        """
        graph(%x: f32[4, 8])
          %0: f32[4] = aten.sum.dim_IntList(%x, [-1])
          %1: f32[4] = aten.mul.Tensor(%0, 0)
          %2: f32[4] = aten.add.Tensor(%1, 1)
          return %2
        """,
        exact=False,
    )


@pytest.mark.parametrize("numbers", [(), (3.0,)])
@pytest.mark.parametrize("width", [16, 20])
def test_a_division_that_clean_up_has_made_a_product_of(
    rule: Make, width: int, numbers: tuple[float, ...]
) -> None:
    """x / 4 is x * 0.25 after clean-up, x / 4.47 is not; the rule is for both, whatever its example."""
    graph = capture(_Scaled(math.sqrt(width)), (torch.randn(2, width),))
    spec = rule(_scaled, lambda x, *s: torch.cos(x / math.sqrt(x.shape[-1])), X, *numbers)
    assert passes.optimize(graph, passes=["simplify", spec], verify=True).history[-1].changed


def _scaled(x: torch.Tensor, *s: float) -> torch.Tensor:
    return torch.sin(x / (s[0] if s else math.sqrt(x.shape[-1])))


class _Scaled(torch.nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x / self.by)


def test_regions_are_rewritten_too(rule: Make) -> None:
    class Branches(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda x: x * torch.sigmoid(x), lambda x: x * 2, (x,))

    graph = capture(Branches(), (torch.randn(4),))
    after = passes.optimize(graph, passes=[rule(silu, F.silu)], verify=True)
    assert "aten.silu" in str(after)
    assert "aten.sigmoid" not in str(after)


def test_rules_meet_until_none_applies(rule: Make) -> None:
    """What one rule puts in is what the other looks for."""
    rule(lambda x: torch.exp(torch.log(x)), lambda x: torch.abs(x), name="one")
    spec = rule(lambda x: torch.abs(torch.neg(x)), lambda x: torch.abs(x), name="two")
    check(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.exp(%x)
          %1: f32[4] = aten.neg(%0)
          %2: f32[4] = aten.log(%1)
          %3: f32[4] = aten.exp(%2)
          return %3
        """,
        spec,
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.exp(%x)
          %1: f32[4] = aten.abs(%0)
          return %1
        """,
        runs=False,
    )


def test_the_larger_pattern_wins(rule: Make) -> None:
    rule(lambda x: torch.sigmoid(x), lambda x: 1 / (1 + torch.exp(-x)), name="small")
    spec = rule(silu, F.silu, name="large")
    graph = parse(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.sigmoid(%x)
          %1: f32[4] = aten.mul.Tensor(%x, %0)
          return %1
        """
    )
    assert dict(passes.optimize(graph, passes=[spec]).history[-1].stats) == {"large": 1}


def test_the_ledger_names_the_rule_and_its_line(rule: Make) -> None:
    graph = capture(torch.nn.SiLU(), (X,))
    manual = capture(Manual(), (X,))
    after = passes.optimize(manual, passes=[rule(silu, F.silu), "fuse"])
    rows = passes.ledger(after)
    assert [row.op for row in rows] == ["aten.sigmoid", "aten.mul.Tensor"]
    for row in rows:
        assert (row.kind, row.pass_name, row.node) == ("replaced", "rewrite", "%0")
        assert row.reason.startswith("by the rule tested (")
        assert "rules.py:" in row.reason
    assert [n.op for n in after.nodes] == [n.op for n in graph.nodes]
    assert after.nodes[0].origin.ids == tuple(row.id for row in rows)
