"""Tensors made from nothing: constants, ranges, random numbers."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as oir
import torch

from capture.ir.dims import is_symbolic
from codegen.onnx.builder import SCALAR_DTYPES, Builder
from codegen.onnx.lowerings.arithmetic import back, wide
from codegen.onnx.table import lowers

aten = torch.ops.aten


def filled(op: Builder, fill: Any, shape: Any = None) -> oir.Value:
    """A tensor of the result's type and shape (or another shape) of one number, or of one computed scalar."""
    shape = list(op.result.shape if shape is None else shape)
    dtype = op.result.dtype
    if not shape:
        return op.cast(fill, dtype)
    if isinstance(fill, (bool, int, float)):
        return op.ConstantOfShape(shape, value=torch.tensor([fill], dtype=dtype))
    return op.Expand(op.cast(fill, dtype), shape)


@lowers(
    aten.zeros, aten.zeros_like, aten.new_zeros,
    aten.empty.memory_format, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided,
)  # fmt: skip
def zeros(op: Builder, *_: Any, **__: Any) -> oir.Value:
    """What torch leaves uninitialised is zero."""
    return filled(op, 0)


@lowers(aten.ones, aten.ones_like, aten.new_ones)
def ones(op: Builder, *_: Any, **__: Any) -> oir.Value:
    return filled(op, 1)


@lowers(aten.full, aten.full_like, aten.fill)
def full(op: Builder, _like: Any, fill: Any, **__: Any) -> oir.Value:
    return filled(op, fill)


@lowers(aten.new_full)
def new_full(op: Builder, _like: Any, _shape: Any, fill: Any, **__: Any) -> oir.Value:
    return filled(op, fill)


@lowers(aten.scalar_tensor)
def scalar_tensor(op: Builder, number: Any, **_: Any) -> oir.Value:
    return op.cast(number, op.result.dtype)


@lowers(aten.arange.default, aten.arange.start, aten.arange.start_step)
def arange(op: Builder, *bounds: Any, **_: Any) -> oir.Value:
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    dtype = op.result.dtype
    if not any(is_symbolic(v) or not isinstance(v, (int, float)) for v in (start, end, step)):
        if (end - start) / step <= 1 << 16:
            return op.const(torch.arange(start, end, step, dtype=dtype), dtype)
    computed = torch.float32 if dtype in (torch.float16, torch.bfloat16) else wide(dtype)
    return back(op, op.Range(*(op.cast(v, computed) for v in (start, end, step))), computed)


@lowers(aten.linspace)
def linspace(op: Builder, start: Any, end: Any, steps: Any, **_: Any) -> oir.Value:
    if not all(isinstance(v, (int, float)) for v in (start, end, steps)):
        raise op.unsupported("its bounds are not numbers")
    return op.const(torch.linspace(start, end, steps, dtype=op.result.dtype), op.result.dtype)


@lowers(aten.eye)
def eye(op: Builder, *_: Any, **__: Any) -> oir.Value:
    made = op.EyeLike(
        op.ConstantOfShape(list(op.result.shape), value=torch.tensor([0.0])), dtype=op.result.dtype
    )
    return made


@lowers(aten.tril_indices, aten.triu_indices)
def triangle_indices(op: Builder, rows: int, columns: int, offset: int = 0, **_: Any) -> oir.Value:
    return op.const(op.node.op(rows, columns, offset), op.result.dtype)


@lowers(aten.rand, aten.rand_like, aten.randn, aten.randn_like)
def random(op: Builder, *_: Any, **__: Any) -> oir.Value:
    """Other numbers than torch's: only their distribution is the same."""
    normal = op.node.is_op(aten.randn, aten.randn_like)
    like = op.ConstantOfShape(list(op.result.shape), value=torch.tensor([0.0]))
    return op.call("RandomNormalLike" if normal else "RandomUniformLike", like, dtype=op.result.dtype)


@lowers(aten.bernoulli.default)
def bernoulli(op: Builder, x: Any, **_: Any) -> oir.Value:
    return op.Bernoulli(x)


@lowers(aten.isclose)
def isclose(op: Builder, a: Any, b: Any, rtol: float, atol: float, equal_nan: bool) -> oir.Value:
    dtype = a.type.dtype
    if not dtype.is_floating_point:
        raise op.unsupported("of integers")
    bound = op.Add(op.cast(atol, dtype), op.Mul(op.cast(rtol, dtype), op.Abs(b)))
    near = op.LessOrEqual(op.Abs(op.Sub(a, b)), bound)
    equal = op.Or(op.Equal(a, b), op.And(op.IsNaN(a), op.IsNaN(b))) if equal_nan else op.Equal(a, b)
    return op.Or(equal, op.And(near, op.Less(bound, op.cast(math.inf, dtype))))


@lowers(aten._assert_tensor_metadata, aten._assert_scalar, aten._assert_async, aten.sym_constrain_range,
        aten.sym_constrain_range_for_size)  # fmt: skip
def assertion(op: Builder, *_: Any, **__: Any) -> None:
    """What torch checks at run time is not checked by ONNX; it computes nothing."""


@lowers(aten._local_scalar_dense, aten.item)
def item(op: Builder, x: Any) -> oir.Value:
    made = op.cast(x, SCALAR_DTYPES[op.node.result.type.kind])
    return op.Reshape(made, op.const(torch.zeros(0))) if x.type.rank else made
