"""Sorting, the largest k, one-hot."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as oir
import torch

from capture.ir import dims
from codegen.onnx.builder import Builder
from codegen.onnx.lowerings.arithmetic import single, wide
from codegen.onnx.lowerings.reduction import is_nan, nan_wins
from codegen.onnx.table import lowers

aten = torch.ops.aten


@lowers(aten.topk)
def topk(op: Builder, x: Any, k: Any, dim: int = -1, largest: bool = True, in_order: bool = True) -> Any:
    return _top(op, x, k, dim, largest)


@lowers(aten.sort.default)
def sort(op: Builder, x: Any, dim: int = -1, descending: bool = False) -> Any:
    return _top(op, x, _size(x, dim), dim, descending)


@lowers(aten.sort.stable)
def sort_stable(op: Builder, x: Any, *, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
    return _top(op, x, _size(x, dim), dim, descending)


@lowers(aten.argsort.default)
def argsort(op: Builder, x: Any, dim: int = -1, descending: bool = False) -> oir.Value:
    return _top(op, x, _size(x, dim), dim, descending)[1]


@lowers(aten.argsort.stable)
def argsort_stable(
    op: Builder, x: Any, *, stable: bool, dim: int = -1, descending: bool = False
) -> oir.Value:
    return _top(op, x, _size(x, dim), dim, descending)[1]


def _size(x: Any, dim: int) -> Any:
    return x.type.shape[dim] if x.type.rank else 1


def _top(op: Builder, x: Any, k: Any, dim: int, largest: bool) -> tuple[oir.Value, oir.Value]:
    """Among equals ONNX takes the first one first, as a stable sort does."""
    dtype = x.type.dtype
    computed = torch.int32 if dtype == torch.bool else wide(dtype)
    value = op.cast(x, computed)
    if not x.type.rank:
        return op.cast(value, dtype), op.const(0)
    keys = _ordered_keys(op, value, dtype) if dtype.is_floating_point else value
    values, indices = op.TopK(keys, op.vector([k]), axis=dim, largest=int(largest), sorted=1, outputs=2)
    if keys is not value:
        values = op.GatherElements(value, indices, axis=dim)
    return values if computed == dtype else op.cast(values, dtype), indices


def _ordered_keys(op: Builder, x: oir.Value, dtype: torch.dtype) -> oir.Value:
    """Numbers in torch's order, where NaN comes after inf; ONNX leaves open where it comes.

    Inf becomes a finite number above the others: of a wider type, so that it is not one of them (of
    doubles, it is the largest one).
    """
    wider = torch.float32 if dtype in (torch.float16, torch.bfloat16) else torch.float64
    wide_x, top = op.cast(x, wider), op.cast(torch.finfo(wider).max, wider)
    finite = op.Where(op.IsInf(wide_x, detect_negative=0), top, wide_x)
    return op.Where(op.IsNaN(x), op.cast(math.inf, wider), finite)


@lowers(aten.median.dim)
def median(op: Builder, x: Any, dim: int, keepdim: bool = False) -> Any:
    """torch takes the lower of two middle elements, or the first NaN."""
    pair = _ordered(op, x, dim, (_size(x, dim) - 1) // 2, keepdim)
    if not x.type.dtype.is_floating_point or not x.type.rank:
        return pair
    mask, dim = is_nan(op, op.value(x), torch.int32), dim % x.type.rank
    first = op.ArgMax(mask, axis=dim, keepdims=int(keepdim))
    some = op.cast(op.ReduceMax(mask, [dim], keepdims=int(keepdim)), torch.bool)
    return op.Where(some, op.const(math.nan, x.type.dtype), pair[0]), op.Where(some, first, pair[1])


@lowers(aten.median.default)
def median_of_all(op: Builder, x: Any) -> oir.Value:
    count, dtype = x.type.numel, x.type.dtype
    flat = op.Reshape(op.cast(x, single(dtype)), [-1])
    upto = op.vector([dims.canonical((count - 1) // 2 + 1)])
    smallest, _ = op.TopK(flat, upto, axis=0, largest=0, outputs=2)
    made = op.Gather(smallest, op.const(-1), axis=0)
    made = op.cast(made, dtype) if single(dtype) != dtype else made
    return nan_wins(op, made, flat, [0], False) if dtype.is_floating_point else made


@lowers(aten.kthvalue)
def kthvalue(op: Builder, x: Any, k: Any, dim: int = -1, keepdim: bool = False) -> Any:
    return _ordered(op, x, dim, k - 1, keepdim)


def _ordered(op: Builder, x: Any, dim: int, place: Any, keepdim: bool) -> tuple[oir.Value, oir.Value]:
    """Value and index of the element at that place in ascending order."""
    pair = _top(op, x, place + 1, dim, largest=False)
    chosen = [op.Gather(t, op.const([-1]), axis=dim) for t in pair] if x.type.rank else list(pair)
    return tuple(chosen if keepdim or not x.type.rank else (op.Squeeze(t, [dim]) for t in chosen))


@lowers(aten.one_hot)
def one_hot(op: Builder, x: Any, classes: int = -1) -> oir.Value:
    return op.OneHot(x, op.const([op.result.shape[-1]]), op.const([0, 1]))


@lowers(aten.bucketize.Tensor, aten.searchsorted.Tensor)
def bucketize(op: Builder, first: Any, second: Any, *, right: bool = False, **others: Any) -> oir.Value:
    """The number of boundaries below each value: counted against all of them."""
    values, bounds = (second, first) if op.node.is_op(aten.searchsorted) else (first, second)
    if bounds.type.rank != 1 or set(others) - {"out_int32"}:
        raise op.unsupported("sorted sequences of several dimensions, or a sorter")
    dtype = torch.promote_types(values.type.dtype, bounds.type.dtype)
    reached = "Greater" if right else "GreaterOrEqual"  # never for NaN, which goes behind all
    hits = op.Not(op.call(reached, op.cast(bounds, dtype), op.Unsqueeze(op.cast(values, dtype), [-1])))
    return op.cast(op.ReduceSum(op.cast(hits, torch.int64), [values.type.rank], keepdims=0), op.result.dtype)
