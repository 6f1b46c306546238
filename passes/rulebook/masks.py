"""What is known of an attention mask: that it is causal, and that no row of it is closed altogether.

Softmax over a row of -inf is NaN, where scaled_dot_product_attention gives zeros; over a row of one finite
number it is uniform. So which replacement is exact depends on whether such rows can occur.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from capture.ir import Graph, Node, TensorType, Value
from passes.queries import packet_name
from passes.rulebook.bounds import bounds
from passes.rulebook.common import constant, one_number

__all__ = ["LOW", "additive_triangle", "has_open_rows", "never_minus_infinity", "triangle"]

LOW = -1e4  # an additive mask at most this closes a place: no score makes up for it
_CASTS = ("aten._to_copy", "aten.to", "aten.clone", "aten.contiguous")
_VIEWS = ("aten.unsqueeze", "aten.expand", "aten.reshape", "aten.view", "aten.squeeze")
_NOT = ("aten.logical_not", "aten.bitwise_not")


def _producer(value: Any) -> Node | None:
    return value.producer if isinstance(value, Value) else None


def has_open_rows(graph: Graph, mask: Value, *, closed: bool) -> bool:
    """Whether each row of a boolean mask is known to have an open place; `closed` is what closes one."""
    if triangle(graph, mask) is not None:
        return triangle(graph, mask) is not closed
    tensor = constant(graph, mask)
    if tensor is None or not tensor.dim() or not tensor.numel():
        return False
    return not bool((tensor.bool() == closed).all(-1).any())


def never_minus_infinity(graph: Graph, mask: Value) -> bool:
    """Whether each row of an additive mask is known to have a place above -inf."""
    if additive_triangle(graph, mask) is not None:
        return True
    tensor = constant(graph, mask)
    if tensor is not None:
        return bool(tensor.dim() and tensor.numel()) and not bool((tensor == -torch.inf).all(-1).any())
    return bounds(graph, mask)[0] > -math.inf


# -- causal masks -----------------------------------------------------------------------------------------


def triangle(graph: Graph, value: Any) -> bool | None:
    """Whether a square mask is true exactly on and below the diagonal; False where it is false there, and
    true exactly above. None where that is not known.
    """
    if not isinstance(value, Value) or not _is_square(value):
        return None
    tensor = constant(graph, value)
    if tensor is not None:
        return _triangle_of(tensor)
    node = value.producer
    if node is None:
        return None
    name = packet_name(node.op)
    if name in _CASTS or (name in _VIEWS and _keeps_square(node)):
        return triangle(graph, node.operands[0])
    if name == "aten.slice" and _from_the_start(node):
        return triangle(graph, _unsliced(node))
    if name in _NOT or (name == "aten.eq" and node.operands[1] == 0):
        inner = triangle(graph, node.operands[0])
        return None if inner is None else not inner
    if name in ("aten.ne", "aten.gt") and node.operands[1] == 0:
        return triangle(graph, node.operands[0])
    if name == "aten.tril" and node.arg("diagonal") == 0:
        return True if one_number(graph, node.operands[0]) == 1 else None
    if name == "aten.triu" and node.arg("diagonal") == 1:
        return False if one_number(graph, node.operands[0]) == 1 else None
    return _compared(node) if name in _COMPARISONS else None


def additive_triangle(graph: Graph, value: Any) -> float | None:
    """What an additive mask has above the diagonal, where it has zeros on and below, and it closes places."""
    if not isinstance(value, Value) or not _is_square(value):
        return None
    found: float | None = None
    node = value.producer
    tensor = constant(graph, value)
    if tensor is not None:
        above = torch.ones_like(tensor, dtype=torch.bool).triu(1)
        lowest = float(tensor[above].max()) if bool(above.any()) else -torch.inf
        found = lowest if not bool(tensor[~above].any()) else None
    elif node is None:
        return None
    elif packet_name(node.op) in _VIEWS and _keeps_square(node):
        return additive_triangle(graph, node.operands[0])
    elif packet_name(node.op) == "aten.triu" and node.arg("diagonal") == 1:
        found = one_number(graph, node.operands[0])
    elif packet_name(node.op) == "aten.where":
        mask, yes, no = node.operands
        side = triangle(graph, mask)
        if side is not None and _number(graph, yes if side else no) == 0:
            found = _number(graph, no if side else yes)
    elif packet_name(node.op) == "aten.masked_fill":
        below, mask, fill = node.operands
        if triangle(graph, mask) is False and one_number(graph, below) == 0:
            found = _number(graph, fill)
    return found if found is not None and found <= LOW else None


def _number(graph: Graph, operand: Any) -> float | None:
    return float(operand) if isinstance(operand, (int, float)) else one_number(graph, operand)


def _is_square(value: Value) -> bool:
    type_ = value.type
    return isinstance(type_, TensorType) and type_.rank >= 2 and type_.shape[-1] == type_.shape[-2]


def _triangle_of(tensor: torch.Tensor) -> bool | None:
    if not tensor.numel():
        return None
    truth = tensor != 0
    below = torch.ones_like(truth).tril()
    if torch.equal(truth, below):
        return True
    return False if torch.equal(truth, ~below) else None


def _keeps_square(node: Node) -> bool:
    """Whether a view has the last two axes of its operand, and repeats or adds others in front only."""
    before, after = node.operands[0].type, node.result.tensor_type
    return before.rank >= 2 and before.shape[-2:] == after.shape[-2:]


def _from_the_start(node: Node) -> bool:
    return node.arg("start") in (None, 0) and node.arg("step") == 1


def _unsliced(node: Node) -> Value:
    """What a chain of slices from the start on was given: a square's part that is square is its corner."""
    value: Value = node.operands[0]
    while (inner := _producer(value)) is not None and packet_name(inner.op) == "aten.slice":
        if not _from_the_start(inner):
            break
        value = inner.operands[0]
    return value


_COMPARISONS = {"aten.ge": "ge", "aten.le": "le", "aten.gt": "gt", "aten.lt": "lt"}


def _compared(node: Node) -> bool | None:
    """A column of positions against a row of them: row <= column is the lower triangle."""
    one, other = node.operands[:2]
    axes = _positions(one), _positions(other)
    if set(axes) != {"row", "column"}:
        return None
    name = _COMPARISONS[packet_name(node.op)]
    if axes == ("row", "column"):
        return {"le": True, "gt": False}.get(name)
    return {"ge": True, "lt": False}.get(name)


def _positions(value: Any) -> str | None:
    """Whether a value is 0, 1, 2, ... along its last axis ("row") or the one before ("column")."""
    if not isinstance(value, Value) or not isinstance(value.type, TensorType):
        return None
    shape, node = value.type.shape, value.producer
    while node is not None and packet_name(node.op) in ("aten.unsqueeze", "aten.reshape", "aten.view"):
        node = _producer(node.operands[0])
    if node is None or packet_name(node.op) != "aten.arange":
        return None
    if "start" in {a.name for a in node.op._schema.arguments} and node.arg("start") != 0:
        return None
    length = node.result.tensor_type.shape
    if len(length) != 1 or any(size not in (1, length[0]) for size in shape):
        return None
    if shape[-1] == length[0] and all(size == 1 for size in shape[:-1]):
        return "row"
    if len(shape) >= 2 and shape[-2] == length[0] and all(s == 1 for s in (*shape[:-2], shape[-1])):
        return "column"
    return None
