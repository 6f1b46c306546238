"""Mathematical functions of one operand, casts, clamps."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as oir
import torch

from codegen.onnx.builder import Builder
from codegen.onnx.lowerings.arithmetic import back, truncate, wide
from codegen.onnx.table import lowers

aten = torch.ops.aten

_FUNCTIONS = {
    aten.abs: "Abs",
    aten.exp: "Exp", aten.log: "Log", aten.sqrt: "Sqrt", aten.reciprocal: "Reciprocal", aten.erf: "Erf",
    aten.sin: "Sin", aten.cos: "Cos", aten.tan: "Tan", aten.asin: "Asin", aten.acos: "Acos",
    aten.atan: "Atan", aten.sinh: "Sinh", aten.cosh: "Cosh", aten.asinh: "Asinh", aten.acosh: "Acosh",
    aten.atanh: "Atanh",
    aten.sigmoid: "Sigmoid", aten.tanh: "Tanh",
}  # fmt: skip


@lowers(*_FUNCTIONS)
def function(op: Builder, x: Any) -> oir.Value:
    return op.call(_FUNCTIONS[op.node.op.overloadpacket], op.cast(x, op.result.dtype))


_ROUNDINGS = {aten.floor: "Floor", aten.ceil: "Ceil", aten.round.default: "Round"}


@lowers(*_ROUNDINGS)
def rounding(op: Builder, x: Any) -> Any:
    if not op.result.dtype.is_floating_point:
        return x
    packet = op.node.op.overloadpacket
    return op.call(_ROUNDINGS[packet if packet in _ROUNDINGS else op.node.op], x)


@lowers(aten.round.decimals)
def round_decimals(op: Builder, x: Any, decimals: int = 0) -> Any:
    dtype = op.result.dtype
    if not dtype.is_floating_point:
        return x
    scale = op.cast(10.0 ** abs(decimals), dtype)
    there, return_ = (op.Mul, op.Div) if decimals >= 0 else (op.Div, op.Mul)
    return return_(op.Round(there(x, scale)), scale)


@lowers(aten.sign, aten.sgn)
def sign(op: Builder, x: Any) -> oir.Value:
    """torch's sign of NaN is 0."""
    made = op.Sign(x)
    dtype = op.result.dtype
    return op.Where(op.IsNaN(x), op.cast(0.0, dtype), made) if dtype.is_floating_point else made


@lowers(aten.trunc, aten.fix)
def trunc(op: Builder, x: Any) -> Any:
    return truncate(op, op.value(x)) if op.result.dtype.is_floating_point else x


@lowers(aten.frac)
def frac(op: Builder, x: Any) -> oir.Value:
    return op.Sub(x, truncate(op, op.value(x)))


@lowers(aten.neg)
def neg(op: Builder, x: Any) -> oir.Value:
    dtype = wide(op.result.dtype)
    return back(op, op.Neg(op.cast(x, dtype)), dtype)


@lowers(aten.rsqrt)
def rsqrt(op: Builder, x: Any) -> oir.Value:
    return op.Reciprocal(op.Sqrt(op.cast(x, op.result.dtype)))


@lowers(aten.square)
def square(op: Builder, x: Any) -> oir.Value:
    return op.Mul(x, x)


@lowers(aten.log2)
def log2(op: Builder, x: Any) -> oir.Value:
    return op.Mul(op.Log(op.cast(x, op.result.dtype)), op.cast(1 / math.log(2), op.result.dtype))


@lowers(aten.log10)
def log10(op: Builder, x: Any) -> oir.Value:
    return op.Mul(op.Log(op.cast(x, op.result.dtype)), op.cast(1 / math.log(10), op.result.dtype))


@lowers(aten.exp2)
def exp2(op: Builder, x: Any) -> oir.Value:
    return op.Pow(op.cast(2.0, op.result.dtype), op.cast(x, op.result.dtype))


@lowers(aten.expm1)
def expm1(op: Builder, x: Any) -> oir.Value:
    """exp(x) - 1 as tanh(x/2) (exp(x) + 1) near 0, where the difference would lose its digits."""
    dtype = op.result.dtype
    value, one = op.cast(x, dtype), op.cast(1.0, dtype)
    exp = op.Exp(value)
    near = op.Mul(op.Tanh(op.Mul(value, op.cast(0.5, dtype))), op.Add(exp, one))
    return op.Where(op.Less(op.Abs(value), one), near, op.Sub(exp, one))


