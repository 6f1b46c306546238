"""Matrix products: linear, matmul and their kin, einsum."""

from __future__ import annotations

from typing import Any

import onnx_ir as oir
import torch

from capture.ir.dims import is_symbolic
from capture.ir.graph import Value
from codegen.onnx.builder import Builder
from codegen.onnx.lowerings.arithmetic import back, single, wide
from codegen.onnx.lowerings.creation import filled
from codegen.onnx.lowerings.reduction import fold
from codegen.onnx.table import lowers

aten = torch.ops.aten


@lowers(aten.linear)
def linear(op: Builder, x: Any, weight: Any, bias: Any) -> oir.Value:
    """Gemm for a matrix. Else the graph transposes the weight, which keeps its name; runtimes fold that."""
    dtype = wide(op.result.dtype)
    if x.type.rank == 2 and weight.type.rank == 2 and dtype.is_floating_point:
        return op.Gemm(x, weight, bias, transB=1)
    factor = op.cast(weight, dtype)
    product = op.MatMul(
        op.cast(x, dtype), op.Transpose(factor, perm=[1, 0]) if weight.type.rank == 2 else factor
    )
    return back(op, product if bias is None else op.Add(product, op.cast(bias, dtype)), dtype)


@lowers(aten.matmul, aten.mm, aten.bmm, aten.mv, aten.dot)
def matmul(op: Builder, a: Any, b: Any) -> oir.Value:
    dtype = wide(op.result.dtype)
    if _is_empty(a, b):
        return filled(op, 0)
    x, y = op.cast(a, dtype), op.cast(b, dtype)
    if b.type.rank == 1 and a.type.rank > 1 and is_symbolic(b.type.shape[0]):  # a column: see _is_empty
        return back(op, op.Squeeze(op.MatMul(x, op.Unsqueeze(y, [1])), [-1]), dtype)
    return back(op, op.MatMul(x, y), dtype)


def _is_empty(*operands: Any) -> bool:
    """Whether there is nothing to multiply: the product is 0, which runtimes leave unwritten for a vector."""
    return any(size == 0 for x in operands for size in x.type.shape)


@lowers(aten.addmm)
def addmm(op: Builder, bias: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> oir.Value:
    if op.result.dtype.is_floating_point:
        return op.Gemm(a, b, bias, alpha=float(alpha), beta=float(beta))
    return add_product(op, bias, a, b, beta, alpha)


@lowers(aten.baddbmm, aten.addmv)
def add_product(op: Builder, bias: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> oir.Value:
    dtype = wide(op.result.dtype)
    product = op.MatMul(op.cast(a, dtype), op.cast(b, dtype))
    if alpha != 1:
        product = op.Mul(product, op.cast(alpha, dtype))
    if beta != 0:  # else even NaN in the bias is ignored
        shift = op.cast(bias, dtype)
        product = op.Add(product, shift if beta == 1 else op.Mul(shift, op.cast(beta, dtype)))
    return back(op, product, dtype)


@lowers(aten.addbmm)
def addbmm(op: Builder, bias: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> oir.Value:
    dtype = wide(op.result.dtype)
    products = op.MatMul(op.cast(a, dtype), op.cast(b, dtype))
    if dtype.is_floating_point:
        total = op.ReduceSum(products, [0], keepdims=0)
    else:
        total = fold(op, "add", products, dtype, [a.type.shape[0], *op.result.shape], [0], keepdim=False)
    total = op.Mul(total, op.cast(alpha, dtype))
    if beta != 0:
        total = op.Add(total, op.Mul(op.cast(bias, dtype), op.cast(beta, dtype)))
    return back(op, total, dtype)


@lowers(aten.outer, aten.ger)
def outer(op: Builder, a: Any, b: Any) -> oir.Value:
    dtype = op.result.dtype
    return op.Mul(op.Unsqueeze(op.cast(a, dtype), [1]), op.Unsqueeze(op.cast(b, dtype), [0]))


@lowers(aten.einsum)
def einsum(op: Builder, equation: str, tensors: list[Any], _path: Any = None) -> oir.Value:
    dtype = single(op.result.dtype)
    if all(isinstance(t, Value) for t in tensors) and _is_empty(*tensors):
        return filled(op, 0)
    return back(op, op.Einsum(*(op.cast(t, dtype) for t in tensors), equation=equation), dtype)


@lowers(aten.bilinear)
def bilinear(op: Builder, a: Any, b: Any, weight: Any, bias: Any = None) -> oir.Value:
    product = einsum(op, "...i,oij,...j->...o", [a, weight, b])
    return product if bias is None else op.Add(product, bias)
