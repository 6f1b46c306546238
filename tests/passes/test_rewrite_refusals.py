"""Rules at work: every reason why one must not fire."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import passes
from capture import capture
from capture.errors import CaptureError
from tests.passes.golden import parse
from tests.passes.rules import Make, Manual, X, refused, silu

aten = torch.ops.aten


INNER = """
    graph(%x: f32[4])
      %0: f32[4] = aten.sigmoid(%x)
      %1: f32[4] = aten.mul.Tensor(%x, %0)
      %2: f32[4] = aten.neg(%0)
      return %1, %2
    """


def test_an_inner_value_that_is_used_elsewhere(rule: Make) -> None:
    refused(INNER, rule(silu, F.silu), "the result of aten.sigmoid is used elsewhere")


def test_an_inner_value_that_the_graph_returns(rule: Make) -> None:
    refused(
        INNER.replace("%2: f32[4] = aten.neg(%0)\n", "").replace("return %1, %2", "return %1, %0"),
        rule(silu, F.silu),
        "the graph returns the result of aten.sigmoid",
    )


def test_an_inner_value_that_is_written_back(rule: Make) -> None:
    text = INNER.replace("%2: f32[4] = aten.neg(%0)\n", "").replace(
        "return %1, %2", "return %1\n      write %x = %0"
    )
    refused(text, rule(silu, F.silu), "the graph returns the result of aten.sigmoid")


def test_a_second_result_that_is_used(rule: Make) -> None:
    spec = rule(lambda x: torch.max(x, -1)[0].exp(), lambda x: torch.amax(x, -1).exp())
    text = """
        graph(%x: f32[4, 8])
          %0: f32[4], %1: i64[4] = aten.max.dim(%x, 1)
          %2: f32[4] = aten.exp(%0)
          return %2, %1
        """
    refused(text, spec, "the graph returns the result of aten.max.dim")
    assert (
        passes.optimize(parse(text.replace("return %2, %1", "return %2")), passes=[spec]).history[-1].changed
    )


def test_another_type(rule: Make) -> None:
    """sigmoid of an integer is floating; the replacement would not be."""
    spec = rule(lambda x: torch.exp(x) * 0 + x, lambda x: x + torch.zeros_like(x))
    refused(
        """
        graph(%x: i64[4])
          %0: f32[4] = aten.exp(%x)
          %1: f32[4] = aten.mul.Tensor(%0, 0)
          %2: f32[4] = aten.add.Tensor(%1, %x)
          return %2
        """,
        spec,
        "the replacement gives i64[4] for f32[4]",
    )


def test_a_size_that_is_not_proven_the_same(rule: Make) -> None:
    """With the example's sizes the two agree; with a varying one they need not."""
    flat = rule(lambda x: x.exp().flatten(), lambda x: x.exp()[:, :2].flatten(), torch.randn(2, 2))
    text = """
        graph(%x: f32[2, N]) where N in [1, 64]
          %0: f32[2, N] = aten.exp(%x)
          %1: f32[2*N] = aten.reshape(%0, [2*N])
          return %1
        """
    refused(text, flat, "it depends on Eq(N, 2), which sizes may break")


def test_the_guard_and_its_reason(rule: Make) -> None:
    spec = rule(silu, F.silu, guard=lambda match: (match["x"].tensor_type.rank > 1, "only matrices"))
    refused(
        INNER.replace("      %2: f32[4] = aten.neg(%0)\n", "").replace("%1, %2", "%1"), spec, "only matrices"
    )


def test_random_and_effectful_operators(rule: Make) -> None:
    spec = rule(lambda x, y: torch.sin(x) + y, lambda x, y: torch.cos(x) + y, X, X)
    graph = parse(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.dropout(%x, 0.5, True)
          %1: f32[4] = aten.sin(%0)
          %2: f32[4] = aten.add.Tensor(%1, %0)
          return %2
        """
    )
    after = passes.optimize(graph, passes=[spec], verify=True)
    assert len(list(after.find(aten.dropout))) == 1  # an operand: neither doubled nor taken in


def test_an_operand_that_is_computed_from_a_result(rule: Make) -> None:
    """The two could be made together, were y not made of sin(x)."""
    pair = rule(
        lambda x, y: (torch.sin(x), torch.mul(x, y)), lambda x, y: (torch.cos(x), torch.sub(x, y)), X, X
    )
    refused(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.sin(%x)
          %1: f32[4] = aten.exp(%0)
          %2: f32[4] = aten.mul.Tensor(%x, %1)
          return %0, %2
        """,
        pair,
        "an operand is computed from a result",
    )


def test_results_that_would_share_memory(rule: Make) -> None:
    refused(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.neg(%x)
          %1: f32[4] = aten.abs(%0)
          return %1, %x
        """,
        rule(lambda x: torch.abs(torch.neg(x)), lambda x: x.view(x.shape)),
        "share memory",
    )


def test_lowered_nodes(rule: Make) -> None:
    refused(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.sigmoid(%x) via some.kernel()
          %1: f32[4] = aten.mul.Tensor(%x, %0)
          return %1
        """,
        rule(silu, F.silu),
        "is lowered already",
    )


def test_rules_that_never_end_are_named(rule: Make) -> None:
    rule(lambda x, y: torch.add(x, y).neg(), lambda x, y: torch.sub(-x, y), X, X, name="there")
    spec = rule(lambda x, y: torch.sub(-x, y), lambda x, y: torch.add(x, y).neg(), X, X, name="back")
    graph = parse(
        """
        graph(%x: f32[4], %y: f32[4])
          %0: f32[4] = aten.add.Tensor(%x, %y)
          %1: f32[4] = aten.neg(%0)
          return %1
        """
    )
    with pytest.raises(CaptureError, match="the rules there, back apply again and again"):
        passes.optimize(graph, passes=[spec])


def test_without_rules_nothing_is_done(rule: Make) -> None:
    before = capture(Manual(), (X,))
    after = passes.optimize(before, passes=["rewrite{level=1}"])
    assert str(after) == str(before)
    spec = rule(silu, F.silu, level=3)
    assert passes.optimize(before, passes=[spec]).history[-1].changed
    assert "tested" not in passes.optimize(before, 2).history[5].stats
