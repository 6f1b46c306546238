"""Reductions: sums, means, extremes, variances, norms, cumulative sums."""

from __future__ import annotations

import math
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


@lowers(aten.sum, aten.mean)
def sum_or_mean(
    op: Builder, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> oir.Value:
    name = "ReduceSum" if op.node.is_op(aten.sum) else "ReduceMean"
    return reduce(op, name, op.cast(x, op.result.dtype), axes_of(x, dim), keepdim)


@lowers(aten.prod)
def prod(op: Builder, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> oir.Value:
    return reduce(op, "ReduceProd", op.cast(x, op.result.dtype), axes_of(x, dim), keepdim)


@lowers(aten.amax, aten.max.default)
def amax(op: Builder, x: Any, dim: Any = None, keepdim: bool = False) -> oir.Value:
    return extreme(op, "ReduceMax", x, dim, keepdim)


@lowers(aten.amin, aten.min.default)
def amin(op: Builder, x: Any, dim: Any = None, keepdim: bool = False) -> oir.Value:
    return extreme(op, "ReduceMin", x, dim, keepdim)


def extreme(op: Builder, name: str, x: Any, dim: Any, keepdim: bool) -> oir.Value:
    """ONNX has no extremes of int16; of booleans, runtimes have them of bytes."""
    dtype = x.type.dtype
    computed = {torch.int16: torch.int32, torch.bool: torch.uint8}.get(dtype, dtype)
    return (
        op.cast(reduce(op, name, op.cast(x, computed), axes_of(x, dim), keepdim), dtype)
        if computed != dtype
        else (reduce(op, name, x, axes_of(x, dim), keepdim))
    )


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
    computed = {torch.int16: torch.int32, torch.bool: torch.int32}.get(x.type.dtype, x.type.dtype)
    value = op.cast(x, computed)
    if dim is None or not x.type.rank:  # over the flat tensor
        index = op.call(name, op.Reshape(value, [-1]), axis=0, keepdims=0)
        return op.Reshape(index, [1] * x.type.rank) if keepdim else index
    return op.call(name, value, axis=dim, keepdims=int(keepdim))


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
    return reduce(op, "ReduceLogSumExp", op.cast(x, op.result.dtype), axes_of(x, dim), keepdim)


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
        return reduce(op, "ReduceMax" if order > 0 else "ReduceMin", size, axes, keepdim)
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
    return op.ReduceSum(op.Mul(*units), [dim], keepdims=0)


@lowers(aten.cumsum)
def cumsum(op: Builder, x: Any, dim: int, *, dtype: Any = None) -> oir.Value:
    value = op.cast(x, op.result.dtype)
    if not x.type.rank:
        return value
    return op.CumSum(value, op.const(dim % x.type.rank))


@lowers(aten.cumprod)
def cumprod(op: Builder, x: Any, dim: int, *, dtype: Any = None) -> oir.Value:
    value = op.cast(x, op.result.dtype)
    return op.ReduceProd(*_prefixes(op, value, x, dim, 1), keepdims=0) if x.type.rank else value


@lowers(aten.cummax)
def cummax(op: Builder, x: Any, dim: int) -> Any:
    return _running_extreme(op, "Max", x, dim, -math.inf)


@lowers(aten.cummin)
def cummin(op: Builder, x: Any, dim: int) -> Any:
    return _running_extreme(op, "Min", x, dim, math.inf)


def _running_extreme(op: Builder, name: str, x: Any, dim: int, neutral: float) -> Any:
    """Among equals torch tells the last one's index."""
    dtype = x.type.dtype
    if not dtype.is_floating_point or not x.type.rank:
        raise op.unsupported("of integers or a tensor without dimensions")
    prefixes, axes = _prefixes(op, op.value(x), x, dim, neutral)
    last = op.call(f"Arg{name}", prefixes, axis=axes[0], keepdims=0, select_last_index=1)
    return op.call(f"Reduce{name}", prefixes, axes, keepdims=0), last


def _prefixes(op: Builder, value: oir.Value, x: Any, dim: int, neutral: float) -> tuple[oir.Value, list[int]]:
    """For each place along `dim` the elements up to it, the others neutral; and the axis to be reduced.

    ONNX has running sums only. Takes memory of the dimension squared.
    """
    axis = dim % x.type.rank
    order = op.Range(*(op.cast(v, torch.int64) for v in (0, x.type.shape[axis], 1)))
    earlier = op.LessOrEqual(op.Unsqueeze(order, [0]), op.Unsqueeze(order, [1]))  # [size, size]
    after = x.type.rank - axis - 1
    if after:
        earlier = op.Unsqueeze(earlier, list(range(2, 2 + after)))
    return op.Where(earlier, op.Unsqueeze(value, [axis]), op.cast(neutral, op.result.dtype)), [axis + 1]


@lowers(aten._cdist_forward)
def cdist(op: Builder, a: Any, b: Any, order: float, _mode: Any) -> oir.Value:
    """Distances of all pairs of rows: [..., P, M] and [..., R, M] to [..., P, R]."""
    return _norm(op, op.Sub(op.Unsqueeze(a, [-2]), op.Unsqueeze(b, [-3])), order, [op.result.rank], False)
