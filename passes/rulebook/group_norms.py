"""GroupNorm and InstanceNorm written out, put back as the operators that they are.

    %0 = aten.reshape(%x, [N, 3, -1])
    %1, %2 = aten.var_mean.correction(%0, [-1], correction=0, keepdim=True)
    %3 = aten.sub.Tensor(%0, %2)
    %4 = aten.rsqrt(aten.add.Tensor(%1, 1e-5))         ==>    %0 = aten.group_norm(%x, 3, %w, %b, 1e-5)
    %5 = aten.reshape(aten.mul.Tensor(%3, %4), [N, C, H, W])
    %6 = aten.add.Tensor(aten.mul.Tensor(%5, %w), %b)

First the normalisation itself is recognised, of groups of channels or of each channel, then the factor and
the offset of each channel that follow it, then the casts of one that is computed in fp32.

The operators join the factor with the mean: where the factor is infinite they make NaN, the formula infinity.

Do not fire on the unbiased variance, along other axes (those of BatchNorm), on groups that are not put back
into their channels, where a moment is used elsewhere, or on a factor or offset that is not one number per
channel in the norm's own dtype. Of [N, C, L] the norm of each channel is layer_norm, if no factor follows.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from passes.rewriting import Match
from passes.rulebook.common import is_floating, spelled, where
from passes.rulebook.norms import CAST, DIVISIONS, EPS, is_half

aten = torch.ops.aten
GROUPS = 7  # a size that nothing else in the examples has
X = torch.empty(2, 2 * GROUPS, 3, 5)
PER_CHANNEL = torch.empty(1, 2 * GROUPS, 1, 1)
W = torch.empty(2 * GROUPS)

Moments = Callable[[Tensor, list[int]], tuple[Tensor, Tensor]]


def by_variance(**biased: Any) -> Moments:
    def moments(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        return x - x.mean(axes, keepdim=True), x.var(axes, keepdim=True, **biased)

    return moments


def at_once(**biased: Any) -> Moments:
    def moments(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, axes, keepdim=True, **biased)
        return x - mean, variance

    return moments


def by_square(square: Callable[[Tensor], Tensor]) -> Moments:
    def moments(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
        d = x - x.mean(axes, keepdim=True)
        return d, square(d).mean(axes, keepdim=True)

    return moments


def by_mean_square(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    mean = x.mean(axes, keepdim=True)
    return x - mean, x.pow(2).mean(axes, keepdim=True) - mean.pow(2)


MOMENTS: tuple[tuple[Moments, tuple[Any, ...]], ...] = (
    (by_variance(unbiased=False), (aten.mean, aten.var)),
    (by_variance(correction=0), (aten.mean, aten.var)),
    (at_once(unbiased=False), (aten.var_mean,)),
    (at_once(correction=0), (aten.var_mean,)),
    (by_square(lambda d: d.pow(2)), (aten.mean, aten.pow)),
    (by_square(lambda d: d * d), (aten.mean, aten.mul)),
    (by_square(torch.square), (aten.mean, aten.square)),
    (by_mean_square, (aten.mean, aten.pow)),
)


def flat(x: Tensor, groups: int) -> Tensor:
    return x.reshape(x.shape[0], groups, -1)


def in_full(x: Tensor, groups: int) -> Tensor:
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def normalised(x: Tensor, moments: Moments, divided: Callable[..., Tensor], eps: float) -> Tensor:
    """Of each sample and channel: what stands on the first two axes."""
    d, variance = moments(x, list(range(2, x.dim())))
    return divided(d, variance, eps)


# -- the normalisation --------------------------------------------------------------------------------------


def group_norm_of(
    grouped: Callable[[Tensor, int], Tensor], moments: Moments, divided: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    def pattern(x: Tensor, groups: int, eps: float) -> Tensor:
        return normalised(grouped(x, groups), moments, divided, eps).reshape(x.shape)

    return pattern


def instance_norm_of(moments: Moments, divided: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, eps: normalised(x, moments, divided, eps)


def instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """As captured graphs call it; F.instance_norm wants more than one element of each channel first."""
    return torch.instance_norm(x, weight, bias, None, None, True, 0.1, eps, cudnn_enabled=False)


def has_axes(count: int) -> Callable[[Match], Any]:
    """At least so many."""
    return lambda match: bool(match["x"].type.rank >= count)


for (moments, needed), (divided, root) in product(MOMENTS, DIVISIONS):
    for grouped in (flat, in_full):
        spelled(
            "group-norm",
            [group_norm_of(grouped, moments, divided)],
            lambda x, groups, eps: F.group_norm(x, groups, None, None, eps),
            (X, GROUPS, EPS),
            anchors=[aten.reshape, aten.sub, root, *needed],
            guard=where(is_floating, has_axes(2)),
        )
    spelled(
        "instance-norm",
        [instance_norm_of(moments, divided)],
        lambda x, eps: instance_norm(x, None, None, eps),
        (X, EPS),
        anchors=[aten.sub, root, *needed],
        guard=where(is_floating, has_axes(4)),
    )

# -- factor and offset --------------------------------------------------------------------------------------


def is_per_channel(*names: str) -> Callable[[Match], Any]:
    """Operands of one number per channel, along the second axis, in the norm's own dtype."""

    def guard(match: Match) -> Any:
        x = match["x"].type
        for name in names:
            type_ = match[name].type
            shape = (*(1 for _ in range(x.rank - type_.rank)), *type_.shape)
            if shape != (1, x.shape[1], *(1 for _ in x.shape[2:])):
                return False, f"its {name} is not one number per channel"
            if type_.dtype != x.dtype:
                return False, f"its {name} is {type_.dtype}, what is normalised {x.dtype}"
        return True

    return guard


