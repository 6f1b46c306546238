"""What operators say of axes: the table, and what its rules share.

A rule is a function of a node and the graph's `Axes`: it says which axes are the same (`unify`) and which
must stay (`fix`). An operator without one fixes all axes that it touches, so what is unknown is never cut.
A literal is a function that gives a node's arguments where sizes are written in them, after the cut. The
rules themselves: compute_rules.py and view_rules.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from capture.ir import Node, TensorType, Trait, Value, has
from passes.pruning.axes import Axes, Axis, unify
from passes.queries import packet_name

Rule = Callable[[Node, Axes], None]
Kept = Mapping[Axis, torch.Tensor]
Literal = Callable[[Node, Axes, Kept], dict[str, Any]]

RULES: dict[str, Rule] = {}
LITERALS: dict[str, Literal] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Decorator: the rule of these ATen operators, whatever the overload; names apart by spaces."""

    def add(function: Rule) -> Rule:
        RULES.update({f"aten.{name}": function for name in names.split()})
        return function

    return add


def literal(names: str) -> Callable[[Literal], Literal]:
    """Decorator: the arguments that these ATen operators need after a cut, by their schema names."""

    def add(function: Literal) -> Literal:
        LITERALS.update({f"aten.{name}": function for name in names.split()})
        return function

    return add


def apply_rule(node: Node, axes: Axes) -> None:
    """Let a node say what it knows of the axes of its operands and results."""
    found = RULES.get(packet_name(node.op))
    if found is None and has(node.op, Trait.POINTWISE) and not has(node.op, Trait.EFFECTFUL):
        found = pointwise
    if found is None or node.regions or not all(isinstance(v.type, TensorType) for v in node.results):
        found = unknown
    found(node, axes)


def adjust(node: Node, axes: Axes, kept: Kept) -> None:
    """Write the sizes that are left into a node's arguments, where it has any."""
    if (change := LITERALS.get(packet_name(node.op))) is not None:
        with_literals(node, change(node, axes, kept))


def unknown(node: Node, axes: Axes) -> None:
    axes.fix([*node.operand_values, *node.results], f"{packet_name(node.op) or node.op} reads it as it is")


def pointwise(node: Node, axes: Axes) -> None:
    """Broadcasting aligns axes from the right."""
    for result in node.results:
        for value in node.operand_values:
            if isinstance(value.type, TensorType):
                same_from_right(axes.of(value), axes.of(result))


def same_from_right(given: Sequence[Axis], made: Sequence[Axis]) -> None:
    for a, b in zip(reversed(given), reversed(made), strict=False):
        if a.size != 1:
            unify(a, b)


def with_literals(node: Node, changed: Mapping[str, Any]) -> None:
    """Give the node these arguments by their schema names."""
    named = {a.name: node.arg(a.name) for a in node.op._schema.arguments} | dict(changed)
    node.set_operands((), named)


def arguments(node: Node) -> set[str]:
    return {a.name for a in node.op._schema.arguments}


def dim_of(node: Node, name: str, of: Value | None = None) -> int:
    rank = (of or node.operands[0]).tensor_type.rank
    return int(node.arg(name)) % rank


def over(size: Any, count: Any) -> Any:
    return size // count if isinstance(size, int) and isinstance(count, int) else size / count
