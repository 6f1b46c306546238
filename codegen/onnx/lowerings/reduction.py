"""Reductions: sums, means, variances, norms, cumulative sums and products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as oir
import torch

from capture.ir import dims
from codegen.onnx.builder import Builder
from codegen.onnx.table import lowers

aten = torch.ops.aten


def axes_of(x: Any, dim: Any) -> list[int]:
    """The reduced axes; None and, as in most of torch, [] mean all."""
    rank = x.type.rank
    chosen = range(rank) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return sorted(d % rank for d in chosen) if rank else []


def reduce(op: Builder, name: str, value: Any, axes: list[int], keepdim: bool) -> Any:
    """A Reduce node; without axes (a tensor of shape []) there is nothing to reduce."""
    if not axes:
        return op.call(name, value, None, keepdims=1)
    return op.call(name, value, axes, keepdims=int(keepdim))


def reduce_extreme(op: Builder, name: str, value: Any, axes: list[int], keepdim: bool) -> oir.Value:
    """ReduceMax or ReduceMin of floats, or NaN where there is one among them."""
    return nan_wins(op, reduce(op, name, value, axes, keepdim), value, axes, keepdim)


def nan_wins(op: Builder, made: oir.Value, value: Any, axes: list[int], keepdim: bool) -> oir.Value:
    """What was reduced from `value`, or NaN where there is one among the reduced."""
    if not axes:
        return made
    some = op.cast(reduce(op, "ReduceMax", is_nan(op, value, torch.uint8), axes, keepdim), torch.bool)
    return op.Where(some, not_a_number(op), made)


def is_nan(op: Builder, value: Any, dtype: torch.dtype) -> oir.Value:
    """1 where an element is NaN, else 0."""
    return op.Cast(op.IsNaN(value), to=dtype)


def not_a_number(op: Builder) -> oir.Value:
    return op.const(math.nan, op.result.dtype)


@lowers(aten.sum)
def sum_(op: Builder, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> oir.Value:
    axes, wanted = axes_of(x, dim), op.result.dtype
    value = op.cast(x, wanted)
    if wanted.is_floating_point or (wanted == torch.int64 and _sums_below_2_to_53(x, axes)):
        return reduce(op, "ReduceSum", value, axes, keepdim)
    return fold(op, "add", value, wanted, x.type.shape, axes, keepdim)


@lowers(aten.mean)
def mean(op: Builder, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> oir.Value:
    return mean_over(op, op.cast(x, op.result.dtype), x.type.shape, axes_of(x, dim), keepdim)


def mean_over(
    op: Builder, value: oir.Value, shape: Sequence[dims.Dim], axes: list[int], keepdim: bool
) -> oir.Value:
    """The mean of nothing is NaN; runtimes take it for 0."""
    if all(_filled(op, shape[a]) for a in axes):
        return reduce(op, "ReduceMean", value, axes, keepdim)
    count = op.cast(dims.product(tuple(shape[a] for a in axes)), op.result.dtype)
    return op.Div(reduce(op, "ReduceSum", value, axes, keepdim), count)


def _filled(op: Builder, size: dims.Dim) -> bool:
    """Whether the size is never 0: it is a positive number, or a dim whose range begins above."""
    if isinstance(size, int):
        return size > 0
    known = op.node.graph.dims.get(str(size)) if op.node.graph is not None else None
    return known is not None and known.lower > 0


@lowers(aten.prod)
def prod(op: Builder, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> oir.Value:
    axes, value = axes_of(x, dim), op.cast(x, op.result.dtype)
    if op.result.dtype.is_floating_point:
        return reduce(op, "ReduceProd", value, axes, keepdim)
    return fold(op, "mul", value, op.result.dtype, x.type.shape, axes, keepdim)


def _sums_below_2_to_53(x: Any, axes: list[int]) -> bool:
    """Whether doubles hold every sum exactly, for the largest numbers of the type."""
    dtype = x.type.dtype
    if dtype.is_floating_point:
        return False
    bits = 1 if dtype == torch.bool else torch.iinfo(dtype).bits
    count = dims.product(tuple(x.type.shape[a] for a in axes))
    return bits <= 16 or (bits == 32 and isinstance(count, int) and count <= 1 << 21)


def fold(
    op: Builder, how: str, value: oir.Value, dtype: torch.dtype, shape: Sequence[dims.Dim], axes: list[int],
    keepdim: bool,
) -> oir.Value:  # fmt: skip
    """The wrapping sum ("add") or product ("mul") of integers, in their own type.

    Runtimes compute ReduceSum and ReduceProd of integers in doubles, but scatter them as they are: along one
    axis after the other, everything is put at place 0.
    """
    kept = list(shape)
    for axis in axes:
        places = op.ConstantOfShape(op.vector(kept), value=torch.tensor([0]))
        kept[axis] = 1
        neutral = torch.tensor([0 if how == "add" else 1], dtype=dtype)
        start = op.ConstantOfShape(op.vector(kept), value=neutral)
        value = op.ScatterElements(start, places, value, axis=axis, reduction=how)
    return value if keepdim or not axes else op.Squeeze(value, axes)


@lowers(aten.any)
def any_(op: Builder, x: Any, dim: Any = None, keepdim: bool = False) -> oir.Value:
    return _logical(op, "ReduceMax", x, dim, keepdim)


@lowers(aten.all)
def all_(op: Builder, x: Any, dim: Any = None, keepdim: bool = False) -> oir.Value:
    return _logical(op, "ReduceMin", x, dim, keepdim)


def _logical(op: Builder, name: str, x: Any, dim: Any, keepdim: bool) -> oir.Value:
    truth = op.cast(op.cast(x, torch.bool), torch.uint8)
    made = reduce(op, name, truth, axes_of(x, dim), keepdim)
    return op.cast(made, op.result.dtype)


@lowers(aten.count_nonzero)
def count_nonzero(op: Builder, x: Any, dim: Any = None) -> oir.Value:
    return reduce(op, "ReduceSum", op.cast(op.cast(x, torch.bool), torch.int64), axes_of(x, dim), False)


@lowers(aten.var, aten.std)
def var_or_std(op: Builder, x: Any, *dim_and_more: Any, **keywords: Any) -> oir.Value:
    variance, _ = _variance(op, x, *dim_and_more, **keywords)
    return op.Sqrt(variance) if op.node.is_op(aten.std) else variance


@lowers(aten.var_mean, aten.std_mean)
def var_mean(op: Builder, x: Any, *dim_and_more: Any, **keywords: Any) -> Any:
    variance, mean = _variance(op, x, *dim_and_more, **keywords)
    return op.Sqrt(variance) if op.node.is_op(aten.std_mean) else variance, mean


def _variance(
    op: Builder,
    x: Any,
    dim: Any = None,
    unbiased: Any = None,
    keepdim: bool = False,
    *,
    correction: Any = None,
) -> tuple[oir.Value, oir.Value]:
    """The overloads are (x, unbiased), (x, dim, unbiased, keepdim) and (x, dim, *, correction, keepdim)."""
    overload = op.node.op._overloadname
    if overload == "default":
        dim, unbiased = None, dim
    if overload == "correction":
        keepdim = bool(op.node.arg("keepdim"))
    if correction is None:
        correction = 1 if unbiased is None or unbiased else 0
    axes = axes_of(x, dim)
    mean = reduce(op, "ReduceMean", x, axes, True)
    off = op.Sub(x, mean)
    count = dims.product(tuple(x.type.shape[a] for a in axes))
    total = reduce(op, "ReduceSum", op.Mul(off, off), axes, keepdim)
    left = op.Sub(op.cast(count, op.result.dtype), op.cast(float(correction), op.result.dtype))
    divisor = op.Max(left, op.cast(0.0, op.result.dtype))
    return op.Div(total, divisor), mean if keepdim or not axes else op.Squeeze(mean, axes)


@lowers(aten.logsumexp)
def logsumexp(op: Builder, x: Any, dim: Any, keepdim: bool = False) -> oir.Value:
    value, axes = op.cast(x, op.result.dtype), axes_of(x, dim)
    made = reduce(op, "ReduceLogSumExp", value, axes, keepdim)
    return nan_wins(op, made, value, axes, keepdim)  # runtimes lose NaN beside inf


@lowers(aten.linalg_vector_norm)
def vector_norm(
    op: Builder, x: Any, order: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> oir.Value:
    return _norm(op, op.cast(x, op.result.dtype), order, axes_of(x, dim), keepdim)


@lowers(aten.norm)
def norm(
    op: Builder, x: Any, order: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> oir.Value:
    return _norm(op, op.cast(x, op.result.dtype), 2 if order is None else order, axes_of(x, dim), keepdim)


@lowers(aten.linalg_norm)
def linalg_norm(
    op: Builder, x: Any, order: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    axes = axes_of(x, dim)
    if isinstance(order, str) or (order is not None and len(axes) == 2):
        raise op.unsupported("a matrix norm")
    return _norm(op, op.cast(x, op.result.dtype), 2 if order is None else order, axes, keepdim)


def _norm(op: Builder, x: oir.Value, order: Any, axes: list[int], keepdim: bool) -> oir.Value:
    dtype = op.result.dtype
    if order in (1, 2):
        return reduce(op, f"ReduceL{int(order)}", x, axes, keepdim)
    size = op.Abs(x)
    if math.isinf(order):
        return reduce_extreme(op, "ReduceMax" if order > 0 else "ReduceMin", size, axes, keepdim)
    if order == 0:
        return reduce(op, "ReduceSum", op.cast(op.cast(size, torch.bool), dtype), axes, keepdim)
    total = reduce(op, "ReduceSum", op.Pow(size, op.cast(float(order), dtype)), axes, keepdim)
    return op.Pow(total, op.cast(1.0 / order, dtype))


@lowers(aten.cosine_similarity)
def cosine_similarity(op: Builder, a: Any, b: Any, dim: int = 1, eps: float = 1e-8) -> oir.Value:
    dtype = op.result.dtype
    units: list[oir.Value] = []
    for x in (a, b):
        norm = op.ReduceL2(op.cast(x, dtype), [dim], keepdims=1)
        units.append(op.Div(op.cast(x, dtype), op.Max(norm, op.cast(eps, dtype))))
    return op.ReduceSum(op.Mul(*units), [dim % (op.result.rank + 1)], keepdims=0)


@lowers(aten.cumsum)
def cumsum(op: Builder, x: Any, dim: int, *, dtype: Any = None) -> oir.Value:
    value = op.cast(x, op.result.dtype)
    if not x.type.rank:
        return value
    return op.CumSum(value, op.const(dim % x.type.rank))


@lowers(aten.cumprod)
def cumprod(op: Builder, x: Any, dim: int, *, dtype: Any = None) -> oir.Value:
    value, rank = op.cast(x, op.result.dtype), x.type.rank
    if not rank:
        return value
    axis = dim % rank
    before = op.Where(earlier(op, x, axis), op.Unsqueeze(value, [axis]), op.cast(1, op.result.dtype))
    if op.result.dtype.is_floating_point:
        return op.ReduceProd(before, [axis + 1], keepdims=0)
    shape = [*x.type.shape[: axis + 1], *x.type.shape[axis:]]
    return fold(op, "mul", before, op.result.dtype, shape, [axis + 1], keepdim=False)


def earlier(op: Builder, x: Any, axis: int) -> oir.Value:
    """For each place along `axis` [size, size, 1, ...], which are up to it.

    ONNX has running sums only; others are reductions over that, in memory of the dimension squared.
    """
    order = op.Range(*(op.cast(v, torch.int64) for v in (0, x.type.shape[axis], 1)))
    seen = op.LessOrEqual(op.Unsqueeze(order, [0]), op.Unsqueeze(order, [1]))
    after = x.type.rank - axis - 1
    return op.Unsqueeze(seen, list(range(2, 2 + after))) if after else seen


@lowers(aten._cdist_forward)
def cdist(op: Builder, a: Any, b: Any, order: float, _mode: Any) -> oir.Value:
    """Distances of all pairs of rows: [..., P, M] and [..., R, M] to [..., P, R]."""
    return _norm(op, op.Sub(op.Unsqueeze(a, [-2]), op.Unsqueeze(b, [-3])), order, [op.result.rank], False)
