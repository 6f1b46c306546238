"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as oir
import torch

from capture.ir import dims
from codegen.onnx.builder import Builder
from codegen.onnx.table import lowers

aten = torch.ops.aten


@lowers(aten.layer_norm)
def layer_norm(
    op: Builder, x: Any, shape: list[int], weight: Any, bias: Any, eps: float, _cudnn: Any
) -> oir.Value:
    return op.LayerNormalization(x, _scale(op, weight, shape), bias, axis=-len(shape), epsilon=float(eps))


@lowers(aten.native_layer_norm)
def native_layer_norm(op: Builder, x: Any, shape: list[int], weight: Any, bias: Any, eps: float) -> Any:
    scale = _scale(op, weight, shape)
    return op.LayerNormalization(x, scale, bias, axis=-len(shape), epsilon=float(eps), outputs=3)


@lowers(aten.rms_norm, aten._fused_rms_norm)
def rms_norm(op: Builder, x: Any, shape: list[int], weight: Any, eps: float | None) -> Any:
    """torch's default for eps is the machine epsilon of the type that it computes in."""
    dtype = op.result.dtype
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    eps = torch.finfo(computed).eps if eps is None else float(eps)
    if op.opset >= 23:
        return op.RMSNormalization(x, _scale(op, weight, shape), axis=-len(shape), epsilon=eps)
    value = op.cast(x, computed)
    mean = op.ReduceMean(op.Mul(value, value), list(range(-len(shape), 0)), keepdims=1)
    scaled = op.cast(op.Div(value, op.Sqrt(op.Add(mean, op.cast(eps, computed)))), dtype)
    return scaled if weight is None else op.Mul(scaled, weight)


def _scale(op: Builder, weight: Any, shape: list[int]) -> Any:
    """ONNX wants a scale always."""
    return _constant(op, 1, shape, op.result.dtype) if weight is None else weight


def _constant(op: Builder, number: float, shape: Sequence[dims.Dim], dtype: torch.dtype) -> oir.Value:
    """One number in every place; where a size is dynamic, filled in at run time."""
    sizes = [d for d in shape if isinstance(d, int)]
    if len(sizes) == len(shape):
        return op.const(torch.full(sizes, number), dtype)
    return op.ConstantOfShape(op.vector(shape), value=torch.tensor([number], dtype=dtype))


@lowers(
    aten._native_batch_norm_legit_no_training, aten.batch_norm, aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_functional, aten.native_batch_norm, aten._batch_norm_no_update,
)  # fmt: skip
def batch_norm(op: Builder, x: Any, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> oir.Value:
    """With the running statistics. Those of the batch belong to training."""
    named = {a.name: v for a, v in zip(op.node.op._schema.arguments[5:], rest, strict=False)}
    if named.get("training", False) or mean is None:
        raise op.unsupported("the model was captured in training mode; call model.eval() before capture")
    return _with_statistics(op, x, weight, bias, mean, var, named["eps"])


def _with_statistics(
    op: Builder, x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float
) -> oir.Value:
    scale, shift = _affine(op, weight, bias, mean.type.shape, mean.type.dtype)
    return op.BatchNormalization(x, scale, shift, mean, var, epsilon=float(eps))


def _affine(op: Builder, weight: Any, bias: Any, shape: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """ONNX wants both always."""
    scale = _constant(op, 1, shape, dtype) if weight is None else weight
    return scale, _constant(op, 0, shape, dtype) if bias is None else bias


@lowers(aten.group_norm)
def group_norm(
    op: Builder, x: Any, groups: int, weight: Any, bias: Any, eps: float, _cudnn: Any
) -> oir.Value:
    return _group_norm(op, x, groups, weight, bias, eps)


@lowers(aten.native_group_norm)
def native_group_norm(
    op: Builder, x: Any, weight: Any, bias: Any, _n: Any, _c: Any, _hw: Any, groups: int, eps: float
) -> oir.Value:
    return _group_norm(op, x, groups, weight, bias, eps)


def _group_norm(op: Builder, x: Any, groups: int, weight: Any, bias: Any, eps: float) -> oir.Value:
    """Instance norm over [N, groups, the rest], which every runtime has, then scale and shift by channel."""
    scale, shift = _affine(op, None, None, [groups], op.result.dtype)
    grouped = op.InstanceNormalization(op.Reshape(x, [0, groups, -1]), scale, shift, epsilon=float(eps))
    made = op.Reshape(grouped, op.Shape(x))
    return _by_channel(op, made, x.type.rank, weight, bias)


@lowers(aten.instance_norm)
def instance_norm(
    op: Builder,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    use_input_stats: bool,
    _m: Any,
    eps: float,
    _c: Any,
) -> oir.Value:
    if not use_input_stats:
        return _with_statistics(op, x, weight, bias, mean, var, eps)
    scale, shift = _affine(op, weight, bias, x.type.shape[1:2], op.result.dtype)
    return op.InstanceNormalization(x, scale, shift, epsilon=float(eps))


def _by_channel(op: Builder, x: oir.Value, rank: int, weight: Any, bias: Any) -> oir.Value:
    shape = [-1] + [1] * (rank - 2)
    if weight is not None:
        x = op.Mul(x, op.Reshape(weight, shape))
    if bias is not None:
        x = op.Add(x, op.Reshape(bias, shape))
    return x
