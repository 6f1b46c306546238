"""Convolutions and transposed convolutions in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as oir
import torch

from codegen.onnx.builder import Builder
from codegen.onnx.table import lowers

aten = torch.ops.aten


def spread(values: Sequence[int] | int, n: int) -> list[int]:
    """One number for each of `n` dimensions; a single one stands for all."""
    given = [values] if isinstance(values, int) else list(values)
    return given * n if len(given) == 1 else given


@lowers(aten.conv1d, aten.conv2d, aten.conv3d)
def conv(
    op: Builder, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> oir.Value:
    n = weight.type.rank - 2
    stride, dilation = spread(stride, n), spread(dilation, n)
    if padding == "valid":
        before = after = [0] * n
    elif padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, weight.type.shape[2:], strict=True)]
        before = [t // 2 for t in totals]
        after = [t - b for t, b in zip(totals, before, strict=True)]
    else:
        before = after = spread(padding, n)
    return _batched(
        op, x, n, lambda value: op.Conv(
            value, weight, bias, strides=stride, pads=[*before, *after], dilations=dilation, group=groups,
            kernel_shape=list(weight.type.shape[2:]),
        )
    )  # fmt: skip


@lowers(aten.conv_transpose1d, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def conv_transpose(
    op: Builder,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> oir.Value:
    n = weight.type.rank - 2
    return _batched(
        op, x, n, lambda value: op.ConvTranspose(
            value, weight, bias, strides=spread(stride, n), pads=spread(padding, n) * 2, group=groups,
            output_padding=spread(output_padding, n), dilations=spread(dilation, n),
            kernel_shape=list(weight.type.shape[2:]),
        )
    )  # fmt: skip


@lowers(aten.convolution, aten._convolution)
def convolution(
    op: Builder, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, *_: Any,
) -> oir.Value:  # fmt: skip
    if transposed:
        return conv_transpose(op, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(op, x, weight, bias, stride, padding, dilation, groups)


def _batched(op: Builder, x: Any, n: int, convolve: Any) -> oir.Value:
    """ONNX needs a batch dimension."""
    if not x.type.dtype.is_floating_point:
        raise op.unsupported("of integers")
    if x.type.rank == n + 2:
        return convolve(x)
    return op.Squeeze(convolve(op.Unsqueeze(x, [0])), [0])
