"""Activation functions."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as oir
import torch

from codegen.onnx.builder import Builder
from codegen.onnx.lowerings.arithmetic import back, wide
from codegen.onnx.table import lowers

aten = torch.ops.aten


@lowers(aten.relu)
def relu(op: Builder, x: Any) -> oir.Value:
    dtype = op.result.dtype
    if dtype.is_floating_point:
        return op.Relu(x)
    return back(op, op.Max(op.cast(x, wide(dtype)), op.cast(0, wide(dtype))), wide(dtype))


@lowers(aten.relu6)
def relu6(op: Builder, x: Any) -> oir.Value:
    return hardtanh(op, x, 0.0, 6.0)


@lowers(aten.hardtanh)
def hardtanh(op: Builder, x: Any, low: float, high: float) -> oir.Value:
    return op.Clip(x, op.cast(low, op.result.dtype), op.cast(high, op.result.dtype))


@lowers(aten.gelu)
def gelu(op: Builder, x: Any, approximate: str = "none") -> oir.Value:
    """In doubles, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): runtimes round its constants."""
    if approximate == "tanh" and op.result.dtype == torch.float64:
        half, one, linear, cubic = (
            op.cast(v, torch.float64) for v in (0.5, 1.0, math.sqrt(2 / math.pi), 0.044715)
        )
        inner = op.Mul(linear, op.Add(x, op.Mul(cubic, op.Mul(x, op.Mul(x, x)))))
        return op.Mul(op.Mul(half, x), op.Add(one, op.Tanh(inner)))
    return op.Gelu(x, approximate=approximate)


@lowers(aten.silu)
def silu(op: Builder, x: Any) -> oir.Value:
    return op.Mul(x, op.Sigmoid(x))


@lowers(aten.mish)
def mish(op: Builder, x: Any) -> oir.Value:
    return op.Mish(x)


@lowers(aten.hardswish)
def hardswish(op: Builder, x: Any) -> oir.Value:
    return op.HardSwish(x)


@lowers(aten.hardsigmoid)
def hardsigmoid(op: Builder, x: Any) -> oir.Value:
    return op.HardSigmoid(x, alpha=1 / 6, beta=0.5)


@lowers(aten.leaky_relu)
def leaky_relu(op: Builder, x: Any, slope: float) -> oir.Value:
    return op.LeakyRelu(x, alpha=float(slope))


@lowers(aten.rrelu)
def rrelu(op: Builder, x: Any, lower: float, upper: float, training: bool, _generator: Any) -> oir.Value:
    if training:
        raise op.unsupported("the model was captured in training mode; call model.eval() before capture")
    return op.LeakyRelu(x, alpha=(lower + upper) / 2)


@lowers(aten.prelu)
def prelu(op: Builder, x: Any, weight: Any) -> oir.Value:
    """One slope, or one for each channel of dimension 1."""
    trailing = x.type.rank - 2
    if weight.type.numel != 1 and trailing > 0:
        return op.PRelu(x, op.Reshape(weight, [-1] + [1] * trailing))
    return op.PRelu(x, weight)


@lowers(aten.elu)
def elu(op: Builder, x: Any, alpha: float, scale: float, input_scale: float) -> oir.Value:
    if input_scale != 1:
        raise op.unsupported("ELU with an input scale")
    made = op.Elu(x, alpha=float(alpha))
    return made if scale == 1 else op.Mul(made, op.cast(scale, op.result.dtype))


@lowers(aten.selu)
def selu(op: Builder, x: Any) -> oir.Value:
    return op.Selu(x)


@lowers(aten.celu)
def celu(op: Builder, x: Any, alpha: float) -> oir.Value:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1)), which is ELU of x / alpha, times alpha below 0."""
    factor = op.cast(alpha, op.result.dtype)
    return op.Mul(op.Elu(op.Div(x, factor), alpha=1.0), factor)


@lowers(aten.softplus)
def softplus(op: Builder, x: Any, beta: float, threshold: float) -> oir.Value:
    dtype = op.result.dtype
    scaled = op.value(x) if beta == 1 else op.Mul(x, op.cast(beta, dtype))
    soft = op.Softplus(scaled)
    soft = soft if beta == 1 else op.Div(soft, op.cast(beta, dtype))
    return op.Where(op.Greater(scaled, op.cast(threshold, dtype)), x, soft)


@lowers(aten.log_sigmoid)
def log_sigmoid(op: Builder, x: Any) -> oir.Value:
    return op.Neg(op.Softplus(op.Neg(x)))


@lowers(aten.softshrink)
def softshrink(op: Builder, x: Any, lambd: float) -> oir.Value:
    """What a clamp to [-lambd, lambd] takes away. NaN stays, which it does not in ONNX's Shrink."""
    return op.Sub(x, hardtanh(op, x, -lambd, lambd))


@lowers(aten.hardshrink)
def hardshrink(op: Builder, x: Any, lambd: float) -> oir.Value:
    dtype = op.result.dtype
    return op.Where(op.LessOrEqual(op.Abs(x), op.cast(lambd, dtype)), op.cast(0, dtype), x)


@lowers(aten.threshold)
def threshold(op: Builder, x: Any, bound: Any, value: Any) -> oir.Value:
    dtype = op.result.dtype
    return op.Where(op.LessOrEqual(x, op.cast(bound, dtype)), op.cast(value, dtype), x)


@lowers(aten.glu)
def glu(op: Builder, x: Any, dim: int) -> oir.Value:
    value, gate = op.Split(x, axis=dim, num_outputs=2, outputs=2)
    return op.Mul(value, op.Sigmoid(gate))


@lowers(aten.softmax.int, aten._softmax)
def softmax(op: Builder, x: Any, dim: int, *_: Any) -> oir.Value:
    return _softmax(op, "Softmax", x, dim)


@lowers(aten._safe_softmax)
def safe_softmax(op: Builder, x: Any, dim: int, *_: Any) -> oir.Value:
    """Nothing but -inf gives 0, where softmax gives NaN."""
    hidden = op.Equal(op.ReduceMax(x, [dim], keepdims=1), op.cast(-math.inf, x.type.dtype))
    return op.Where(hidden, op.cast(0.0, op.result.dtype), _softmax(op, "Softmax", x, dim))


@lowers(aten.log_softmax.int, aten._log_softmax)
def log_softmax(op: Builder, x: Any, dim: int, *_: Any) -> oir.Value:
    if op.result.dtype != torch.float64 or not x.type.rank:
        return _softmax(op, "LogSoftmax", x, dim)
    value = op.cast(x, op.result.dtype)  # runtimes lose NaN in doubles
    below = op.Sub(value, op.ReduceMax(value, [dim], keepdims=1))
    return op.Sub(below, op.Log(op.ReduceSum(op.Exp(below), [dim], keepdims=1)))


def _softmax(op: Builder, name: str, x: Any, dim: int) -> oir.Value:
    value = op.cast(x, op.result.dtype)
    if x.type.rank:
        return op.call(name, value, axis=dim)
    return op.Squeeze(op.call(name, op.Unsqueeze(value, [0]), axis=0))
