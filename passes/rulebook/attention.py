"""Attention written by hand, put back as scaled_dot_product_attention.

    %0 = aten.matmul(%q, %kt)
    %1 = aten.mul.Tensor(%0, 0.125)
    %2 = aten.add.Tensor(%1, %mask)     ==>    %0 = aten.transpose.int(%kt, -2, -1)
    %3 = aten.softmax.int(%2, -1)              %1 = aten.scaled_dot_product_attention(%q, %0, %v, %mask,
    %4 = aten.matmul(%3, %v)                                                          scale=0.125)

passes/rulebook/scores.py has brought scores to that spelling before. Afterwards factors of q and k join the
scale, a mask known to be causal becomes is_causal, and heads of k and v that are repeated become enable_gqa.

The operator gives zeros for a row of scores that is -inf throughout, the formula NaN; a row that is filled
with one finite number is uniform. Where a mask is not known to have an open place in every row, the
replacement keeps both: NaN is put back, and a finite filling is added as the lowest number of the dtype.

Other NaN is not put back. On a CPU the operator gives zeros for a query whose scores hold no number, because
of a NaN among its own features or because they overflow, and the formula NaN; and the operator counts a NaN
that a boolean mask closes. To find where NaN comes from, run without these rules.

Does not fire over a softmax along another axis, over scores or weights that are used elsewhere (returned
attention weights), with dropout in training, on ranks other than 2, 3 and 4, on axes that only broadcasting
makes equal (but for one head of keys and values, which all queries share), on a mask of another dtype, or on
a filling that is not low enough to close a place.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from passes.rewriting import Match
from passes.rulebook.common import SCALAR, dtype_of, spelled, where
from passes.rulebook.masks import LOW, has_open_rows, never_minus_infinity

aten = torch.ops.aten
Q = torch.empty(2, 2, 3, 4)
KT = torch.empty(2, 2, 4, 5)
V = torch.empty(2, 2, 5, 4)
ADDED = torch.empty(3, 5)
FILLED = torch.empty(3, 5, dtype=torch.bool)
INF = float("inf")
EXCUSED = dict.fromkeys(("infinite", "nan"), "a CPU kernel gives zeros for scores that hold no number")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    """The operator on [.., queries, features]; axes are added in front up to four, its fast kernels' rank."""
    ones = (1,) * (4 - q.dim())
    if mask is not None:
        if mask.dim() < 2 or mask.shape[-1] != k.shape[-2]:
            mask = mask.expand(*mask.shape[:-2], q.shape[-2], k.shape[-2])
        if 2 < mask.dim() < 4:
            mask = mask.unsqueeze(0)
    if q.dim() == 4 and q.shape[1] != k.shape[1]:
        options["enable_gqa"] = True
    if not ones:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
    wide = (t.reshape(*ones, *t.shape) for t in (q, k, v))
    made = F.scaled_dot_product_attention(*wide, attn_mask=mask, **options)
    return made.reshape(made.shape[len(ones) :])


# -- guards -----------------------------------------------------------------------------------------------


def is_attention(match: Match) -> Any:
    """Ranks, axes and dtypes that the operator takes without broadcasting."""
    q, kt, v = (match[name].type for name in ("q", "kt", "v"))
    if not (q.rank == kt.rank == v.rank and 2 <= q.rank <= 4):
        return False, f"operands of {q.rank}, {kt.rank} and {v.rank} axes"
    shared = q.rank == 4 and kt.shape[:2] == (q.shape[0], 1)
    if not (kt.shape[:-2] == v.shape[:-2] and (shared or q.shape[:-2] == kt.shape[:-2])):
        return False, "batch or heads are broadcast"
    if not (q.dtype == kt.dtype == v.dtype and q.dtype.is_floating_point):
        return False, f"operands of {q.dtype}, {kt.dtype} and {v.dtype}"
    return True


def is_mask_of_scores(match: Match) -> Any:
    """The mask broadcasts to the scores, not the scores to the mask."""
    mask, q, kt = (match[name].type for name in ("mask", "q", "kt"))
    scores = (*q.shape[:-1], kt.shape[-1])
    if mask.rank > len(scores):
        return False, "the mask has more axes than the scores"
    if any(m not in (1, s) for m, s in zip(reversed(mask.shape), reversed(scores), strict=False)):
        return False, "the scores are broadcast to the mask"
    return mask.dtype in (q.dtype, torch.bool) or (False, f"a mask of {mask.dtype} for scores of {q.dtype}")


def is_added(match: Match) -> Any:
    return dtype_of(match, "mask").is_floating_point or (False, "adds booleans")


def is_open(match: Match) -> bool:
    return never_minus_infinity(match.graph, match["mask"])


def is_closing(match: Match) -> Any:
    """Whether the number that is filled in closes a place."""
    return _fill(match) <= LOW or (False, f"{_fill(match):g} is not low enough to close a place")


def has_open_place(match: Match) -> bool:
    return has_open_rows(match.graph, match["mask"], closed=True)


