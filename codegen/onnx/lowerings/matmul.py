"""Matrix products: linear, matmul and their kin, einsum."""

from __future__ import annotations

from typing import Any

import onnx_ir as oir
import torch

from codegen.onnx.builder import Builder
from codegen.onnx.lowerings.arithmetic import back, single, wide
from codegen.onnx.table import lowers

aten = torch.ops.aten


@lowers(aten.linear)
def linear(op: Builder, x: Any, weight: Any, bias: Any) -> oir.Value:
    """Gemm for a matrix. Else the graph transposes the weight, which keeps its name; runtimes fold that."""
    if x.type.rank == 2 and weight.type.rank == 2:
        return op.Gemm(x, weight, bias, transB=1)
    transposed = op.Transpose(weight, perm=[1, 0]) if weight.type.rank == 2 else weight
    product = op.MatMul(x, transposed)
    return product if bias is None else op.Add(product, bias)


@lowers(aten.matmul, aten.mm, aten.bmm, aten.mv, aten.dot)
def matmul(op: Builder, a: Any, b: Any) -> oir.Value:
    dtype = wide(op.result.dtype)
    return back(op, op.MatMul(op.cast(a, dtype), op.cast(b, dtype)), dtype)


@lowers(aten.addmm)
def addmm(op: Builder, bias: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> oir.Value:
    if op.result.dtype.is_floating_point:
        return op.Gemm(a, b, bias, alpha=float(alpha), beta=float(beta))
    return add_product(op, bias, a, b, beta, alpha)


@lowers(aten.baddbmm, aten.addmv)
def add_product(op: Builder, bias: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> oir.Value:
    product = op.MatMul(a, b)
    if alpha != 1:
        product = op.Mul(product, op.cast(alpha, op.result.dtype))
    if beta == 0:  # even NaN in the bias is ignored then
        return product
    return op.Add(product, bias if beta == 1 else op.Mul(bias, op.cast(beta, op.result.dtype)))


@lowers(aten.addbmm)
def addbmm(op: Builder, bias: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> oir.Value:
    dtype = op.result.dtype
    total = op.Mul(op.ReduceSum(op.MatMul(a, b), [0], keepdims=0), op.cast(alpha, dtype))
    return total if beta == 0 else op.Add(total, op.Mul(bias, op.cast(beta, dtype)))


@lowers(aten.outer, aten.ger)
def outer(op: Builder, a: Any, b: Any) -> oir.Value:
    dtype = op.result.dtype
    return op.Mul(op.Unsqueeze(op.cast(a, dtype), [1]), op.Unsqueeze(op.cast(b, dtype), [0]))


@lowers(aten.einsum)
def einsum(op: Builder, equation: str, tensors: list[Any], _path: Any = None) -> oir.Value:
    dtype = single(op.result.dtype)
    return back(op, op.Einsum(*(op.cast(t, dtype) for t in tensors), equation=equation), dtype)


@lowers(aten.bilinear)
def bilinear(op: Builder, a: Any, b: Any, weight: Any, bias: Any = None) -> oir.Value:
    product = einsum(op, "...i,oij,...j->...o", [a, weight, b])
    return product if bias is None else op.Add(product, bias)
