"""Writing by index: scatter, index_put, and writing into slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as oir
import torch

from codegen.onnx.builder import Builder
from codegen.onnx.lowerings.indexing import Selection
from codegen.onnx.lowerings.view import LAST, expand_to
from codegen.onnx.table import lowers

aten = torch.ops.aten
_REDUCTIONS = {"sum": "add", "add": "add", "prod": "mul", "multiply": "mul", "amax": "max", "amin": "min"}


@lowers(aten.scatter.src, aten.scatter.reduce)
def scatter(op: Builder, x: Any, dim: int, index: Any, src: Any, *, reduce: str | None = None) -> oir.Value:
    return _scatter(op, x, dim, index, _fitting(op, src, index), _REDUCTIONS[reduce] if reduce else None)


@lowers(aten.scatter.value, aten.scatter.value_reduce)
def scatter_value(
    op: Builder, x: Any, dim: int, index: Any, value: Any, *, reduce: str | None = None
) -> oir.Value:
    source = op.Expand(op.cast(value, op.result.dtype), op.Shape(index))
    return _scatter(op, x, dim, index, source, _REDUCTIONS[reduce] if reduce else None)


@lowers(aten.scatter_add)
def scatter_add(op: Builder, x: Any, dim: int, index: Any, src: Any) -> oir.Value:
    return _scatter(op, x, dim, index, _fitting(op, src, index), "add")


@lowers(aten.scatter_reduce.two)
def scatter_reduce(
    op: Builder, x: Any, dim: int, index: Any, src: Any, how: str, *, include_self: bool = True
) -> oir.Value:
    if how not in _REDUCTIONS or not include_self:
        raise op.unsupported(f"the reduction {how!r}" if include_self else "include_self=False")
    return _scatter(op, x, dim, index, _fitting(op, src, index), _REDUCTIONS[how])


def _fitting(op: Builder, src: Any, index: Any) -> Any:
    """torch takes as much of the source as the index is large."""
    axes = [i for i, (a, b) in enumerate(zip(src.type.shape, index.type.shape, strict=True)) if a != b]
    if not axes:
        return src
    return op.Slice(src, [0] * len(axes), [index.type.shape[a] for a in axes], axes)


def _scatter(op: Builder, x: Any, dim: int, index: Any, src: Any, reduction: str | None) -> oir.Value:
    if not x.type.rank:
        flat = (op.Reshape(v, [-1]) for v in (x, index, src))
        return op.Squeeze(op.ScatterElements(*flat, axis=0, reduction=reduction))
    made = op.ScatterElements(x, index, src, axis=dim, reduction=reduction)
    if reduction not in ("max", "min") or not x.type.dtype.is_floating_point:
        return made
    masks = [op.Cast(op.IsNaN(v), to=torch.uint8) for v in (x, src)]  # runtimes may pass over NaN
    some = op.ScatterElements(masks[0], index, masks[1], axis=dim, reduction="max")
    return op.Where(op.Cast(some, to=torch.bool), op.const(math.nan, x.type.dtype), made)


@lowers(aten.index_put, aten._unsafe_index_put)
def index_put(
    op: Builder, x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False
) -> oir.Value:
    """x[i, None, j] = values. A mask with one number is a choice; a single index scatters along its dim."""
    used = [d for d, i in enumerate(indices) if i is not None]
    first = indices[used[0]]
    is_mask = first.type.dtype == torch.bool
    value = op.cast(values, x.type.dtype)
    if len(used) == 1 and is_mask and values.type.numel == 1 and not accumulate:
        trailing = x.type.rank - used[0] - first.type.rank
        mask = op.Unsqueeze(first, list(range(-trailing, 0))) if trailing else first
        return op.Where(mask, op.Reshape(value, op.const(torch.zeros(0))), x)
    reduction = "add" if accumulate else None
    if len(used) == 1 and not is_mask and first.type.rank == 1:
        return _put_along(op, x, used[0], first, values, value, reduction)
    selection = Selection(op, x, indices)
    moved = selection.moved(op.value(x))
    shape = op.Shape(selection.placed(op.GatherND(moved, selection.index)))
    updates = selection.taken_up(op.Expand(value, shape))
    return selection.moved_back(op.ScatterND(moved, selection.index, updates, reduction=reduction))


def _put_along(
    op: Builder, x: Any, dim: int, index: Any, values: Any, value: oir.Value, reduction: str | None
) -> oir.Value:
    """The index, repeated over all other dimensions, for ScatterElements: no dimension has to be moved.

    Negative positions count from the end, in both.
    """
    shape = [*x.type.shape[:dim], index.type.shape[0], *x.type.shape[dim + 1 :]]
    after = x.type.rank - dim - 1
    column = op.Unsqueeze(index, list(range(1, 1 + after))) if after else op.value(index)
    places = expand_to(op, op.cast(column, torch.int64), [index.type.shape[0], *[1] * after], shape)
    updates = expand_to(op, value, values.type.shape, shape)
    return op.ScatterElements(x, places, updates, axis=dim, reduction=reduction)


@lowers(aten.index_add)
def index_add(op: Builder, x: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> oir.Value:
    value = op.value(source) if alpha == 1 else op.Mul(source, op.cast(alpha, op.result.dtype))
    return _put_along(op, x, dim % x.type.rank, index, source, value, "add")


@lowers(aten.index_copy)
def index_copy(op: Builder, x: Any, dim: int, index: Any, source: Any) -> oir.Value:
    return _put_along(op, x, dim % x.type.rank, index, source, op.value(source), None)


@lowers(aten.index_fill)
def index_fill(op: Builder, x: Any, dim: int, index: Any, fill: Any) -> oir.Value:
    dim = dim % x.type.rank
    shape = [*x.type.shape[:dim], index.type.shape[0], *x.type.shape[dim + 1 :]]
    after = x.type.rank - dim - 1
    column = op.Unsqueeze(index, list(range(1, 1 + after))) if after else op.value(index)
    places = expand_to(op, column, [index.type.shape[0], *[1] * after], shape)
    return op.ScatterElements(x, places, op.Expand(op.cast(fill, op.result.dtype), shape), axis=dim)


@lowers(aten.slice_scatter)
def slice_scatter(op: Builder, x: Any, src: Any, dim: int, start: Any, end: Any, step: Any) -> oir.Value:
    """What lies before, the source, what lies behind; with a step, scattered along the dimension."""
    dim = dim % x.type.rank
    first = 0 if start is None else start
    last = LAST if end is None else end
    if step == 1 and all(isinstance(v, int) for v in (first, last)) and isinstance(x.type.shape[dim], int):
        first, last, _ = slice(first, last).indices(x.type.shape[dim])
        last = max(first, last)
        parts = [op.Slice(x, [0], [first], [dim])] if first else []
        parts.append(op.value(src))
        parts += [op.Slice(x, [last], [LAST], [dim])] if last < x.type.shape[dim] else []
        return op.Concat(*parts, axis=dim) if len(parts) > 1 else op.cast(src, op.result.dtype)
    order = op.Range(*(op.cast(v, torch.int64) for v in (0, x.type.shape[dim], 1)))
    index = op.Slice(order, [first], [last], [0], [step])
    after = x.type.rank - dim - 1
    column = op.Unsqueeze(index, list(range(1, 1 + after))) if after else index
    return op.ScatterElements(x, op.Expand(column, op.Shape(src)), src, axis=dim)


@lowers(aten.select_scatter)
def select_scatter(op: Builder, x: Any, src: Any, dim: int, index: Any) -> oir.Value:
    value = op.Unsqueeze(src, [dim])
    places = op.Expand(op.Reshape(op.cast(index, torch.int64), [1] * x.type.rank), op.Shape(value))
    return op.ScatterElements(x, places, value, axis=dim)


@lowers(aten.masked_scatter)
def masked_scatter(op: Builder, x: Any, mask: Any, source: Any) -> oir.Value:
    """The true elements, in order, take the source's elements in order."""
    if x.type.shape != mask.type.shape:
        raise op.unsupported("the mask is broadcast")
    places = op.Transpose(op.NonZero(mask), perm=[1, 0])
    count = op.Slice(op.Shape(places), [0], [1])
    values = op.Slice(op.Reshape(source, [-1]), [0], count, [0])
    return op.ScatterND(x, places, values)
