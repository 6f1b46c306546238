"""Arithmetic, comparison and logic of two operands: both are cast to the type that torch computes in."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as oir
import torch

from capture.ir.graph import Value
from capture.ir.types import TensorType
from codegen.onnx.builder import Builder
from codegen.onnx.table import lowers

aten = torch.ops.aten


def result_dtype(op: Builder) -> torch.dtype:
    return op.result.dtype


def compare_dtype(a: Any, b: Any) -> torch.dtype:
    """The type in which torch compares two operands (tensors, tensors of shape [], numbers)."""
    return torch.result_type(_stand_in(a), _stand_in(b))


def _stand_in(operand: Any) -> Any:
    """Something of the operand's dtype and kind for torch's promotion rules."""
    if not isinstance(operand, Value):
        return operand if isinstance(operand, (bool, int, float)) else 1
    if isinstance(operand.type, TensorType):
        return torch.empty([0] * operand.type.rank, dtype=operand.type.dtype, device="meta")
    return {"bool": True, "int": 1, "float": 1.0}[operand.type.kind]


def wide(dtype: torch.dtype) -> torch.dtype:
    """A type that ONNX computes in, for narrow integers; overflow wraps when the result is cast back."""
    return torch.int32 if dtype in (torch.int8, torch.uint8, torch.int16) else dtype


def single(dtype: torch.dtype) -> torch.dtype:
    """float32 for bfloat16, which some of ONNX's operators leave out."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def back(op: Builder, value: oir.Value, computed: torch.dtype) -> oir.Value:
    return value if computed == op.result.dtype else op.cast(value, op.result.dtype)


@lowers(aten.add, aten.sub, aten.rsub)
def add(op: Builder, a: Any, b: Any, alpha: Any = 1) -> oir.Value:
    name = op.node.op._schema.name.removeprefix("aten::")
    dtype = result_dtype(op)
    if dtype == torch.bool:  # torch adds booleans as "or", and subtracts none
        return op.Or(op.cast(a, dtype), op.cast(b, dtype))
    if name == "rsub":
        a, b = b, a
        if alpha != 1:
            return op.Sub(op.cast(a, dtype), op.Mul(op.cast(b, dtype), op.cast(alpha, dtype)))
    second = op.cast(b, dtype)
    if alpha != 1:
        second = op.Mul(second, op.cast(alpha, dtype))
    return op.call("Add" if name == "add" else "Sub", op.cast(a, dtype), second)


@lowers(aten.mul)
def mul(op: Builder, a: Any, b: Any) -> oir.Value:
    dtype = result_dtype(op)
    return op.call("And" if dtype == torch.bool else "Mul", op.cast(a, dtype), op.cast(b, dtype))


@lowers(aten.div, aten.true_divide, aten.divide)
def div(op: Builder, a: Any, b: Any, rounding_mode: str | None = None) -> oir.Value:
    if rounding_mode == "floor":
        return floor_divide(op, a, b)
    dtype = result_dtype(op)
    quotient = op.Div(op.cast(a, dtype), op.cast(b, dtype))
    if rounding_mode == "trunc" and dtype.is_floating_point:
        return truncate(op, quotient)
    return quotient  # ONNX's integer Div truncates


@lowers(aten.floor_divide)
def floor_divide(op: Builder, a: Any, b: Any) -> oir.Value:
    dtype = result_dtype(op)
    x, y = op.cast(a, dtype), op.cast(b, dtype)
    if dtype.is_floating_point:
        return _floored(op, x, y)
    quotient = op.Div(x, y)  # towards zero; one too large where the two remainders differ
    exact = op.Equal(op.Sub(x, op.Mul(quotient, y)), op.Mod(x, y))
    return op.Sub(quotient, op.cast(op.Not(exact), dtype))


