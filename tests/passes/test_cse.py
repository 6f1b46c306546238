"""eliminate-common-subexpressions: what is computed once, and what stays twice."""

from __future__ import annotations

import torch

from tests.passes.golden import check, parse

NAME = "eliminate-common-subexpressions"


def test_equal_nodes_become_one_and_so_do_their_users() -> None:
    check(
        """
        graph(%x: f32[3])
          %0: f32[3] = aten.exp(%x)
          %1: f32[3] = aten.exp(%x)
          %2: f32[3] = aten.add.Tensor(%0, 1)
          %3: f32[3] = aten.add.Tensor(%1, 1)
          %4: f32[3] = aten.mul.Tensor(%2, %3)
          return %4
        """,
        NAME,
        """
        graph(%x: f32[3])
          %0: f32[3] = aten.exp(%x)
          %1: f32[3] = aten.add.Tensor(%0, 1)
          %2: f32[3] = aten.mul.Tensor(%1, %1)
          return %2
        """,
    )


def test_every_result_of_equal_nodes() -> None:
    check(
        """
        graph(%x: f32[4])
          %0: f32[2], %1: f32[2] = aten.split.Tensor(%x, 2)
          %2: f32[2], %3: f32[2] = aten.split.Tensor(%x, 2)
          %4: f32[2] = aten.add.Tensor(%0, %3)
          return %4
        """,
        NAME,
        """
        graph(%x: f32[4])
          %0: f32[2], %1: f32[2] = aten.split.Tensor(%x, 2)
          %2: f32[2] = aten.add.Tensor(%0, %1)
          return %2
        """,
    )


def test_equal_regions() -> None:
    region = """{
            ^(%a: f32[3])
            %b: f32[3] = aten.relu(%a)
            %c: f32[3] = aten.neg(%b)
            return %c
          }"""
    check(
        f"""
        graph(%x: f32[3])
          %0: f32[3] = fusion.pointwise(%x) {region}
          %1: f32[3] = fusion.pointwise(%x) {region}
          %2: f32[3] = aten.add.Tensor(%0, %1)
          return %2
        """,
        NAME,
        f"""
        graph(%x: f32[3])
          %0: f32[3] = fusion.pointwise(%x) {region}
          %1: f32[3] = aten.add.Tensor(%0, %0)
          return %1
        """,
    )


def test_inside_a_branch() -> None:
    check(
        """
        graph(%p: bool[], %x: f32[3])
          %0: f32[3] = higher_order.cond(%p, ^0, ^1, [%x]) {
            ^(%a: f32[3])
            %b: f32[3] = aten.relu(%a)
            %c: f32[3] = aten.relu(%a)
            %d: f32[3] = aten.add.Tensor(%b, %c)
            return %d
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
            %c: f32[3] = aten.add.Tensor(%b, %b)
            return %c
          } {
            ^(%a: f32[3])
            %b: f32[3] = aten.neg(%a)
            return %b
          }
          return %0
        """,
    )


def test_tied_weights_become_one_constant() -> None:
    weight = torch.randn(3, 3)
    check(
        parse(
            """
            graph(%x: f32[2, 3])
              @embed.weight: f32[3, 3]
              @head.weight: f32[3, 3]
              %0: f32[2, 3] = aten.linear(%x, @embed.weight)
              %1: f32[2, 3] = aten.linear(%0, @head.weight)
              return %1
            """,
            embed__weight=weight,
            head__weight=weight,
        ),
        NAME,
        """
        graph(%x: f32[2, 3])
          @embed.weight: f32[3, 3]
          @head.weight: f32[3, 3]
          %0: f32[2, 3] = aten.linear(%x, @embed.weight)
          %1: f32[2, 3] = aten.linear(%0, @embed.weight)
          return %1
        """,
    )


def test_the_first_of_a_pair_stays_free_to_be_returned() -> None:
    """One of the two is returned, the other is not: they may be one."""
    check(
        """
        graph(%x: f32[3])
          %0: f32[3] = aten.exp(%x)
          %1: f32[3] = aten.exp(%x)
          %2: f32[3] = aten.neg(%0)
          return %1, %2
        """,
        NAME,
        """
        graph(%x: f32[3])
          %0: f32[3] = aten.exp(%x)
          %1: f32[3] = aten.neg(%0)
          return %0, %1
        """,
    )


def test_keeps_two_results_apart() -> None:
    check(
        """
        graph(%x: f32[3])
          %0: f32[3] = aten.exp(%x)
          %1: f32[3] = aten.exp(%x)
          return %0, %1
        """,
        NAME,
    )


def test_keeps_apart_what_results_are_views_of() -> None:
    check(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.exp(%x)
          %1: f32[4] = aten.exp(%x)
          %2: f32[2, 2] = aten.reshape(%0, [2, 2])
          %3: f32[4, 1] = aten.unsqueeze(%1, 1)
          return %2, %3
        """,
        NAME,
    )


def test_keeps_random_draws_apart() -> None:
    graph = parse(
        """
        graph(%x: f32[3])
          %0: f32[3] = aten.dropout(%x, 0.5, True)
          %1: f32[3] = aten.dropout(%x, 0.5, True)
          %2: f32[3] = aten.add.Tensor(%0, %1)
          return %2
        """
    )
    check(graph, NAME, runs=False)


def test_tells_literals_of_different_type_and_sign() -> None:
    check(
        """
        graph(%x: i64[3], %y: f32[3])
          %0: i64[3] = aten.add.Tensor(%x, 1)
          %1: f32[3] = aten.add.Tensor(%x, 1.0)
          %2: i64[3] = aten.add.Tensor(%x, True)
          %3: f32[3] = aten.mul.Tensor(%y, 0.0)
          %4: f32[3] = aten.mul.Tensor(%y, -0.0)
          %5: f32[3] = aten.div.Tensor(%3, %4)
          %6: i64[3] = aten.add.Tensor(%0, %2)
          %7: f32[3] = aten.add.Tensor(%1, %6)
          return %7
        """,
        NAME,
    )


def test_tells_different_recipes() -> None:
    check(
        """
        graph(%x: f32[3])
          %0: f32[3] = aten.exp(%x) via fast.exp(digits=3)
          %1: f32[3] = aten.exp(%x) via fast.exp(digits=7)
          %2: f32[3] = aten.add.Tensor(%0, %1)
          return %2
        """,
        NAME,
    )


def test_keeps_constants_that_are_written_back() -> None:
    """Each buffer changes by itself after the call, though they share memory now."""
    state = torch.randn(3)
    graph = parse(
        """
        graph(%x: f32[3])
          @a: f32[3]
          @b: f32[3]
          %0: f32[3] = aten.add.Tensor(%x, @a)
          %1: f32[3] = aten.add.Tensor(%x, @b)
          return %0
          write @b = %1
        """,
        a=state,
        b=state,
    )
    check(graph, NAME, runs=False)
