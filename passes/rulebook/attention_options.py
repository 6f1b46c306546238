"""What surrounds an attention operator and belongs to it: factors, causal masks, repeated heads.

    %0 = aten.mul.Tensor(%q, 0.125)
    %1 = aten.repeat_interleave.self_int(%k, 4, 1)
    %2 = aten.repeat_interleave.self_int(%v, 4, 1)
    %3 = aten.scaled_dot_product_attention(%0, %1, %2, @causal, scale=1.0)

    ==>  %0 = aten.scaled_dot_product_attention(%q, %k, %v, None, 0.0, True, scale=0.125, enable_gqa=True)

Does not fire where heads are repeated as a whole (repeat, not repeat_interleave: another head then meets
another query), or on a mask of which it is not known that it is causal.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from passes.rewriting import Match
from passes.rulebook.attention import attend
from passes.rulebook.common import SCALAR, spelled
from passes.rulebook.masks import additive_triangle, triangle

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention
Q = torch.empty(2, 4, 3, 4)
K = torch.empty(2, 2, 5, 4)
MASK = torch.empty(3, 5)
SQUARE = torch.empty(3, 3)

# -- factors ----------------------------------------------------------------------------------------------

FACTORS: tuple[tuple[Callable[..., Tensor], Callable[[float], float], Any], ...] = (
    (lambda x, a: x * a, lambda a: a, aten.mul),
    (lambda x, a: x / a, lambda a: 1 / a, aten.div),
)


def register_factor(scaled: Callable[..., Tensor], factor: Callable[[float], float], op: Any) -> None:
    """A number that multiplies or divides the queries or the keys joins the scale."""

    def not_zero(match: Match) -> bool:
        return bool(match["a"] != 0)

    for mask in ((), (SQUARE,)):
        spelled(
            "attention-factor",
            [
                lambda q, k, v, a, s, *m: attend(scaled(q, a), k, v, *m, scale=s),
                lambda q, k, v, a, s, *m: attend(q, scaled(k, a), v, *m, scale=s),
            ],
            lambda q, k, v, a, s, *m: attend(q, k, v, *m, scale=s * factor(a)),
            (Q, Q, Q, SCALAR, SCALAR, *mask),
            anchors=[SDPA, op],
            guard=not_zero,
        )


for scaled, factor, op in FACTORS:
    register_factor(scaled, factor, op)

# -- causal masks -----------------------------------------------------------------------------------------


def is_causal(match: Match) -> Any:
    """Whether the mask closes just what lies above the diagonal."""
    mask, q, k = match["mask"], match["q"].type, match["k"].type
    if q.shape[-2] != k.shape[-2]:
        return False, "more keys than queries, or fewer"
    if triangle(match.graph, mask) is True and mask.type.dtype is torch.bool:
        return True
    if mask.type.dtype is not torch.bool and additive_triangle(match.graph, mask) is not None:
        return True
    return False, "the mask is not known to be causal"


spelled(
    "attention-causal",
    [lambda q, k, v, mask, s: attend(q, k, v, mask, scale=s)],
    lambda q, k, v, mask, s: attend(q, k, v, is_causal=True, scale=s),
    (Q, Q, Q, SQUARE, SCALAR),
    anchors=[SDPA],
    guard=is_causal,
    excused=dict.fromkeys(("infinite", "nan"), "a causal kernel does not look at what is closed"),
)

# -- heads shared by several queries ----------------------------------------------------------------------


def repeated(x: Tensor, times: int) -> Tensor:
    return x.repeat_interleave(times, 1)


def expanded(x: Tensor, times: int) -> Tensor:
    batch, heads, tokens, features = x.shape
    wide = x[:, :, None].expand(batch, heads, times, tokens, features)
    return wide.reshape(batch, heads * times, tokens, features)


def tiled(x: Tensor, times: int) -> Tensor:
    return x.unsqueeze(2).repeat(1, 1, times, 1, 1).flatten(1, 2)


SHARED: tuple[tuple[Callable[[Tensor, int], Tensor], tuple[Any, ...]], ...] = (
    (repeated, (aten.repeat_interleave,)),
    (expanded, (aten.unsqueeze, aten.expand, aten.reshape)),
    (tiled, (aten.unsqueeze, aten.repeat, aten.reshape)),
)


def register_shared(share: Callable[[Tensor, int], Tensor], anchors: tuple[Any, ...], causal: bool) -> None:
    """Keys and values that are repeated so that there is one for each query's head."""

    def pattern(q: Tensor, k: Tensor, v: Tensor, s: float, *m: Tensor) -> Tensor:
        times = q.shape[1] // k.shape[1]
        mask = m[0] if m else None
        k, v = share(k, times), share(v, times)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=s)

    def replacement(q: Tensor, k: Tensor, v: Tensor, s: float, *m: Tensor) -> Tensor:
        mask = m[0] if m else None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=s, enable_gqa=True
        )

    for mask in ((), (MASK,)) if not causal else ((),):
        spelled(
            "attention-shared-heads",
            [pattern],
            replacement,
            (Q, K, K, SCALAR, *mask),
            anchors=[SDPA, *anchors],
        )


for (share, anchors), causal in product(SHARED, (False, True)):
    register_shared(share, anchors, causal)