def _floored(op: Builder, x: oir.Value, y: oir.Value) -> oir.Value:
    """The floored quotient as Python and torch have it: from what the remainder leaves, rounded.

    A quotient that rounds up to an integer is thus not taken for it; inf // 2 is NaN.
    """
    dtype = result_dtype(op)
    zero, one = op.cast(0.0, dtype), op.cast(1.0, dtype)
    rest = op.Mod(x, y, fmod=1)
    exact = op.Div(op.Sub(x, rest), y)
    differ = op.Xor(op.Less(rest, zero), op.Less(y, zero))
    exact = op.Where(op.And(op.Not(op.Equal(rest, zero)), differ), op.Sub(exact, one), exact)
    floor = op.Floor(exact)
    floor = op.Where(op.Greater(op.Sub(exact, floor), op.cast(0.5, dtype)), op.Add(floor, one), floor)
    return op.Where(op.Equal(y, zero), op.Div(x, y), floor)


def truncate(op: Builder, x: oir.Value) -> oir.Value:
    return op.Where(op.Less(x, op.cast(0, op.result.dtype)), op.Ceil(x), op.Floor(x))


@lowers(aten.remainder)
def remainder(op: Builder, a: Any, b: Any) -> oir.Value:
    """The remainder with the divisor's sign. ONNX has it for integers only."""
    dtype = result_dtype(op)
    x, y = op.cast(a, dtype), op.cast(b, dtype)
    if not dtype.is_floating_point:
        return op.Mod(x, y)
    zero = op.cast(0, dtype)
    rest = op.Mod(x, y, fmod=1)
    signs_differ = op.Xor(op.Less(rest, zero), op.Less(y, zero))
    wrong = op.And(op.Not(op.Equal(rest, zero)), signs_differ)
    return op.Where(wrong, op.Add(rest, y), rest)


@lowers(aten.fmod)
def fmod(op: Builder, a: Any, b: Any) -> oir.Value:
    """The remainder with the dividend's sign. Runtimes compute that in doubles: integers are divided."""
    dtype = result_dtype(op)
    x, y = op.cast(a, dtype), op.cast(b, dtype)
    return op.Mod(x, y, fmod=1) if dtype.is_floating_point else op.Sub(x, op.Mul(op.Div(x, y), y))


@lowers(aten.pow)
def power(op: Builder, a: Any, b: Any) -> oir.Value:
    dtype = wide(result_dtype(op))
    base = op.cast(a, dtype)
    if b == 2:
        made = op.Mul(base, base)
    elif b in (0.5, -0.5) and dtype != torch.float16:  # of -inf, other than the power
        made = op.Sqrt(base) if b > 0 else op.Reciprocal(op.Sqrt(base))
    elif dtype.is_floating_point:
        made = op.Pow(base, op.cast(b, dtype))
    elif isinstance(b, int):
        made = _integer_power(op, base, b)
    elif a == 2:
        factor, inside = _power_of_two(op, b, torch.iinfo(op.result.dtype).bits)
        made = op.Where(inside, factor, op.cast(0, dtype))
    else:
        raise op.unsupported("integers to the power of a tensor, which runtimes compute in doubles")
    return back(op, made, dtype)


def _integer_power(op: Builder, base: oir.Value, exponent: int) -> oir.Value:
    """By repeated squaring, which wraps on overflow as torch does."""
    made = None
    while exponent:
        if exponent & 1:
            made = base if made is None else op.Mul(made, base)
        exponent >>= 1
        base = op.Mul(base, base) if exponent else base
    return op.Pow(base, op.cast(0, wide(result_dtype(op)))) if made is None else made


@lowers(aten.maximum, aten.max.other)
def maximum(op: Builder, a: Any, b: Any) -> oir.Value:
    return _extreme(op, "Max", "Or", a, b)


@lowers(aten.minimum, aten.min.other)
def minimum(op: Builder, a: Any, b: Any) -> oir.Value:
    return _extreme(op, "Min", "And", a, b)


