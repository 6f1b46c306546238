"""Between which numbers a value lies, as far as the graph tells: interval arithmetic from its constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from capture.ir import Graph, Node, TensorType, Value
from passes.queries import fixed_tensor, packet_name
from passes.rulebook.common import one_number

__all__ = ["bounds"]

Interval = tuple[float, float]
ANYTHING = (-math.inf, math.inf)
_DEEPEST = 16  # nodes looked through


def bounds(graph: Graph, operand: Any, depth: int = _DEEPEST) -> Interval:
    """The least and the greatest number that an operand may hold, after rounding to its dtype."""
    if isinstance(operand, (int, float)):
        return float(operand), float(operand)
    if not isinstance(operand, Value) or not isinstance(operand.type, TensorType) or not depth:
        return ANYTHING
    dtype = operand.type.dtype
    tensor = fixed_tensor(graph, operand)
    if tensor is not None and tensor.numel() and not dtype.is_complex:
        low, high = float(tensor.min()), float(tensor.max())
        return ANYTHING if math.isnan(low) else (low, high)
    number = one_number(graph, operand)
    if number is not None:
        return number, number
    known = _of_dtype(dtype)
    if operand.producer is not None:
        known = _computed(graph, operand.producer, depth) or known
    return _rounded(known, dtype)


def _computed(graph: Graph, node: Node, depth: int) -> Interval | None:
    name, operands = packet_name(node.op), node.operands
    if name in _SAME_NUMBERS:
        return bounds(graph, operands[0], depth - 1)
    if name in _ONE_OF:
        first, second = (bounds(graph, operands[i], depth - 1) for i in _ONE_OF[name])
        return min(first[0], second[0]), max(first[1], second[1])
    scaled = any(a.name == "alpha" for a in node.op._schema.arguments) and node.arg("alpha") != 1
    if name in _ARITHMETIC and not scaled:
        return _ARITHMETIC[name](*(bounds(graph, v, depth - 1) for v in operands[:2]))
    return None


def _of_dtype(dtype: torch.dtype) -> Interval:
    if dtype is torch.bool:
        return 0.0, 1.0
    if dtype.is_floating_point or dtype.is_complex:
        return ANYTHING
    return float(torch.iinfo(dtype).min), float(torch.iinfo(dtype).max)


def _rounded(known: Interval, dtype: torch.dtype) -> Interval:
    """Beyond the largest number of the dtype by less than half a step is that number, further is infinity."""
    if not dtype.is_floating_point:
        return known
    info = torch.finfo(dtype)
    low, high = known
    if low < info.min:
        low = info.min if low > info.min * (1 + info.eps / 4) else -math.inf
    if high > info.max:
        high = info.max if high < info.max * (1 + info.eps / 4) else math.inf
    return low, high


def _sum(a: Interval, b: Interval) -> Interval:
    return _whole([a[0] + b[0], a[1] + b[1]])


def _difference(a: Interval, b: Interval) -> Interval:
    return _whole([a[0] - b[1], a[1] - b[0]])


def _product(a: Interval, b: Interval) -> Interval:
    return _whole([x * y for x in a for y in b])


def _whole(ends: Sequence[float]) -> Interval:
    return ANYTHING if any(map(math.isnan, ends)) else (min(ends), max(ends))


_SAME_NUMBERS = frozenset(
    f"aten.{name}"
    for name in """_to_copy to clone contiguous unsqueeze squeeze expand reshape view slice select permute
    transpose embedding""".split()
)
_ONE_OF = {"aten.where": (1, 2), "aten.masked_fill": (0, 2)}
_ARITHMETIC: dict[str, Callable[[Interval, Interval], Interval]] = {
    "aten.add": _sum,
    "aten.sub": _difference,
    "aten.rsub": lambda a, b: _difference(b, a),
    "aten.mul": _product,
}
