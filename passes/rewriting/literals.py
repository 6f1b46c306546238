"""When a literal of a pattern and one of a graph say the same."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import sympy
import torch

from capture.ir import Constant, Graph, Node, Range, TensorType, dims
from capture.ir.dims import Dim
from passes.queries import fixed_tensor, packet_name

__all__ = [
    "frozen", "number_of", "same_literal", "same_number", "same_shape", "same_type", "similar_literal",
]  # fmt: skip

_AXES = ("dim", "dim0", "dim1", "start_dim", "end_dim", "axis")
_GROW = ("aten.unsqueeze", "aten.stack")  # their axis counts in the result


def number_of(graph: Graph, operand: Any) -> int | float | None:
    """The number that an operand is: a literal, or a constant of no dims, which acts as one."""
    if isinstance(operand, Constant):
        tensor = fixed_tensor(graph, operand)
        if tensor is None or tensor.dim() or tensor.is_complex() or tensor.dtype is torch.bool:
            return None
        number: int | float = tensor.item()
        return number
    return operand if isinstance(operand, (int, float)) and not isinstance(operand, bool) else None


def same_number(one: int | float, other: int | float) -> bool:
    """Equal, as 1 and 1.0 are; 0.0 and -0.0 are not, NaN and NaN are."""
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return one == other and math.copysign(1, one) == math.copysign(1, other)


def frozen(literal: Any) -> Hashable:
    """A key for a literal: equal for the same kind and value, floats by their bits, lists by their elements.

    Raises:
        TypeError: it has no hash.
    """
    if isinstance(literal, float):
        return float, literal.hex()
    if isinstance(literal, complex):
        return complex, frozen(literal.real), frozen(literal.imag)
    if isinstance(literal, (list, tuple)):
        return type(literal), tuple(map(frozen, literal))
    if isinstance(literal, dict):
        return dict, tuple((frozen(k), frozen(v)) for k, v in literal.items())
    hash(literal)
    return type(literal), literal


def similar_literal(graph: Graph, wanted: Any, given: Any) -> bool:
    """Whether the two may be the same once the sizes are known that the pattern may compute with."""
    if isinstance(wanted, str) and isinstance(given, str):
        return _same_text(wanted, given)
    return _kind(graph, wanted) == _kind(graph, given)


def _kind(graph: Graph, literal: Any) -> Any:
    if isinstance(literal, sympy.Expr) or number_of(graph, literal) is not None:
        return "number"
    if isinstance(literal, (list, tuple)):
        return "list"
    return type(literal)


def same_literal(graph: Graph, wanted: Any, given: Any, node: Node, argument: str) -> bool:
    """Equal in kind and value; 1 is 1.0, but not True; 0.0 is not -0.0; an axis counts from either end."""
    if isinstance(wanted, (list, tuple)) and isinstance(given, (list, tuple)):
        return len(wanted) == len(given) and all(
            same_literal(graph, a, b, node, argument) for a, b in zip(wanted, given, strict=True)
        )
    if isinstance(wanted, sympy.Expr) or isinstance(given, sympy.Expr):
        sizes = isinstance(wanted, (int, sympy.Expr)) and isinstance(given, (int, sympy.Expr))
        return sizes and same_size(wanted, given, graph.dims)
    number, expected = number_of(graph, given), number_of(graph, wanted)
    if number is not None and expected is not None:
        return same_number(expected, number) or (argument in _AXES and _same_axis(wanted, given, node))
    if isinstance(wanted, str) and isinstance(given, str):
        return _same_text(wanted, given)
    return type(wanted) is type(given) and bool(wanted == given)


def _same_text(one: str, other: str) -> bool:
    """Equal; equations of einsum whatever their letters are."""
    return one == other or ("->" in one and "->" in other and _equation(one) == _equation(other))


def _equation(text: str) -> str:
    """An equation with its letters renamed in the order in which they come."""
    names: dict[str, str] = {}
    return "".join(names.setdefault(c, chr(97 + len(names))) if c.isalpha() else c for c in text if c != " ")


def _same_axis(one: Any, other: Any, node: Node) -> bool:
    tensors = [v for v in node.operand_values if isinstance(v.type, TensorType)]
    if not tensors or not isinstance(one, int) or not isinstance(other, int):
        return False
    rank = tensors[0].tensor_type.rank + (packet_name(node.op) in _GROW)
    return rank > 0 and one % rank == other % rank


def same_size(one: Dim, other: Dim, ranges: Mapping[str, Range]) -> bool:
    return one == other or dims.equal(one, other, {n: (r.lower, r.upper) for n, r in ranges.items()})


def same_shape(one: TensorType, other: TensorType, ranges: Mapping[str, Range]) -> bool:
    """Whether two shapes are the same for all values of their sizes."""
    return one.rank == other.rank and all(
        same_size(a, b, ranges) for a, b in zip(one.shape, other.shape, strict=True)
    )


def same_type(one: Any, other: Any, ranges: Mapping[str, Range]) -> bool:
    """The same dtype, shape and device."""
    if not isinstance(one, TensorType) or not isinstance(other, TensorType):
        return False
    return (one.dtype, one.device) == (other.dtype, other.device) and same_shape(one, other, ranges)