def _extreme(op: Builder, name: str, of_booleans: str, a: Any, b: Any) -> oir.Value:
    dtype = wide(result_dtype(op))
    made = op.call(of_booleans if dtype == torch.bool else name, op.cast(a, dtype), op.cast(b, dtype))
    return back(op, made, dtype)


@lowers(aten.fmax, aten.fmin)
def float_extreme(op: Builder, a: Any, b: Any) -> oir.Value:
    """Beside NaN, the other operand."""
    dtype, larger = result_dtype(op), op.node.is_op(aten.fmax)
    made = maximum(op, a, b) if larger else minimum(op, a, b)
    if not dtype.is_floating_point:
        return made
    x, y = op.cast(a, dtype), op.cast(b, dtype)
    return op.Where(op.IsNaN(x), y, op.Where(op.IsNaN(y), x, made))


@lowers(aten.atan2)
def atan2(op: Builder, a: Any, b: Any) -> oir.Value:
    """The angle of (b, a): atan(a / |b|), mirrored on the left half-plane. The sign of a zero counts."""
    dtype = result_dtype(op)
    y, x = op.cast(a, dtype), op.cast(b, dtype)
    zero = op.cast(0.0, dtype)
    ratio = op.Div(y, op.Abs(x))
    ratio = op.Where(op.And(op.Equal(x, zero), op.Equal(y, zero)), y, ratio)
    ratio = op.Where(op.And(op.IsInf(x), op.IsInf(y)), op.Sign(y), ratio)
    angle = op.Atan(ratio)
    turn = op.Where(_negative(op, y), op.cast(-torch.pi, dtype), op.cast(torch.pi, dtype))
    return op.Where(_negative(op, x), op.Sub(turn, angle), angle)


def _negative(op: Builder, x: oir.Value) -> oir.Value:
    """Whether a float is below zero, or -0."""
    zero = op.cast(0.0, result_dtype(op))
    return op.Or(op.Less(x, zero), op.Less(op.Reciprocal(x), zero))


@lowers(aten.hypot)
def hypot(op: Builder, a: Any, b: Any) -> oir.Value:
    """The larger side times sqrt(1 + (smaller / larger)^2), which does not overflow; inf where one is."""
    dtype = result_dtype(op)
    x, y = op.Abs(op.cast(a, dtype)), op.Abs(op.cast(b, dtype))
    large, small, zero = op.Max(x, y), op.Min(x, y), op.cast(0.0, dtype)
    ratio = op.Where(op.Equal(large, zero), zero, op.Div(small, large))
    made = op.Mul(large, op.Sqrt(op.Add(op.Mul(ratio, ratio), op.cast(1.0, dtype))))
    return op.Where(op.Or(op.IsInf(x), op.IsInf(y)), op.cast(math.inf, dtype), made)


_COMPARISONS = {
    aten.eq: "Equal",
    aten.lt: "Less",
    aten.le: "LessOrEqual",
    aten.gt: "Greater",
    aten.ge: "GreaterOrEqual",
}


@lowers(*_COMPARISONS)
def compare(op: Builder, a: Any, b: Any) -> oir.Value:
    name = _COMPARISONS[op.node.op.overloadpacket]
    dtype = compare_dtype(a, b)
    if dtype == torch.bool and name != "Equal":  # ONNX orders numbers only
        dtype = torch.int32
    return op.call(name, op.cast(a, dtype), op.cast(b, dtype))


@lowers(aten.ne)
def not_equal(op: Builder, a: Any, b: Any) -> oir.Value:
    dtype = compare_dtype(a, b)
    return op.Not(op.Equal(op.cast(a, dtype), op.cast(b, dtype)))


_LOGICAL = {aten.logical_and: "And", aten.logical_or: "Or", aten.logical_xor: "Xor"}


@lowers(*_LOGICAL)
def logical(op: Builder, a: Any, b: Any) -> oir.Value:
    return op.call(_LOGICAL[op.node.op.overloadpacket], op.cast(a, torch.bool), op.cast(b, torch.bool))


_BITWISE = {aten.bitwise_and: "And", aten.bitwise_or: "Or", aten.bitwise_xor: "Xor"}


