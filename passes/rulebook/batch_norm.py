"""Inference BatchNorm written out behind a convolution, put back so that it can be folded into it.

    %0 = aten.conv2d(%x, @w)
    %1 = aten.mul.Tensor(%0, @scale)      ==>    %0 = aten.conv2d(%x, @w)
    %2 = aten.add.Tensor(%1, @offset)            %1 = aten._native_batch_norm_legit_no_training(%0, ...)

Folding constants has made one factor of weight / sqrt(var + eps) by then. Does not fire where factor and
offset are not constants of one number per channel, on what is no convolution's only use, or on integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from capture.ir import TensorType, Value
from passes.queries import fixed_tensor, packet_name
from passes.rewriting import Match
from passes.rulebook.common import spelled

aten = torch.ops.aten
X = torch.empty(2, 3, 2, 2)
C = torch.empty(1, 3, 1, 1)
_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d")


def norm(x: Tensor, mean: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(x - mean) * weight + bias, by channel."""
    mean, weight, bias = mean.flatten(), weight.flatten(), bias.flatten()
    return F.batch_norm(x, mean, torch.ones_like(mean), weight, bias, False, 0.0, 0.0)


def is_after_convolution(*names: str) -> Callable[[Match], Any]:
    """Behind a convolution that nobody else uses, the other operands one number per channel."""

    def guard(match: Match) -> Any:
        x: Value = match["x"]
        if x.producer is None or packet_name(x.producer.op) not in _CONVOLUTIONS or x.is_result:
            return False
        if not set(x.users) <= set(match.nodes):
            return False, "the convolution's result is used elsewhere"
        channels = x.tensor_type.shape[1] if x.tensor_type.rank > 2 else None
        for name in names:
            value = match[name]
            if fixed_tensor(match.graph, value) is None or not isinstance(value.type, TensorType):
                return False, f"its {name} is computed"
            spread = (channels, *[1] * (x.tensor_type.rank - 2))
            if value.type.shape not in (spread, (1, *spread)) or value.type.dtype != x.tensor_type.dtype:
                return False, f"its {name} is not one number per channel"
        return True

    return guard


for convolution in (aten.conv1d, aten.conv2d, aten.conv3d):
    spelled(
        "batch-norm",
        [lambda x, mean, scale, weight, bias: (x - mean) * scale * weight + bias],
        lambda x, mean, scale, weight, bias: norm(x, mean, scale.flatten() * weight.flatten(), bias),
        (X, C, C, C, C),
        anchors=[convolution, aten.sub, aten.mul, aten.add],
        guard=is_after_convolution("mean", "scale", "weight", "bias"),
    )
    spelled(
        "batch-norm",
        [lambda x, mean, deviation, weight, bias: (x - mean) / deviation * weight + bias],
        lambda x, mean, deviation, weight, bias: norm(x, mean, weight.flatten() / deviation.flatten(), bias),
        (X, C, C, C, C),
        anchors=[convolution, aten.sub, aten.mul, aten.add, aten.div],
        guard=is_after_convolution("mean", "deviation", "weight", "bias"),
    )
    spelled(
        "batch-norm",
        [lambda x, scale, offset: x * scale + offset],
        lambda x, scale, offset: norm(x, torch.zeros_like(scale), scale, offset),
        (X, C, C),
        anchors=[convolution, aten.mul, aten.add],
        guard=is_after_convolution("scale", "offset"),
    )