INFINITE = {"infinite": "the operator makes NaN of an infinite factor"}
BOTH = is_per_channel("weight", "bias")
ONE = is_per_channel("weight")

spelled(
    "group-norm-affine",
    [lambda x, weight, bias, groups, eps: F.group_norm(x, groups, None, None, eps) * weight + bias],
    lambda x, weight, bias, groups, eps: F.group_norm(x, groups, weight.reshape(-1), bias.reshape(-1), eps),
    (X, PER_CHANNEL, PER_CHANNEL, GROUPS, EPS),
    anchors=[aten.group_norm, aten.mul, aten.add],
    guard=BOTH,
    excused=INFINITE,
)
spelled(
    "group-norm-affine",
    [lambda x, weight, groups, eps: F.group_norm(x, groups, None, None, eps) * weight],
    lambda x, weight, groups, eps: F.group_norm(x, groups, weight.reshape(-1), None, eps),
    (X, PER_CHANNEL, GROUPS, EPS),
    anchors=[aten.group_norm, aten.mul],
    guard=ONE,
    excused=INFINITE,
)


def over_last(x: Tensor, eps: float) -> Tensor:
    """What the norm of each channel of [N, C, L] has become."""
    return F.layer_norm(x, x.shape[-1:], None, None, eps)


def over_all(x: Tensor, eps: float) -> Tensor:
    return instance_norm(x, None, None, eps)


def is_channels_and_length(match: Match) -> bool:
    return bool(match["x"].type.rank == 3)


ALONG = (
    (over_last, X[..., 0], PER_CHANNEL[..., 0], aten.layer_norm, (is_channels_and_length,)),
    (over_all, X, PER_CHANNEL, aten.instance_norm, ()),
)


def register_instance_norm_affine(
    norm: Callable[[Tensor, float], Tensor], x: Tensor, w: Tensor, op: Any, guards: tuple[Any, ...]
) -> None:
    """The factor and offset of each channel behind an operator that has neither."""
    spelled(
        "instance-norm-affine",
        [lambda x, weight, bias, eps: norm(x, eps) * weight + bias],
        lambda x, weight, bias, eps: instance_norm(x, weight.reshape(-1), bias.reshape(-1), eps),
        (x, w, w, EPS),
        anchors=[op, aten.mul, aten.add],
        guard=where(*guards, BOTH),
        excused=INFINITE,
    )
    spelled(
        "instance-norm-affine",
        [lambda x, weight, eps: norm(x, eps) * weight],
        lambda x, weight, eps: instance_norm(x, weight.reshape(-1), None, eps),
        (x, w, EPS),
        anchors=[op, aten.mul],
        guard=where(*guards, ONE),
        excused=INFINITE,
    )


for given in ALONG:
    register_instance_norm_affine(*given)

# -- half precision, computed in fp32 -----------------------------------------------------------------------

spelled(
    "group-norm-cast",
    [lambda x, groups, eps: F.group_norm(x.float(), groups, None, None, eps).to(x.dtype)],
    lambda x, groups, eps: F.group_norm(x, groups, None, None, eps),
    (X.bfloat16(), GROUPS, EPS),
    anchors=[aten.group_norm, CAST],
    guard=is_half,
)
spelled(
    "group-norm-cast",
    [
        lambda x, weight, bias, groups, eps: F.group_norm(
            x.float(), groups, weight.float(), bias.float(), eps
        ).to(x.dtype)
    ],
    lambda x, weight, bias, groups, eps: F.group_norm(x, groups, weight, bias, eps),
    (X.bfloat16(), W.bfloat16(), W.bfloat16(), GROUPS, EPS),
    anchors=[aten.group_norm, CAST],
    guard=is_half,
)