@lowers(*_BITWISE, aten.__and__, aten.__or__, aten.__xor__)
def bitwise(op: Builder, a: Any, b: Any) -> oir.Value:
    name = op.node.op._schema.name.removeprefix("aten::").strip("_").removeprefix("bitwise_").capitalize()
    dtype = result_dtype(op)
    return op.call(name if dtype == torch.bool else f"Bitwise{name}", op.cast(a, dtype), op.cast(b, dtype))


@lowers(aten.__lshift__, aten.bitwise_left_shift)
def shift_left(op: Builder, a: Any, b: Any) -> oir.Value:
    """By way of a product with a power of two: ONNX shifts unsigned integers only."""
    dtype = wide(result_dtype(op))
    factor, inside = _power_of_two(op, b, torch.iinfo(result_dtype(op)).bits)
    return back(op, op.Where(inside, op.Mul(op.cast(a, dtype), factor), op.cast(0, dtype)), dtype)


@lowers(aten.__rshift__, aten.bitwise_right_shift)
def shift_right(op: Builder, a: Any, b: Any) -> oir.Value:
    """By way of a floored quotient; past the last bit, only the sign is left."""
    dtype, limits = wide(result_dtype(op)), torch.iinfo(result_dtype(op))
    x, zero = op.cast(a, dtype), op.cast(0, dtype)
    factor, inside = _power_of_two(op, b, limits.bits - (1 if limits.min else 0))
    floored = op.Div(op.Sub(x, op.Mod(x, factor)), factor)
    return back(op, op.Where(inside, floored, op.Where(op.Less(x, zero), op.cast(-1, dtype), zero)), dtype)


def _power_of_two(op: Builder, exponent: Any, bits: int) -> tuple[oir.Value, oir.Value]:
    """2 to that power, and whether it is in [0, bits), outside of which torch shifts everything out."""
    dtype = wide(result_dtype(op))
    place = op.cast(exponent, torch.int64)
    inside = op.And(
        op.GreaterOrEqual(place, op.cast(0, torch.int64)), op.Less(place, op.cast(bits, torch.int64))
    )
    powers = op.const(torch.ones(bits, dtype=torch.int64) << torch.arange(bits), dtype)
    return op.Gather(powers, op.Where(inside, place, op.cast(0, torch.int64)), axis=0), inside


@lowers(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where(op: Builder, condition: Any, a: Any, b: Any) -> oir.Value:
    dtype = wide(result_dtype(op))
    return back(op, op.Where(op.cast(condition, torch.bool), op.cast(a, dtype), op.cast(b, dtype)), dtype)


@lowers(aten.masked_fill)
def masked_fill(op: Builder, x: Any, mask: Any, fill: Any) -> oir.Value:
    return where(op, mask, fill, x)


@lowers(aten.addcmul)
def addcmul(op: Builder, x: Any, a: Any, b: Any, value: Any = 1) -> oir.Value:
    return _add_scaled(op, x, "Mul", a, b, value)


@lowers(aten.addcdiv)
def addcdiv(op: Builder, x: Any, a: Any, b: Any, value: Any = 1) -> oir.Value:
    return _add_scaled(op, x, "Div", a, b, value)


def _add_scaled(op: Builder, x: Any, name: str, a: Any, b: Any, factor: Any) -> oir.Value:
    dtype = result_dtype(op)
    first = op.cast(a, dtype) if factor == 1 else op.Mul(op.cast(a, dtype), op.cast(factor, dtype))
    return op.Add(op.cast(x, dtype), op.call(name, first, op.cast(b, dtype)))


@lowers(aten.lerp)
def lerp(op: Builder, start: Any, end: Any, weight: Any) -> oir.Value:
    dtype = result_dtype(op)
    first = op.cast(start, dtype)
    return op.Add(first, op.Mul(op.cast(weight, dtype), op.Sub(op.cast(end, dtype), first)))
