"""Normalisations written out over the last axis, put back as layer_norm and rms_norm.

    %0 = aten.pow.Tensor_Scalar(%x, 2)
    %1 = aten.mean.dim(%0, [-1], True)
    %2 = aten.add.Tensor(%1, 1e-6)             ==>     %0 = aten.rms_norm(%x, [D], @weight, 1e-6)
    %3 = aten.rsqrt(%2)
    %4 = aten.mul.Tensor(%x, %3)
    %5 = aten.mul.Tensor(%4, @weight)

A factor of each feature that stands before the root is put behind it. Then the normalisation itself is
recognised, then the factor and the offset that follow it, then the casts of a half-precision norm that is
computed in fp32: the operators compute so, too, and round once.

Do not fire on the unbiased variance, along other axes, where the mean or the variance is used elsewhere, or
on a factor or offset that is not one number per element of the last axis in the norm's own dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from passes.rewriting import Match
from passes.rulebook.common import X, dtype_of, is_floating, spelled

aten = torch.ops.aten
HALF = torch.empty(2, 2, dtype=torch.bfloat16)
W = torch.empty(2)
EPS = 1e-5
CAST = aten._to_copy


def power_of(power: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.pow(x, power)


# -- roots written as powers ------------------------------------------------------------------------------

for power, root in ((0.5, torch.sqrt), (-0.5, torch.rsqrt)):
    spelled("root", [power_of(power)], root, (X,), anchors=[aten.pow], guard=is_floating)

# -- the factor of each feature, behind the number of each row ---------------------------------------------


def is_feature_and_row(match: Match) -> bool:
    """A factor for each element of the last axis, a variance for each row of them."""
    x, weight, v = (match[name].type for name in ("x", "weight", "v"))
    rows = v.rank == x.rank and v.shape == (*x.shape[:-1], 1)
    return bool(rows and x.shape[-1:] == weight.shape and weight.dtype == x.dtype and is_floating(match))


for pattern, replacement, second in (
    (
        lambda x, weight, v: x * weight * torch.rsqrt(v),
        lambda x, weight, v: x * torch.rsqrt(v) * weight,
        aten.rsqrt,
    ),
    (
        lambda x, weight, v: x * (weight * torch.rsqrt(v)),
        lambda x, weight, v: x * torch.rsqrt(v) * weight,
        aten.rsqrt,
    ),
    (
        lambda x, weight, v: x * weight / torch.sqrt(v),
        lambda x, weight, v: x / torch.sqrt(v) * weight,
        aten.sqrt,
    ),
    (
        lambda x, weight, v: x * (weight / torch.sqrt(v)),
        lambda x, weight, v: x / torch.sqrt(v) * weight,
        aten.sqrt,
    ),
):
    spelled(
        "norm-factor",
        [pattern],
        replacement,
        (X, W, X[:, :1]),
        anchors=[second, aten.mul],
        guard=is_feature_and_row,
    )  # fmt: skip

# -- LayerNorm --------------------------------------------------------------------------------------------

VARIANCES: tuple[tuple[Callable[[Tensor, Tensor], Tensor], Any], ...] = (
    (lambda x, d: x.var(-1, unbiased=False, keepdim=True), aten.var),
    (lambda x, d: x.var(-1, correction=0, keepdim=True), aten.var),
    (lambda x, d: d.pow(2).mean(-1, keepdim=True), aten.pow),
    (lambda x, d: (d * d).mean(-1, keepdim=True), aten.mul),
    (lambda x, d: d.square().mean(-1, keepdim=True), aten.square),
    (lambda x, d: x.pow(2).mean(-1, keepdim=True) - x.mean(-1, keepdim=True).pow(2), aten.pow),
    (lambda x, d: (x * x).mean(-1, keepdim=True) - x.mean(-1, keepdim=True).pow(2), aten.pow),
)
DIVISIONS: tuple[tuple[Callable[[Tensor, Tensor, float], Tensor], Any], ...] = (
    (lambda d, var, eps: d / torch.sqrt(var + eps), aten.sqrt),
    (lambda d, var, eps: d * torch.rsqrt(var + eps), aten.rsqrt),
)


def layer_norm_of(
    variance: Callable[[Tensor, Tensor], Tensor], divided: Callable[[Tensor, Tensor, float], Tensor]
) -> Callable[[Tensor, float], Tensor]:
    def pattern(x: Tensor, eps: float) -> Tensor:
        d = x - x.mean(-1, keepdim=True)
        return divided(d, variance(x, d), eps)

    return pattern


def layer_norm_at_once(divided: Callable[[Tensor, Tensor, float], Tensor], **biased: Any) -> Any:
    def pattern(x: Tensor, eps: float) -> Tensor:
        variance, mean = torch.var_mean(x, -1, keepdim=True, **biased)
        return divided(x - mean, variance, eps)

    return pattern


def is_half(match: Match) -> bool:
    return dtype_of(match) in (torch.float16, torch.bfloat16)


for (variance, first), (divided, second) in product(VARIANCES, DIVISIONS):
    spelled(
        "layer-norm",
        [layer_norm_of(variance, divided)],
        lambda x, eps: F.layer_norm(x, x.shape[-1:], None, None, eps),
        (X, EPS),
        anchors=[aten.mean, first, second],
        guard=is_floating,
    )

for divided, second in DIVISIONS:
    spelled(
        "layer-norm",
        [layer_norm_at_once(divided, unbiased=False), layer_norm_at_once(divided, correction=0)],
        lambda x, eps: F.layer_norm(x, x.shape[-1:], None, None, eps),
        (X, EPS),
        anchors=[aten.var_mean, second],
        guard=is_floating,
    )


def is_per_feature(*names: str) -> Callable[[Match], Any]:
    """Operands of one number per element of the last axis, in the norm's own dtype."""

    def guard(match: Match) -> Any:
        x = match["x"].type
        for name in names:
            type_ = match[name].type
            if type_.shape != x.shape[-1:]:
                return False, f"its {name} is not one number per element of the last axis"
            if type_.dtype != x.dtype:
                return False, f"its {name} is {type_.dtype}, what is normalised {x.dtype}"
        return True

    return guard


