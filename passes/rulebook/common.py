"""What the built-in rules share: to register several spellings of one operator, to ask what a value is."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from capture.ir import Graph, TensorType, Value
from passes.queries import fixed_tensor, packet_name
from passes.rewriting import Match, register_rule

__all__ = [
    "BUILT_IN",
    "SCALAR",
    "Guard",
    "X",
    "constant",
    "number_close_to",
    "one_number",
    "spelled",
    "where",
]

X = torch.empty(2, 2)  # any tensor
SCALAR = 0.5  # any number

Guard = Callable[[Match], Any]
BUILT_IN: dict[str, dict[str, list[str]]] = {}  # by module, by what is put back: names of the rules
_FILLED = {"aten.zeros": 0.0, "aten.zeros_like": 0.0, "aten.ones": 1.0, "aten.ones_like": 1.0}


def spelled(
    name: str,
    patterns: Sequence[Callable[..., Any]],
    replacement: Callable[..., Any],
    example_args: Sequence[Any],
    *,
    anchors: Sequence[Any],
    guard: Guard | None = None,
    excused: Mapping[str, str] | None = None,
) -> None:
    """Register a rule for each spelling: `name.1`, `name.2` and so on.

    Args:
        anchors: the operators that each of the spellings has.
        excused: kinds of numbers for which operator and formula may differ, and why.
    """
    module = sys._getframe(1).f_globals["__name__"]
    for pattern in patterns:
        known = BUILT_IN.setdefault(module, {}).setdefault(name, [])
        known.append(f"{name}.{len(known) + 1}")
        register_rule(
            known[-1], pattern, replacement, example_args, guard=guard, anchors=anchors, excused=excused
        )


def where(*guards: Guard) -> Guard:
    """The guard that asks all of these, and gives the first reason against."""

    def guard(match: Match) -> Any:
        for one in guards:
            answer = one(match)
            if not (answer[0] if isinstance(answer, tuple) else answer):
                return answer
        return True

    return guard


def dtype_of(match: Match, name: str = "x") -> torch.dtype:
    type_ = match[name].type
    assert isinstance(type_, TensorType)
    return type_.dtype


def is_floating(match: Match, name: str = "x") -> bool:
    return dtype_of(match, name).is_floating_point


def number_close_to(parameter: str, wanted: float, operand: str = "x") -> Guard:
    """The number is the one that the formula has, to the digits that its dtype can tell apart.

    In fp64 that is all of them, in others those of fp32: 0.70710678 is 1 / sqrt(2), 1.4142 is not sqrt(2).
    """

    def guard(match: Match) -> Any:
        allowed = 1e-15 if dtype_of(match, operand) is torch.float64 else 6e-8
        if math.isclose(match[parameter], wanted, rel_tol=allowed):
            return True
        return False, f"{match[parameter]!r} is not {wanted:.10g}"

    return guard


def constant(graph: Graph, value: Any) -> torch.Tensor | None:
    """What a value holds at every call, looking through casts and views of constants."""
    if (tensor := fixed_tensor(graph, value)) is not None:
        return tensor
    node = value.producer if isinstance(value, Value) else None
    if node is None or len(node.results) != 1 or packet_name(node.op) not in _LOOK_THROUGH:
        return None
    inner = constant(graph, node.operands[0])
    literal = all(not isinstance(v, Value) for v in [*node.operands[1:], *node.kwargs.values()])
    if inner is None or not literal or not isinstance(value.type, TensorType) or not value.type.is_static:
        return None
    made: torch.Tensor = node.op(inner, *node.operands[1:], **node.kwargs)
    return made


_LOOK_THROUGH = {
    "aten._to_copy", "aten.to", "aten.expand", "aten.reshape", "aten.view", "aten.unsqueeze", "aten.squeeze",
    "aten.slice", "aten.permute", "aten.transpose", "aten.select", "aten.clone", "aten.contiguous",
}  # fmt: skip


def one_number(graph: Graph, value: Any) -> float | None:
    """The number that all of a tensor's elements are, where it is known and there is just one."""
    tensor = fixed_tensor(graph, value)
    if tensor is not None:
        if not tensor.numel() or tensor.is_complex():
            return None
        first = tensor.flatten()[0]
        return float(first) if bool((tensor == first).all()) else None
    node = value.producer if isinstance(value, Value) else None
    if node is None:
        return None
    name = packet_name(node.op)
    if name in _FILLED:
        return _FILLED[name]
    if name in ("aten.full", "aten.full_like") and isinstance(node.operands[1], (int, float)):
        return float(node.operands[1])
    return one_number(graph, node.operands[0]) if name in _LOOK_THROUGH else None


def is_filled_with(parameter: str, wanted: float) -> Guard:
    """A tensor operand that holds this number everywhere, at every call."""

    def guard(match: Match) -> Any:
        if one_number(match.graph, match[parameter]) == wanted:
            return True
        return False, f"its operand is not known to be {wanted:g} everywhere"

    return guard