@lowers(aten.log1p)
def log1p(op: Builder, x: Any) -> oir.Value:
    """log(u) x / (u - 1) with u = 1 + x near 0, which undoes the rounding of u (Goldberg 1991, theorem 4)."""
    dtype = op.result.dtype
    value, one = op.cast(x, dtype), op.cast(1.0, dtype)
    u = op.Add(value, one)
    log = op.Log(u)
    corrected = op.Mul(log, op.Div(value, op.Sub(u, one)))
    corrected = op.Where(op.Equal(u, one), value, corrected)
    return op.Where(op.Less(op.Abs(value), one), corrected, log)


@lowers(aten.erfc)
def erfc(op: Builder, x: Any) -> oir.Value:
    return op.Sub(op.cast(1.0, op.result.dtype), op.Erf(op.cast(x, op.result.dtype)))


@lowers(aten.isnan)
def isnan(op: Builder, x: Any) -> oir.Value:
    return op.IsNaN(_floating(op, x))


@lowers(aten.isinf)
def isinf(op: Builder, x: Any) -> oir.Value:
    return op.IsInf(_floating(op, x))


@lowers(aten.isfinite)
def isfinite(op: Builder, x: Any) -> oir.Value:
    value = _floating(op, x)
    return op.Not(op.Or(op.IsNaN(value), op.IsInf(value)))


def _floating(op: Builder, x: Any) -> oir.Value:
    dtype = x.type.dtype
    return op.cast(x, dtype if dtype.is_floating_point else torch.float32)


@lowers(aten.nan_to_num)
def nan_to_num(op: Builder, x: Any, nan: Any, posinf: Any, neginf: Any) -> Any:
    dtype = op.result.dtype
    if not dtype.is_floating_point:
        return x
    limits = torch.finfo(dtype)
    value = op.Where(op.IsNaN(x), op.cast(0.0 if nan is None else nan, dtype), x)
    high = op.cast(limits.max if posinf is None else posinf, dtype)
    low = op.cast(limits.min if neginf is None else neginf, dtype)
    value = op.Where(op.IsInf(x, detect_negative=0), high, value)
    return op.Where(op.IsInf(x, detect_positive=0), low, value)


@lowers(aten.logical_not)
def logical_not(op: Builder, x: Any) -> oir.Value:
    return op.Not(op.cast(x, torch.bool))


@lowers(aten.bitwise_not)
def bitwise_not(op: Builder, x: Any) -> oir.Value:
    return op.Not(x) if op.result.dtype == torch.bool else op.BitwiseNot(x)


@lowers(aten.clamp, aten.clip, aten.clamp_min, aten.clamp_max)
def clamp(op: Builder, x: Any, first: Any = None, second: Any = None) -> oir.Value:
    """torch lets the upper bound win where the two cross; bounds may be tensors."""
    low, high = (None, first) if op.node.op.overloadpacket is aten.clamp_max else (first, second)
    dtype = wide(op.result.dtype)
    made = op.cast(x, dtype)
    if low is not None:
        made = op.Max(made, op.cast(low, dtype))
    if high is not None:
        made = op.Min(made, op.cast(high, dtype))
    return back(op, made, dtype)


@lowers(aten._to_copy, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as)
def to_copy(op: Builder, x: Any, *_: Any, **__: Any) -> Any:
    return op.cast(x, op.result.dtype) if x.type.dtype != op.result.dtype else x


@lowers(
    aten.clone, aten.contiguous, aten.detach, aten.alias, aten.positive,
    aten.lift_fresh, aten.lift_fresh_copy,
    aten.detach_copy, aten.alias_copy, aten.resolve_conj, aten.resolve_neg,
)  # fmt: skip
def same(op: Builder, x: Any, *_: Any, **__: Any) -> Any:
    return x


@lowers(aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.native_dropout)
def dropout(op: Builder, x: Any, probability: float, train: bool | None) -> Any:
    if train and probability > 0:
        raise op.unsupported("the model was captured in training mode; call model.eval() before capture")
    mask = op.Equal(x, x) if len(op.results) == 2 else None
    return x if mask is None else [op.value(x), mask]
