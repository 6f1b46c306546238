"""Rules at work: what may lie between the matched operators, and patterns of several results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import passes
from tests.passes.golden import check, parse
from tests.passes.rules import Make, X, silu

aten = torch.ops.aten


def rms(x: torch.Tensor, w: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return w * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


RMS = """
    graph(%x: {0}[4, 8])
      @w: {0}[8]
      {1}%1: f32[4, 8] = aten.pow.Tensor_Scalar({2}, 2)
      %2: f32[4, 1] = aten.mean.dim(%1, [-1], True)
      %3: f32[4, 1] = aten.add.Tensor(%2, 1e-05)
      %4: f32[4, 1] = aten.rsqrt(%3)
      %5: f32[4, 8] = aten.mul.Tensor({2}, %4)
      {3}%7: {0}[4, 8] = aten.mul.Tensor({4}, @w)
      return %7
    """


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_casts_of_the_pattern_are_there_where_they_change_something(rule: Make, dtype: str) -> None:
    spec = rule(rms, lambda x, w, eps: F.rms_norm(x, w.shape, w, eps), X, torch.ones(3), 1e-6)
    wide = "%0: f32[4, 8] = aten._to_copy(%x, dtype=torch.float32)\n      " if dtype == "bf16" else ""
    back = "%6: bf16[4, 8] = aten._to_copy(%5, dtype=torch.bfloat16)\n      " if dtype == "bf16" else ""
    text = RMS.format(dtype, wide, "%0" if wide else "%x", back, "%6" if back else "%5")
    after = passes.optimize(parse(text), passes=[spec], verify=True)
    assert [str(n.op) for n in after.nodes] == ["aten.rms_norm.default"]


def test_a_narrowing_cast_is_not_skipped(rule: Make) -> None:
    check(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.sigmoid(%x)
          %1: bf16[4] = aten._to_copy(%0, dtype=torch.bfloat16)
          %2: f32[4] = aten._to_copy(%1, dtype=torch.float32)
          %3: f32[4] = aten.mul.Tensor(%x, %2)
          return %3
        """,
        rule(silu, F.silu),
    )


def test_a_widening_cast_is_skipped_where_the_result_is_of_the_same_type(rule: Make) -> None:
    check(
        """
        graph(%x: f16[4, 8])
          %0: f16[4, 8] = aten.exp(%x)
          %1: f32[4, 8] = aten._to_copy(%0, dtype=torch.float32)
          %2: i64[4] = aten.argmax(%1, 1)
          return %2
        """,
        rule(lambda x: torch.exp(x).argmax(-1), lambda x: x.argmax(-1)),
        """
        graph(%x: f16[4, 8])
          %0: i64[4] = aten.argmax(%x, -1)
          return %0
        """,
    )


@pytest.mark.parametrize(
    "between",
    ["aten.clone(%0)", "aten.contiguous(%0)", "aten.expand(%0, [4, 8])", "aten.reshape(%0, [1, 8])"],
)
def test_copies_and_broadcasts_in_between_are_no_hindrance(rule: Make, between: str) -> None:
    shape = {"aten.expand(%0, [4, 8])": "[4, 8]", "aten.reshape(%0, [1, 8])": "[1, 8]"}.get(between, "[8]")
    strided = " strided" if "expand" in between else ""
    text = f"""
        graph(%x: f32[4, 8], %y: f32[8])
          %0: f32[8] = aten.sigmoid(%y)
          %1: f32{shape}{strided} = {between}
          %2: f32[4, 8] = aten.mul.Tensor(%x, %1)
          return %2
        """
    spec = rule(lambda x, y: x * torch.sigmoid(y), lambda x, y: x / (1 + torch.exp(-y)), X, X)
    after = passes.optimize(parse(text), passes=[spec], verify=True)
    assert not list(after.find(aten.sigmoid))


def test_a_broadcast_is_not_skipped_below_a_reduction(rule: Make) -> None:
    check(
        """
        graph(%x: f32[1, 8])
          %0: f32[1, 8] = aten.sigmoid(%x)
          %1: f32[4, 8] strided = aten.expand(%0, [4, 8])
          %2: f32[8] = aten.sum.dim_IntList(%1, [0])
          return %2
        """,
        rule(lambda x: torch.sigmoid(x).sum(0), lambda x: (1 / (1 + torch.exp(-x))).sum(0)),
    )


def test_several_results(rule: Make) -> None:
    """Two projections of one input become one product; what uses the first one comes before the second."""

    def apart(x: Any, a: Any, b: Any) -> Any:
        return F.linear(x, a), F.linear(x, b)

    def joined(x: Any, a: Any, b: Any) -> Any:
        return F.linear(x, torch.cat([a, b])).split([a.shape[0], b.shape[0]], -1)

    spec = rule(apart, joined, X, torch.randn(4, 3), torch.randn(5, 3))
    check(
        """
        graph(%x: f32[2, 8])
          @a: f32[4, 8]
          @b: f32[6, 8]
          %0: f32[2, 4] = aten.linear(%x, @a)
          %1: f32[2, 4] = aten.relu(%0)
          %2: f32[2, 6] = aten.linear(%x, @b)
          %3: f32[2, 6] = aten.exp(%2)
          return %1, %3
        """,
        spec,
        """
        graph(%x: f32[2, 8])
          @a: f32[4, 8]
          @b: f32[6, 8]
          %0: f32[10, 8] = aten.cat([@a, @b])
          %1: f32[2, 10] = aten.linear(%x, %0)
          %2: f32[2, 4] strided, %3: f32[2, 6] strided = aten.split_with_sizes(%1, [4, 6], -1)
          %4: f32[2, 4] = aten.relu(%2)
          %5: f32[2, 6] = aten.exp(%3)
          return %4, %5
        """,
        exact=False,
    )


def test_an_operand_that_comes_late_is_moved_up(rule: Make) -> None:
    check(
        """
        graph(%x: f32[4], %y: f32[4])
          %0: f32[4] = aten.sin(%x)
          %1: f32[4] = aten.neg(%0)
          %2: f32[4] = aten.exp(%y)
          %3: f32[4] = aten.mul.Tensor(%x, %2)
          return %1, %3
        """,
        rule(lambda x, y: (torch.sin(x), x * y), lambda x, y: (-torch.sin(-x), x / y.reciprocal()), X, X),
        """
        graph(%x: f32[4], %y: f32[4])
          %0: f32[4] = aten.exp(%y)
          %1: f32[4] = aten.neg(%x)
          %2: f32[4] = aten.sin(%1)
          %3: f32[4] = aten.reciprocal(%0)
          %4: f32[4] = aten.div.Tensor(%x, %3)
          return %2, %4
        """,
        exact=False,
    )
