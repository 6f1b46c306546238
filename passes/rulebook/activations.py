"""Activations written out, put back as the operators that they are.

    %0 = aten.mul.Tensor(%x, 0.5)
    %1 = aten.div.Tensor(%x, 1.4142135623730951)
    %2 = aten.erf(%1)                               ==>     %0 = aten.gelu(%x)
    %3 = aten.add.Tensor(%2, 1)
    %4 = aten.mul.Tensor(%0, %3)

The operators round once where the formulas round at each step, and do not overflow where exp does: softplus
of 1000 is 1000, not infinite, and tanh of infinity 1, not NaN. GELU of infinity is NaN on a CPU, where
`0.5 * x * (1 + erf(x / sqrt(2)))` is infinite.

Do not fire where a constant is another one (x * sigmoid(1.702 * x) stays), on integers, where a part of the
formula is used elsewhere, or on `where(x > 0, x, 0)`: it makes 0 of NaN, of which ReLU makes NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from passes.rewriting import Match
from passes.rulebook.common import SCALAR, X, is_filled_with, is_floating, number_close_to, spelled, where

aten = torch.ops.aten
ONE = (X,)


# -- GELU -------------------------------------------------------------------------------------------------

HALVES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda x, t: 0.5 * x * t,
    lambda x, t: x * t * 0.5,
    lambda x, t: x * (0.5 * t),
)


def gelu_with_erf(half: Callable[..., Tensor], scaled: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def pattern(x: Tensor, c: float) -> Tensor:
        return half(x, 1 + torch.erf(scaled(x, c)))

    return pattern


for scaled, c in ((lambda x, c: x * c, math.sqrt(0.5)), (lambda x, c: x / c, math.sqrt(2))):
    spelled(
        "gelu",
        [gelu_with_erf(half, scaled) for half in HALVES],
        lambda x, c: F.gelu(x),
        (X, SCALAR),
        anchors=[aten.erf, aten.mul, aten.add],
        guard=where(is_floating, number_close_to("c", c)),
        excused={"infinite": "the operator makes NaN of infinity on a CPU"},
    )

# c * (x + 0.044715 * x^3)
CUBICS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda x, c: c * (x + 0.044715 * torch.pow(x, 3)),
    lambda x, c: c * (x + 0.044715 * x * x * x),
    lambda x, c: c * (x + 0.044715 * (x * x * x)),
    lambda x, c: x * c * (1 + 0.044715 * x * x),
    lambda x, c: x * c * (1 + 0.044715 * torch.pow(x, 2)),
)


def gelu_with_tanh(half: Callable[..., Tensor], cubic: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def pattern(x: Tensor, c: float) -> Tensor:
        return half(x, 1 + torch.tanh(cubic(x, c)))

    return pattern


spelled(
    "gelu-tanh",
    [gelu_with_tanh(half, cubic) for cubic, half in product(CUBICS, HALVES)],
    lambda x, c: F.gelu(x, approximate="tanh"),
    (X, SCALAR),
    anchors=[aten.tanh, aten.mul, aten.add],
    guard=where(is_floating, number_close_to("c", math.sqrt(2 / math.pi))),
)

# -- sigmoid and what is made of it -----------------------------------------------------------------------

spelled(
    "sigmoid",
    [lambda x: 1 / (1 + torch.exp(-x))],
    torch.sigmoid,
    ONE,
    anchors=[aten.exp, aten.neg, aten.reciprocal],
    guard=is_floating,
)
spelled("silu", [lambda x: x * torch.sigmoid(x)], F.silu, ONE, anchors=[aten.sigmoid, aten.mul])
spelled(
    "silu",
    [lambda x: x / (1 + torch.exp(-x))],
    F.silu,
    ONE,
    anchors=[aten.exp, aten.neg, aten.div],
    guard=is_floating,
)
spelled(
    "tanh",
    [lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x))],
    torch.tanh,
    ONE,
    anchors=[aten.exp, aten.neg, aten.div, aten.sub],
    guard=is_floating,
    excused={"infinite": "the formula makes NaN of infinity, the operator 1"},
)
spelled(
    "tanh",
    [lambda x: 2 * torch.sigmoid(2 * x) - 1],
    torch.tanh,
    ONE,
    anchors=[aten.sigmoid, aten.mul, aten.sub],
    guard=is_floating,
)

# -- ReLU and its kind ------------------------------------------------------------------------------------

spelled("relu", [lambda x: x.clamp(min=0)], F.relu, ONE, anchors=[aten.clamp])
spelled("relu", [lambda x: x.clamp_min(0)], F.relu, ONE, anchors=[aten.clamp_min])
spelled(
    "relu",
    [lambda x, zero: torch.maximum(x, zero)],
    lambda x, zero: F.relu(x),
    (X, X),
    anchors=[aten.maximum],
    guard=is_filled_with("zero", 0.0),
)
spelled(
    "relu",
    [lambda x: torch.where(x <= 0, 0.0, x), lambda x: torch.where(x < 0, 0.0, x)],
    F.relu,
    ONE,
    anchors=[aten.where.ScalarSelf],
)
spelled("relu", [lambda x: x.masked_fill(x < 0, 0.0)], F.relu, ONE, anchors=[aten.masked_fill, aten.lt])
spelled("relu6", [lambda x: torch.clamp(x, 0, 6)], F.relu6, ONE, anchors=[aten.clamp], guard=is_floating)
spelled("relu6", [lambda x: F.hardtanh(x, 0.0, 6.0)], F.relu6, ONE, anchors=[aten.hardtanh])
spelled("relu6", [lambda x: F.relu(x).clamp(max=6)], F.relu6, ONE, anchors=[aten.relu, aten.clamp])
spelled("relu6", [lambda x: F.relu(x).clamp_max(6)], F.relu6, ONE, anchors=[aten.relu, aten.clamp_max])


def is_slope(match: Match) -> Any:
    slope = match["slope"]
    return 0 <= slope <= 1 or (False, f"max(x, {slope:g} * x) is x for negative x")


spelled(
    "leaky-relu",
    [lambda x, slope: torch.where(x > 0, x, x * slope), lambda x, slope: torch.where(x >= 0, x, x * slope)],
    F.leaky_relu,
    (X, SCALAR),
    anchors=[aten.where.self, aten.mul],
    guard=is_floating,
)
spelled(
    "leaky-relu",
    [lambda x, slope: torch.maximum(x, x * slope)],
    F.leaky_relu,
    (X, SCALAR),
    anchors=[aten.maximum, aten.mul],
    guard=where(is_floating, is_slope),
)


def elu(positive: Callable[[Tensor], Tensor], below: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x: torch.where(positive(x), x, below(x))


def scaled_elu(
    positive: Callable[[Tensor], Tensor], below: Callable[[Tensor], Tensor]
) -> Callable[..., Tensor]:
    return lambda x, alpha: torch.where(positive(x), x, alpha * below(x))


POSITIVE = (lambda x: x > 0, lambda x: x >= 0)
for below, needed in ((lambda x: torch.exp(x) - 1, (aten.exp, aten.sub)), (torch.expm1, (aten.expm1,))):
    spelled(
        "elu",
        [elu(positive, below) for positive in POSITIVE],
        F.elu,
        ONE,
        anchors=[aten.where.self, *needed],
        guard=is_floating,
    )
    spelled(
        "elu",
        [scaled_elu(positive, below) for positive in POSITIVE],
        F.elu,
        (X, SCALAR),
        anchors=[aten.where.self, aten.mul, *needed],
        guard=is_floating,
    )

# -- the hard ones: piecewise linear ----------------------------------------------------------------------

# clamp(x + 3, 0, 6) is relu6 by then.
spelled(
    "hardsigmoid",
    [lambda x: F.relu6(x + 3) / 6],
    F.hardsigmoid,
    ONE,
    anchors=[aten.relu6, aten.add, aten.div],
)
spelled(
    "hardsigmoid",
    [lambda x, c: F.relu6(x + 3) * c],
    lambda x, c: F.hardsigmoid(x),
    (X, SCALAR),
    anchors=[aten.relu6, aten.add, aten.mul],
    guard=number_close_to("c", 1 / 6),
)
spelled(
    "hardswish",
    [lambda x: x * F.relu6(x + 3) / 6],
    F.hardswish,
    ONE,
    anchors=[aten.relu6, aten.add, aten.mul, aten.div],
)
spelled("hardswish", [lambda x: x * F.hardsigmoid(x)], F.hardswish, ONE, anchors=[aten.hardsigmoid, aten.mul])

# -- softplus ---------------------------------------------------------------------------------------------


def softplus(x: Tensor) -> Tensor:
    """Above the threshold softplus(x) is x: from 20 on to fp32, to fp64 from 40 on."""
    return F.softplus(x, 1, 40) if x.dtype is torch.float64 else F.softplus(x)


def stable_softplus(positive: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: positive(x) + torch.log1p(torch.exp(-torch.abs(x)))


spelled(
    "softplus",
    [lambda x: torch.log(1 + torch.exp(x))],
    softplus,
    ONE,
    anchors=[aten.log, aten.exp, aten.add],
    guard=is_floating,
)
spelled(
    "softplus",
    [lambda x: torch.log1p(torch.exp(x))],
    softplus,
    ONE,
    anchors=[aten.log1p, aten.exp],
    guard=is_floating,
)
for positive, op in (
    (F.relu, aten.relu),
    (lambda x: x.clamp(min=0), aten.clamp),
    (lambda x: x.clamp_min(0), aten.clamp_min),
):
    spelled(
        "softplus",
        [stable_softplus(positive)],
        softplus,
        ONE,
        anchors=[aten.log1p, aten.exp, aten.abs, op],
        guard=is_floating,
    )
spelled(
    "mish",
    [lambda x: x * torch.tanh(softplus(x)), lambda x: x * torch.tanh(F.softplus(x))],
    F.mish,
    ONE,
    anchors=[aten.softplus, aten.tanh],
)
