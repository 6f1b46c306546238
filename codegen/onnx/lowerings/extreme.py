"""Largest and smallest elements and where they are. NaN wins, as in torch; runtimes may pass over it."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as oir
import torch

from codegen.onnx.builder import Builder
from codegen.onnx.lowerings.reduction import axes_of, earlier, is_nan, reduce, reduce_extreme
from codegen.onnx.table import lowers

aten = torch.ops.aten


@lowers(aten.amax, aten.max.default)
def amax(op: Builder, x: Any, dim: Any = None, keepdim: bool = False) -> oir.Value:
    return extreme(op, "ReduceMax", x, dim, keepdim)


@lowers(aten.amin, aten.min.default)
def amin(op: Builder, x: Any, dim: Any = None, keepdim: bool = False) -> oir.Value:
    return extreme(op, "ReduceMin", x, dim, keepdim)


def extreme(op: Builder, name: str, x: Any, dim: Any, keepdim: bool) -> oir.Value:
    """ONNX has no extremes of int16; of booleans, runtimes have them of bytes."""
    dtype, axes = x.type.dtype, axes_of(x, dim)
    computed = {torch.int16: torch.int32, torch.bool: torch.uint8}.get(dtype, dtype)
    if dtype.is_floating_point:
        return reduce_extreme(op, name, op.value(x), axes, keepdim)
    made = reduce(op, name, op.cast(x, computed), axes, keepdim)
    return op.cast(made, dtype) if computed != dtype else made


@lowers(aten.max.dim)
def max_dim(op: Builder, x: Any, dim: int, keepdim: bool = False) -> Any:
    return extreme(op, "ReduceMax", x, dim, keepdim), index_of(op, "ArgMax", x, dim, keepdim)


@lowers(aten.min.dim)
def min_dim(op: Builder, x: Any, dim: int, keepdim: bool = False) -> Any:
    return extreme(op, "ReduceMin", x, dim, keepdim), index_of(op, "ArgMin", x, dim, keepdim)


@lowers(aten.aminmax)
def aminmax(op: Builder, x: Any, *, dim: Any = None, keepdim: bool = False) -> Any:
    return extreme(op, "ReduceMin", x, dim, keepdim), extreme(op, "ReduceMax", x, dim, keepdim)


@lowers(aten.argmax)
def argmax(op: Builder, x: Any, dim: Any = None, keepdim: bool = False) -> oir.Value:
    return index_of(op, "ArgMax", x, dim, keepdim)


@lowers(aten.argmin)
def argmin(op: Builder, x: Any, dim: Any = None, keepdim: bool = False) -> oir.Value:
    return index_of(op, "ArgMin", x, dim, keepdim)


def index_of(op: Builder, name: str, x: Any, dim: int | None, keepdim: bool) -> oir.Value:
    """The place of the extreme: of the first NaN where there is one."""
    computed = {torch.int16: torch.int32, torch.bool: torch.int32}.get(x.type.dtype, x.type.dtype)
    value = op.cast(x, computed)
    flat = dim is None or not x.type.rank
    if flat:
        value, axis = op.Reshape(value, [-1]), 0
    else:
        axis = dim % x.type.rank  # a negative one, of nothing, gives runtimes the wrong number of dimensions
    kept = int(keepdim and not flat)
    index = op.call(name, value, axis=axis, keepdims=kept)
    if computed.is_floating_point:
        mask = is_nan(op, value, torch.int32)
        some = op.cast(op.ReduceMax(mask, [axis], keepdims=kept), torch.bool)
        index = op.Where(some, op.ArgMax(mask, axis=axis, keepdims=kept), index)
    return op.Reshape(index, [1] * x.type.rank) if flat and keepdim else index


@lowers(aten.cummax)
def cummax(op: Builder, x: Any, dim: int) -> Any:
    return _running_extreme(op, "Max", x, dim, -math.inf)


@lowers(aten.cummin)
def cummin(op: Builder, x: Any, dim: int) -> Any:
    return _running_extreme(op, "Min", x, dim, math.inf)


def _running_extreme(op: Builder, name: str, x: Any, dim: int, neutral: float) -> Any:
    """Among equals, and among NaN, torch tells the last one's index."""
    if not x.type.dtype.is_floating_point or not x.type.rank:
        raise op.unsupported("of integers or a tensor without dimensions")
    axis = dim % x.type.rank
    seen, element = earlier(op, x, axis), op.Unsqueeze(x, [axis])
    before = op.Where(seen, element, op.cast(neutral, op.result.dtype))
    running = reduce_extreme(op, f"Reduce{name}", before, [axis + 1], keepdim=True)
    equal = op.Or(op.Equal(element, running), op.And(op.IsNaN(element), op.IsNaN(running)))
    hits = op.Cast(op.And(seen, equal), to=torch.int32)
    index = op.ArgMax(hits, axis=axis + 1, keepdims=0, select_last_index=1)
    return op.Squeeze(running, [axis + 1]), index
