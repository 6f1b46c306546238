"""What `simplify` knows of values: small functions that look at one node and say what it amounts to.

A function returns `Same(value)` where the node's result is a value that is there already, `Call(op,
operands)` where another single call gives it, or None. It looks at the node and at what produces its
operands, never at its users. `joins` are the nodes before it that are not needed for this node any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from capture.ir import Node, TensorType, Value
from passes.queries import fixed_tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class Same:
    """The node's result is `value`."""

    value: Value
    reason: str
    joins: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Call:
    """The node's result is what `op` gives for `operands`."""

    op: Any
    operands: Sequence[Any]
    reason: str
    joins: tuple[Node, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


Rewrite = Callable[[Node], Same | Call | None]

IDENTITY = "changes nothing"
NEUTRAL = "arithmetic that changes nothing"
INVERSE = "undoes the operation before it"
REPEATED = "repeats the operation before it"
JOINED = "joined with the operation before it"


def source(node: Node) -> Value:
    """The first operand."""
    value: Value = node.operands[0]
    return value


def producer(value: Any) -> Node | None:
    return value.producer if isinstance(value, Value) else None


# -- what leaves its operand as it is ---------------------------------------------------------------------


def copy(node: Node) -> Same | None:
    """clone, detach, to the dtype it has: a value of the same type is the same value."""
    dense = node.kwargs.get("layout") in (None, torch.strided)
    return Same(source(node), IDENTITY) if dense and source(node).type == node.result.type else None


def same_shape(node: Node) -> Same | None:
    """reshape, expand, slice, squeeze, repeat to the shape that is there already."""
    x = source(node)
    return Same(x, IDENTITY) if x.tensor_type.same_value_as(node.result.type) else None


def single_piece(node: Node) -> Same | None:
    """split or chunk into one piece."""
    return same_shape(node) if len(node.results) == 1 else None


def inactive_dropout(node: Node) -> Same | None:
    if node.arg("train") is False:
        return Same(source(node), "dropout outside training")
    return Same(source(node), "dropout of nothing") if node.arg("p") == 0 else None


def pad_by_nothing(node: Node) -> Same | None:
    return Same(source(node), IDENTITY) if not any(node.arg("pad")) else None


def cat_of_few(node: Node) -> Same | Call | None:
    """Operands without elements add nothing to a cat; a cat of one is that one."""
    tensors, axis = node.arg("tensors"), node.arg("dim")
    if not isinstance(tensors, list) or len({v.type.dtype for v in tensors}) > 1:
        return None
    rank = node.result.tensor_type.rank
    kept = [v for v in tensors if v.type.rank == rank and v.type.shape[axis] != 0]
    if len(kept) == 1:
        return Same(kept[0], "joins one tensor alone")
    if not kept or len(kept) == len(tensors):
        return None
    return Call(aten.cat.default, [kept, axis], "joins tensors of which some are empty")


def number_in_tensor(op: Any, place: int) -> Rewrite:
    """A constant of no axes, in the dtype of the result, as the number that it is; `place` is its operand."""

    def rewrite(node: Node) -> Call | None:
        if len(node.operands) != 3 or node.kwargs:
            return None
        tensor = fixed_tensor(node.graph, node.operands[place])
        if tensor is None or tensor.dim() or tensor.dtype != node.result.tensor_type.dtype:
            return None
        if not tensor.dtype.is_floating_point or not keeps_dtype(node):
            return None
        operands = list(node.operands)
        operands[place] = tensor.item()
        return Call(op, operands, "a constant that is one number")

    return rewrite


def keeps_dtype(node: Node) -> bool:
    """Whether an operand has the result's dtype by itself: a number beside it leaves that as it is."""
    others = [v for v in node.operand_values if isinstance(v.type, TensorType) and v.type.rank]
    return any(v.tensor_type.dtype == node.result.tensor_type.dtype for v in others)


# -- arithmetic -------------------------------------------------------------------------------------------


def is_number(value: Any, wanted: float) -> bool:
    """A literal equal to `wanted`, with the same sign of zero."""
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and value == wanted and math.copysign(1, value) == math.copysign(1, wanted)


def is_float(value: Value) -> bool:
    return value.tensor_type.dtype.is_floating_point or value.tensor_type.dtype.is_complex


def neutral(node: Node, is_neutral: bool) -> Same | None:
    """The operand, where the number does nothing to it and no dtype is promoted."""
    x = node.operands[0]
    return Same(x, NEUTRAL) if is_neutral and isinstance(x, Value) and x.type == node.result.type else None


def add_zero(node: Node) -> Same | None:
    other = node.arg("other")
    # -0.0 + 0.0 is 0.0, but -0.0 + -0.0 is -0.0.
    zero = is_number(other, -0.0) or (is_number(other, 0) and not is_float(source(node)))
    return neutral(node, zero and node.arg("alpha") == 1)


def subtract_zero(node: Node) -> Same | None:
    return neutral(node, is_number(node.arg("other"), 0.0) and node.arg("alpha") == 1)


def times_one(node: Node) -> Same | None:
    return neutral(node, is_number(node.arg("other"), 1))


def divided_by_one(node: Node) -> Same | None:
    return neutral(node, is_number(node.arg("other"), 1))


def rounded_division_by_one(node: Node) -> Same | None:
    return neutral(node, is_number(node.arg("other"), 1) and not is_float(source(node)))


def power_of_one(node: Node) -> Same | None:
    return neutral(node, is_number(node.arg("exponent"), 1))


def divided_by_power_of_two(node: Node) -> Call | None:
    """x / 2^k is x * 2^-k to the last bit, subnormal results included; the product is the cheaper one."""
    x, other = node.operands[0], node.arg("other")
    if not isinstance(x, Value) or isinstance(other, bool) or not isinstance(other, (int, float)):
        return None
    dtype = x.tensor_type.dtype
    if not dtype.is_floating_point or abs(math.frexp(other)[0]) != 0.5:
        return None
    smallest = min(abs(other), 1 / abs(other))  # both must be normal numbers of the dtype
    if smallest < torch.finfo(dtype).smallest_normal or 1 / smallest > torch.finfo(dtype).max:
        return None
    return Call(aten.mul.Tensor, [x, 1 / other], "division by a power of two")


# -- what undoes or repeats the node before it ------------------------------------------------------------


def is_twice(node: Node) -> Node | None:
    """The producer of the first operand, where it is the same call but for that operand."""
    before = producer(node.operands[0])
    if before is None or before.op is not node.op:
        return None
    return before if (before.operands[1:], before.kwargs) == (node.operands[1:], node.kwargs) else None


def involution(node: Node) -> Same | None:
    """neg(neg(x)), flip(flip(x))."""
    before = is_twice(node)
    return Same(source(before), INVERSE, (before,)) if before is not None else None


def idempotent(node: Node) -> Same | None:
    """relu(relu(x))."""
    return Same(source(node), REPEATED) if is_twice(node) is not None else None


def cast_back(node: Node) -> Same | Call | None:
    """A cast after one that lost nothing: from the first dtype straight to the last."""
    before = producer(source(node))
    if before is None or before.op is not node.op or not (is_cast(node) and is_cast(before)):
        return None
    first, middle, last = (v.tensor_type.dtype for v in (source(before), source(node), node.result))
    if not holds(middle, first):
        return None
    if first == last:
        return Same(source(before), INVERSE, (before,))
    if not (first.is_floating_point and last.is_floating_point):
        return None
    return Call(node.op, [source(before), *node.operands[1:]], JOINED, (before,), node.kwargs)


def is_cast(node: Node) -> bool:
    """Whether the call changes the dtype and nothing else: no device, layout or memory format."""
    wanted = 1 if node.op is aten._to_copy.default else 2
    return len(node.operands) == wanted and set(node.kwargs) <= {"dtype"}


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every number of `narrow` is one of `wide`."""
    if wide.is_floating_point and narrow.is_floating_point:
        a, b = torch.finfo(wide), torch.finfo(narrow)
        return a.eps <= b.eps and a.max >= b.max and a.smallest_normal * a.eps <= b.smallest_normal * b.eps
    if any(d.is_floating_point or d.is_complex or d is torch.bool for d in (wide, narrow)):
        return False
    c, d = torch.iinfo(wide), torch.iinfo(narrow)
    return c.max >= d.max and c.min <= d.min
