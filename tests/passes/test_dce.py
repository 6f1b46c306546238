"""eliminate-dead-code: what goes, and what must stay."""

from __future__ import annotations

from capture.ir import Graph
from tests.passes.golden import check, parse

NAME = "eliminate-dead-code"


def test_drops_chains_and_constants() -> None:
    check(
        """
        graph(%x: f32[3])
          @bias: f32[3]
          @weight: f32[3]
          %0: f32[3] = aten.relu(%x)
          %1: f32[3] = aten.exp(%x)
          %2: f32[3] = aten.add.Tensor(%1, @bias)
          %3: f32[3] = aten.mul.Tensor(%0, @weight)
          return %3
        """,
        NAME,
        """
        graph(%x: f32[3])
          @weight: f32[3]
          %0: f32[3] = aten.relu(%x)
          %1: f32[3] = aten.mul.Tensor(%0, @weight)
          return %1
        """,
    )


def test_drops_inside_regions_what_nothing_uses() -> None:
    """Dead nodes of a region, results that nobody takes, and the operands that only they needed."""
    check(
        """
        graph(%x: f32[3], %y: f32[3])
          %0: f32[3] = aten.exp(%y)
          %1: f32[3], %2: f32[3] = fusion.pointwise(%x, %0) {
            ^(%a: f32[3], %b: f32[3])
            %c: f32[3] = aten.relu(%a)
            %d: f32[3] = aten.neg(%b)
            %e: f32[3] = aten.abs(%c)
            return %c, %d
          }
          return %1
        """,
        NAME,
        """
        graph(%x: f32[3], %y: f32[3])
          %0: f32[3] = fusion.pointwise(%x) {
            ^(%a: f32[3])
            %b: f32[3] = aten.relu(%a)
            return %b
          }
          return %0
        """,
    )


def test_drops_inside_branches_and_dead_branches() -> None:
    check(
        """
        graph(%p: bool[], %x: f32[3])
          %0: f32[3] = higher_order.cond(%p, ^0, ^1, [%x]) {
            ^(%a: f32[3])
            %b: f32[3] = aten.relu(%a)
            return %b
          } {
            ^(%a: f32[3])
            %b: f32[3] = aten.exp(%a)
            %c: f32[3] = aten.neg(%a)
            return %c
          }
          %1: f32[3] = higher_order.cond(%p, ^0, ^1, [%x]) {
            ^(%a: f32[3])
            %b: f32[3] = aten.relu(%a)
            return %b
          } {
            ^(%a: f32[3])
            %b: f32[3] = aten.neg(%a)
            return %b
          }
          return %0
        """,
        NAME,
        """
        graph(%p: bool[], %x: f32[3])
          %0: f32[3] = higher_order.cond(%p, ^0, ^1, [%x]) {
            ^(%a: f32[3])
            %b: f32[3] = aten.relu(%a)
            return %b
          } {
            ^(%a: f32[3])
            %b: f32[3] = aten.neg(%a)
            return %b
          }
          return %0
        """,
    )


def unchanged(text: str) -> Graph:
    return check(parse(text), NAME)


def test_keeps_random_draws() -> None:
    """The draws after it would be others."""
    graph = parse(
        """
        graph(%x: f32[3])
          %0: f32[3] = aten.dropout(%x, 0.5, True)
          %1: f32[3] = fusion.pointwise(%x) {
            ^(%a: f32[3])
            %b: f32[3] = aten.bernoulli(%a)
            return %b
          }
          %2: f32[3] = aten.relu(%x)
          return %2
        """
    )

    check(graph, NAME, runs=False)


def test_keeps_effects() -> None:
    unchanged(
        """
        graph(%x: f32[3])
          %0: bool[] = aten.all(%x)
          aten._assert_async(%0)
          return %x
        """
    )


def test_keeps_what_is_written_back() -> None:
    unchanged(
        """
        graph(%x: f32[3])
          @state: f32[3]
          %0: f32[3] = aten.relu(%x)
          return %x
          write @state = %0
        """
    )


def test_keeps_unused_inputs() -> None:
    unchanged(
        """
        graph(%x: f32[3], %unused: f32[3])
          %0: f32[3] = aten.relu(%x)
          return %0
        """
    )


def test_keeps_a_node_with_one_used_result() -> None:
    unchanged(
        """
        graph(%x: f32[4])
          %0: f32[2], %1: f32[2] = aten.split.Tensor(%x, 2)
          %2: f32[2] = aten.relu(%1)
          return %2
        """
    )
