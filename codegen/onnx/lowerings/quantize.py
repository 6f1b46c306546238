"""Quantise and dequantise nodes: ONNX's QDQ form, which runtimes fuse into integer kernels of their own."""

from __future__ import annotations

from typing import Any

import onnx_ir as oir
import torch

from capture.ir.quantized import ops
from codegen.onnx.builder import Builder
from codegen.onnx.table import lowers

QUANTIZED = ops()
_RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127)}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@lowers(QUANTIZED.quantize_per_tensor.default)
def quantize_per_tensor(
    op: Builder, x: Any, scale: float, zero_point: int, low: int, high: int, dtype: torch.dtype
) -> oir.Value:
    return _quantize(
        op, x, op.const(scale, _real(op, x)), op.const(zero_point, _integer(op, dtype)), low, high
    )


@lowers(QUANTIZED.quantize_per_channel.default)
def quantize_per_channel(
    op: Builder, x: Any, scales: Any, zero_points: Any, axis: int, low: int, high: int, dtype: torch.dtype
) -> oir.Value:
    offsets = op.cast(zero_points, _integer(op, dtype))
    return _quantize(op, x, op.cast(scales, _real(op, x)), offsets, low, high, axis)


@lowers(QUANTIZED.dequantize_per_tensor.default)
def dequantize_per_tensor(
    op: Builder, x: Any, scale: float, zero_point: int, _low: int, _high: int, dtype: torch.dtype, **_: Any
) -> oir.Value:
    return op.DequantizeLinear(x, op.const(scale, _result(op)), op.const(zero_point, _integer(op, dtype)))


@lowers(QUANTIZED.dequantize_per_channel.default)
def dequantize_per_channel(
    op: Builder,
    x: Any,
    scales: Any,
    zero_points: Any,
    axis: int,
    _low: int,
    _high: int,
    dtype: torch.dtype,
    **_: Any,
) -> oir.Value:
    """Constants stay as they are: runtimes look for a constant weight right before the node."""
    offsets = None if zero_points is None else op.cast(zero_points, _integer(op, dtype))
    return op.DequantizeLinear(x, op.cast(scales, _result(op)), offsets, axis=axis)


def _quantize(
    op: Builder, x: Any, scale: oir.Value, offset: Any, low: int, high: int, axis: int | None = None
) -> oir.Value:
    """ONNX saturates at the ends of the dtype: a narrower range is clipped after."""
    made = op.QuantizeLinear(x, scale, offset, axis=axis)
    dtype = op.result.dtype
    if (low, high) == _RANGES[dtype]:
        return made
    return op.Clip(made, op.const(low, dtype), op.const(high, dtype))


def _integer(op: Builder, dtype: torch.dtype) -> torch.dtype:
    if dtype not in _RANGES:
        raise op.unsupported(f"integers of {dtype} have no QDQ form here: uint8 and int8 have")
    return dtype


def _real(op: Builder, x: Any) -> torch.dtype:
    return _checked(op, x.type.dtype)


def _result(op: Builder) -> torch.dtype:
    return _checked(op, op.result.dtype)


def _checked(op: Builder, dtype: torch.dtype) -> torch.dtype:
    if dtype not in _FLOATS:
        raise op.unsupported(f"{dtype} has no QDQ form")
    return dtype