spelled(
    "layer-norm-affine",
    [lambda x, weight, bias, eps: F.layer_norm(x, x.shape[-1:], None, None, eps) * weight + bias],
    lambda x, weight, bias, eps: F.layer_norm(x, x.shape[-1:], weight, bias, eps),
    (X, W, W, EPS),
    anchors=[aten.layer_norm, aten.mul, aten.add],
    guard=is_per_feature("weight", "bias"),
)
spelled(
    "layer-norm-affine",
    [lambda x, weight, eps: F.layer_norm(x, x.shape[-1:], None, None, eps) * weight],
    lambda x, weight, eps: F.layer_norm(x, x.shape[-1:], weight, None, eps),
    (X, W, EPS),
    anchors=[aten.layer_norm, aten.mul],
    guard=is_per_feature("weight"),
)


# -- RMSNorm ----------------------------------------------------------------------------------------------

SQUARES: tuple[tuple[Callable[[Tensor], Tensor], Any], ...] = (
    (lambda x: x.pow(2), aten.pow),
    (lambda x: x * x, aten.mul),
    (lambda x: x.square(), aten.square),
)


def rms_norm_of(
    square: Callable[[Tensor], Tensor], divided: Callable[[Tensor, Tensor, float], Tensor]
) -> Callable[[Tensor, float], Tensor]:
    return lambda x, eps: divided(x, square(x).mean(-1, keepdim=True), eps)


for (square, first), (divided, second) in product(SQUARES, DIVISIONS):
    spelled(
        "rms-norm",
        [rms_norm_of(square, divided)],
        lambda x, eps: F.rms_norm(x, x.shape[-1:], None, eps),
        (X, EPS),
        anchors=[aten.mean, first, second],
        guard=is_floating,
    )
spelled(
    "rms-norm-weight",
    [lambda x, weight, eps: F.rms_norm(x, x.shape[-1:], None, eps) * weight],
    lambda x, weight, eps: F.rms_norm(x, x.shape[-1:], weight, eps),
    (X, W, EPS),
    anchors=[aten.rms_norm, aten.mul],
    guard=is_per_feature("weight"),
)


# -- half precision, computed in fp32 ---------------------------------------------------------------------

spelled(
    "rms-norm-cast",
    [lambda x, eps: F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype)],
    lambda x, eps: F.rms_norm(x, x.shape[-1:], None, eps),
    (HALF, EPS),
    anchors=[aten.rms_norm, CAST],
    guard=is_half,
)
spelled(
    "rms-norm-cast",
    [lambda x, eps: (x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)],
    lambda x, eps: F.rms_norm(x, x.shape[-1:], None, eps),
    (HALF, EPS),
    anchors=[aten.mean, aten.rsqrt, CAST],
    guard=is_half,
)
spelled(
    "rms-norm-cast",
    [lambda x, weight, eps: F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(x.dtype)],
    lambda x, weight, eps: F.rms_norm(x, x.shape[-1:], weight, eps),
    (HALF, W.bfloat16(), EPS),
    anchors=[aten.rms_norm, CAST],
    guard=is_half,
)
spelled(
    "layer-norm-cast",
    [lambda x, eps: F.layer_norm(x.float(), x.shape[-1:], None, None, eps).to(x.dtype)],
    lambda x, eps: F.layer_norm(x, x.shape[-1:], None, None, eps),
    (HALF, EPS),
    anchors=[aten.layer_norm, CAST],
    guard=is_half,
)

# -- the length of a vector -------------------------------------------------------------------------------


def length_of(square: Callable[[Tensor], Tensor], keepdim: bool) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.sqrt(square(x).sum(-1, keepdim=keepdim))


def length(keepdim: bool) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=keepdim)


for keepdim, (square, first) in product((True, False), SQUARES):
    spelled(
        "vector-norm",
        [length_of(square, keepdim)],
        length(keepdim),
        (X,),
        anchors=[aten.sum, aten.sqrt, first],
        guard=is_floating,
    )