def is_lowest_or_absorbing(match: Match) -> Any:
    """-inf, or a number for which the lowest of the dtype may stand, which every score vanishes beside."""
    if _fill(match) == -INF or dtype_of(match, "q") is not torch.float16:
        return True
    return False, "a row of the mask may be closed, and fp16 has no number that every score vanishes beside"


def _fill(match: Match) -> float:
    return float(match["c"])


# -- the formula ------------------------------------------------------------------------------------------

Scores = Callable[[Tensor, Tensor, float], Tensor]
SCALES: tuple[tuple[Scores, tuple[float, ...]], ...] = (
    (lambda q, kt, s: q @ kt, ()),
    (lambda q, kt, s: (q @ kt) * s, (SCALAR,)),
)


def weights(scores: Tensor, half: bool) -> Tensor:
    """Softmax over the keys; of half precision in fp32, and back, where `half`."""
    if half and scores.dtype in (torch.float16, torch.bfloat16):
        return torch.softmax(scores.float(), -1).to(scores.dtype)
    return torch.softmax(scores, -1)


def scale_of(s: tuple[float, ...]) -> float:
    return s[0] if s else 1.0


def with_nan(made: Tensor, mask: Tensor) -> Tensor:
    """NaN in the rows in which an additive mask is -inf throughout, as the formula has it."""
    empty = mask.amax(-1, keepdim=True) == -INF
    return made.masked_fill(empty, torch.nan)


def keeping_uniform_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, c: float, scale: float) -> Tensor:
    """A row that is closed altogether: NaN where it is filled with -inf, else uniform."""
    zeros = torch.zeros_like(mask, dtype=q.dtype)
    if c == -INF:
        added = zeros.masked_fill(mask, -INF)
        return with_nan(attend(q, k, v, added, scale=scale), added)
    lowest = torch.finfo(q.dtype).min
    return attend(q, k, v, zeros.masked_fill(mask, lowest), scale=scale)


def register(scores: Scores, numbers: tuple[float, ...], half: bool) -> None:
    """The rules for one way to scale, with the softmax in the dtype of the scores or in fp32."""
    dtype = torch.bfloat16 if half else torch.float32
    q, kt, v, added = (t.to(dtype) for t in (Q, KT, V, ADDED))
    anchors = [
        aten.softmax,
        aten.matmul,
        *([aten.mul] if numbers else []),
        *([aten._to_copy] if half else []),
    ]

    def unmasked(q: Tensor, kt: Tensor, v: Tensor, *s: float) -> Tensor:
        return weights(scores(q, kt, scale_of(s)), half) @ v

    def masked(q: Tensor, kt: Tensor, v: Tensor, mask: Tensor, *s: float) -> Tensor:
        return weights(scores(q, kt, scale_of(s)) + mask, half) @ v

    def filled(q: Tensor, kt: Tensor, v: Tensor, mask: Tensor, c: float, *s: float) -> Tensor:
        return weights(scores(q, kt, scale_of(s)).masked_fill(mask, c), half) @ v

    spelled(
        "attention",
        [unmasked],
        lambda q, kt, v, *s: attend(q, kt.transpose(-2, -1), v, scale=scale_of(s)),
        (q, kt, v, *numbers),
        anchors=anchors,
        guard=is_attention,
        excused=EXCUSED,
    )
    spelled(
        "attention",
        [masked],
        lambda q, kt, v, mask, *s: attend(q, kt.transpose(-2, -1), v, mask, scale=scale_of(s)),
        (q, kt, v, added, *numbers),
        anchors=[*anchors, aten.add],
        guard=where(is_attention, is_mask_of_scores, is_added, is_open),
        excused=EXCUSED,
    )
    spelled(
        "attention",
        [masked],
        lambda q, kt, v, mask, *s: with_nan(
            attend(q, kt.transpose(-2, -1), v, mask, scale=scale_of(s)), mask
        ),
        (q, kt, v, added, *numbers),
        anchors=[*anchors, aten.add],
        guard=where(is_attention, is_mask_of_scores, is_added),
        excused=EXCUSED,
    )
    spelled(
        "attention",
        [filled],
        lambda q, kt, v, mask, c, *s: attend(
            q, kt.transpose(-2, -1), v, torch.logical_not(mask), scale=scale_of(s)
        ),
        (q, kt, v, FILLED, SCALAR, *numbers),
        anchors=[*anchors, aten.masked_fill],
        guard=where(is_attention, is_mask_of_scores, is_closing, has_open_place),
        excused=EXCUSED,
    )
    spelled(
        "attention",
        [filled],
        lambda q, kt, v, mask, c, *s: keeping_uniform_rows(q, kt.transpose(-2, -1), v, mask, c, scale_of(s)),
        (q, kt, v, FILLED, SCALAR, *numbers),
        anchors=[*anchors, aten.masked_fill],
        guard=where(is_attention, is_mask_of_scores, is_closing, is_lowest_or_absorbing),
        excused=EXCUSED,
    )


for (scores, numbers), half in product(SCALES, (False, True)):
    register(scores, numbers, half)
