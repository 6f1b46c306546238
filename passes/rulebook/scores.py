"""One spelling for attention scores: what leads to a softmax and a product as matmul, mul, masked_fill.

    %0 = aten.einsum("bqhd,bkhd->bhqk", [%q, %k])       %0 = aten.permute(%q, [0, 2, 1, 3])
    %1 = aten.div.Tensor(%0, 5.6)                       %1 = aten.permute(%k, [0, 2, 3, 1])
    %2 = aten.softmax.int(%1, -1)               ==>     %2 = aten.matmul(%0, %1)
    ...                                                 %3 = aten.mul.Tensor(%2, 0.178...)

So that the rules for attention need not be written once for each of these. Heads that lie beside the batch in
three axes get an axis of their own, where the softmax has it; a mask that is added before the scale, and one
that is added beside one that is filled in, become one that is added behind the scale.

Do not fire where no softmax over the last axis and no product follow (a division stays a division elsewhere),
where a scale above 1 could make a mask overflow, or on a filling that scores beside it would change: other
than -inf and the lowest number, or in fp16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from capture.ir import Value
from passes.queries import packet_name
from passes.rewriting import Match
from passes.rulebook.common import SCALAR, X, dtype_of, spelled, where

aten = torch.ops.aten
A = torch.empty(2, 2, 2)
B = torch.empty(2, 2, 2, 2)
MASK = torch.empty(2, 2, dtype=torch.bool)
SCALED = (X, SCALAR)

_BETWEEN = {
    "aten.add", "aten.mul", "aten.div", "aten.masked_fill", "aten.where", "aten._to_copy", "aten.to",
    "aten.reshape", "aten.view", "aten.dropout",
}  # fmt: skip
_PRODUCTS = {"aten.matmul", "aten.bmm", "aten.einsum"}
_FARTHEST = 8  # nodes between the scores and the product


def leads_to_attention(match: Match) -> bool:
    """Whether a softmax over the last axis follows, and then a product; nothing on the way is used twice."""
    return _leads(match.results[0], softmax_seen=False)


def _leads(value: Value, *, softmax_seen: bool) -> bool:
    for _ in range(_FARTHEST):
        if len(value.users) != 1 or value.is_result:
            return False
        node = value.users[0]
        name = packet_name(node.op)
        if name in _PRODUCTS:
            return softmax_seen
        if name == "aten.softmax":
            if node.arg("dim") not in (-1, value.tensor_type.rank - 1):
                return False
            softmax_seen = True
        elif name not in _BETWEEN:
            return False
        value = node.results[0]
    return False


def is_weighted_sum(match: Match) -> bool:
    """Whether the first factor of a product comes from a softmax."""
    value: Any = match["a"]
    for _ in range(3):
        node = value.producer
        if node is None:
            break
        if packet_name(node.op) == "aten.softmax":
            return True
        value = node.operands[0]
    return False


def belongs_to_attention(match: Match) -> bool:
    """Whether a product makes scores, or takes their softmax."""
    return is_weighted_sum(match) or leads_to_attention(match)


# -- products ---------------------------------------------------------------------------------------------


def einsum(equation: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: torch.einsum(equation, a, b)


EINSUMS: tuple[tuple[str, Callable[[Tensor, Tensor], Tensor]], ...] = (
    ("bqd,bkd->bqk", lambda a, b: a @ b.transpose(-2, -1)),
    ("bhqd,bhkd->bhqk", lambda a, b: a @ b.transpose(-2, -1)),
    ("bqhd,bkhd->bhqk", lambda a, b: a.transpose(1, 2) @ b.permute(0, 2, 3, 1)),
    ("bqd,bdk->bqk", torch.matmul),
    ("bhqd,bhdk->bhqk", torch.matmul),
    ("bhqk,bkhd->bhqd", lambda a, b: a @ b.transpose(1, 2)),
    ("bhqk,bkhd->bqhd", lambda a, b: (a @ b.transpose(1, 2)).transpose(1, 2)),
    ("bhqk,bhkd->bqhd", lambda a, b: (a @ b).transpose(1, 2)),
)
for equation, product in EINSUMS:
    rank = equation.index(",")
    spelled(
        "attention-einsum",
        [einsum(equation)],
        product,
        (torch.empty((2,) * rank), torch.empty((2,) * rank)),
        anchors=[aten.einsum, aten.softmax],
        guard=belongs_to_attention,
    )
spelled(
    "attention-bmm", [lambda a, b: torch.bmm(a, b)], torch.matmul, (A, A), anchors=[aten.bmm, aten.softmax],
    guard=belongs_to_attention,
)  # fmt: skip
spelled(
    "attention-baddbmm",
    [lambda x, a, b, s: torch.baddbmm(x, a, b, beta=1, alpha=s)],
    lambda x, a, b, s: torch.matmul(a, b) * s + x,
    (A, A, A, SCALAR),
    anchors=[aten.baddbmm, aten.softmax],
    guard=leads_to_attention,
)
spelled(
    "attention-baddbmm",
    [lambda x, a, b: torch.baddbmm(x, a, b)],
    lambda x, a, b: torch.matmul(a, b) + x,
    (A, A, A),
    anchors=[aten.baddbmm, aten.softmax],
    guard=leads_to_attention,
)
spelled(
    "attention-baddbmm",
    [lambda x, a, b, s: torch.baddbmm(x, a, b, beta=0, alpha=s)],
    lambda x, a, b, s: torch.matmul(a, b) * s,
    (A, A, A, SCALAR),
    anchors=[aten.baddbmm, aten.softmax],
    guard=leads_to_attention,
)

# -- heads beside the batch: [batch * heads, queries, keys] becomes [batch, heads, queries, keys] ------------


def split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(-1, heads, *x.shape[1:])


def has_bias_of_heads(match: Match) -> bool:
    """Whether what is added differs from head to head, and is not broadcast over them."""
    bias, a = match["bias"].type, match["a"].type
    return bias.rank == 3 and bias.shape[0] == a.shape[0]


HEADS = 7  # a size that nothing else in the examples has
QUERIES, KEYS, BIAS = (torch.empty(2 * HEADS, *shape) for shape in ((3, 2), (2, 5), (1, 5)))
SPLITS: tuple[tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Any, ...]], ...] = (
    (lambda a, b, h: split(a @ b, h), lambda a, b, h: split(a, h) @ split(b, h), ()),
    (lambda a, b, h, s: split((a @ b) * s, h), lambda a, b, h, s: (split(a, h) @ split(b, h)) * s, (SCALAR,)),
)
BIASED_SPLITS: tuple[tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Any, ...]], ...] = (
    (
        lambda a, b, bias, h: split(a @ b + bias, h),
        lambda a, b, bias, h: split(a, h) @ split(b, h) + split(bias, h),
        (),
    ),
    (
        lambda a, b, bias, h, s: split((a @ b) * s + bias, h),
        lambda a, b, bias, h, s: (split(a, h) @ split(b, h)) * s + split(bias, h),
        (SCALAR,),
    ),
)
for bias, spellings in (((), SPLITS), ((BIAS,), BIASED_SPLITS)):
    for pattern, replacement, scale in spellings:
        spelled(
            "attention-heads",
            [pattern],
            replacement,
            (QUERIES, KEYS, *bias, HEADS, *scale),
            anchors=[aten.matmul, aten.reshape, aten.softmax],
            guard=where(has_bias_of_heads, leads_to_attention) if bias else leads_to_attention,
        )

# -- scale, mask, softmax ---------------------------------------------------------------------------------


def is_division(match: Match) -> bool:
    """Whether it is one in the graph, too, and not the product that clean-up makes of some divisions."""
    return match.node(aten.div) is not None and match["s"] != 0


spelled(
    "attention-scale",
    [lambda x, s: x / s],
    lambda x, s: x * (1 / s),
    SCALED,
    anchors=[aten.div, aten.softmax],
    guard=where(is_division, leads_to_attention),
)
spelled(
    "attention-mask",
    [lambda x, mask, c: torch.where(mask, x, c)],
    lambda x, mask, c: x.masked_fill(torch.logical_not(mask), c),
    (X, MASK, SCALAR),
    anchors=[aten.where.ScalarOther, aten.softmax],
    guard=leads_to_attention,
)
spelled(
    "attention-mask",
    [lambda x, mask, c: torch.where(mask, c, x)],
    lambda x, mask, c: x.masked_fill(mask, c),
    (X, MASK, SCALAR),
    anchors=[aten.where.ScalarSelf, aten.softmax],
    guard=leads_to_attention,
)
spelled(
    "attention-two-masks",
    [lambda q, kt, one, other: torch.matmul(q, kt) + one + other],
    lambda q, kt, one, other: torch.matmul(q, kt) + (one + other),
    (B, B, X, X),
    anchors=[aten.matmul, aten.add, aten.softmax],
    guard=leads_to_attention,
)
spelled(
    "attention-two-masks",
    [lambda q, kt, one, other, s: torch.matmul(q, kt) * s + one + other],
    lambda q, kt, one, other, s: torch.matmul(q, kt) * s + (one + other),
    (B, B, X, X, SCALAR),
    anchors=[aten.matmul, aten.mul, aten.add, aten.softmax],
    guard=leads_to_attention,
)


def has_scale_below_one(match: Match) -> Any:
    return abs(match["s"]) <= 1 or (False, f"times {match['s']:g} a mask may overflow")


spelled(
    "attention-scaled-mask",
    [lambda q, kt, mask, s: (torch.matmul(q, kt) + mask) * s],
    lambda q, kt, mask, s: torch.matmul(q, kt) * s + mask.to(q.dtype) * s,
    (B, B, X, SCALAR),
    anchors=[aten.matmul, aten.add, aten.mul, aten.softmax],
    guard=where(has_scale_below_one, leads_to_attention),
)


spelled(
    "attention-scaled-mask",
    [lambda q, kt, mask, a, s: (torch.matmul(q, kt) * a + mask) * s],
    lambda q, kt, mask, a, s: torch.matmul(q, kt) * (a * s) + mask.to(q.dtype) * s,
    (B, B, X, SCALAR, SCALAR),
    anchors=[aten.matmul, aten.add, aten.mul, aten.softmax],
    guard=where(has_scale_below_one, leads_to_attention),
)
spelled(
    "attention-two-scales",
    [lambda q, kt, a, b: torch.matmul(q, kt) * a * b],
    lambda q, kt, a, b: torch.matmul(q, kt) * (a * b),
    (B, B, SCALAR, SCALAR),
    anchors=[aten.matmul, aten.mul, aten.softmax],
    guard=leads_to_attention,
)


def absorbs(match: Match) -> Any:
    """-inf, or the lowest number of a dtype in which no score beside it is seen."""
    added, c = match["added"].type, match["c"]
    if added.dtype == dtype_of(match, "q") and added.dtype in _ABSORBING:
        if c in (-math.inf, torch.finfo(added.dtype).min):
            return True
    return False, f"scores are seen beside {c:g}"


_ABSORBING = (torch.float32, torch.float64, torch.bfloat16)


def register_added_and_filled(scores: Callable[..., Tensor], scale: tuple[float, ...]) -> None:
    """A mask that is added and one that is filled in, in either order, as one that is added."""

    def fill_last(q: Tensor, kt: Tensor, added: Tensor, mask: Tensor, c: float, *s: float) -> Tensor:
        return (scores(q, kt, *s) + added).masked_fill(mask, c)

    def add_last(q: Tensor, kt: Tensor, added: Tensor, mask: Tensor, c: float, *s: float) -> Tensor:
        return scores(q, kt, *s).masked_fill(mask, c) + added

    def both(q: Tensor, kt: Tensor, added: Tensor, mask: Tensor, c: float, *s: float) -> Tensor:
        filled = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, c)
        return scores(q, kt, *s) + (filled + added)

    def last_wins(q: Tensor, kt: Tensor, added: Tensor, mask: Tensor, c: float, *s: float) -> Tensor:
        return scores(q, kt, *s) + added.masked_fill(mask, c)

    for pattern, replacement in ((fill_last, last_wins), (add_last, both)):
        spelled(
            "attention-added-and-filled",
            [pattern],
            replacement,
            (B, B, X, MASK, SCALAR, *scale),
            anchors=[aten.matmul, aten.add, aten.masked_fill, aten.softmax],
            guard=where(absorbs, leads_to_attention),
            excused=dict.fromkeys(("infinite", "nan"), "a score that is no number is not closed"),
        )


register_added_and_filled(torch.matmul, ())
register_added_and_filled(lambda q, kt, s: torch.matmul(q, kt) * s, (SCALAR,))
spelled(
    "attention-softmax",
    [lambda x: torch.softmax(x, -1, dtype=x.dtype)],
    lambda x: torch.softmax(x, -1),
    (X,),
    anchors=[aten.softmax],
    guard=lambda m: _leads(m.results[0], softmax_seen=True),
)
spelled(
    "attention-softmax",
    [lambda x: torch.softmax(x, -1, dtype=torch.float32)],
    lambda x: torch.softmax(x.float(), -1),
    (X,),
    anchors=[aten.softmax],
    guard=lambda m: _leads(m.results[0], softmax_seen=True),
)
