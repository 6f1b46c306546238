"""Which values may lie in the same memory, and so which replacements a caller could notice.

A model that returns a copy must go on returning a copy: `return x.clone()` may not become `return x`, and two
results may not become one tensor. `Aliases` answers that for a graph under edit. It errs on the side of
sharing: an op that may return its operand's memory (reshape, contiguous, dropout in eval) counts as one that
does.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch._ops import OpOverload

from capture.ir import Graph, Node, Trait, Value, has
from passes.queries import packet_name

# These return their operand, or a view of it, for some operands, and their schemas do not say so.
_UNDECLARED = {
    "aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.feature_alpha_dropout", "aten.einsum",
    "aten.pad", "aten.atleast_1d", "aten.atleast_2d", "aten.atleast_3d", "aten.broadcast_tensors",
    "aten.meshgrid", "aten.type_as", "aten.cartesian_prod", "aten.conj_physical",
}  # fmt: skip


@cache
def may_share(op: Any) -> bool:
    """Whether a result of the op may lie in the memory of an operand."""
    if not isinstance(op, OpOverload):
        return True
    if has(op, Trait.VIEW) or any(r.alias_info is not None for r in op._schema.returns):
        return True
    return packet_name(op) in _UNDECLARED


class Aliases:
    """Classes of values that may share memory, kept up while a graph is edited. Near-linear in its nodes."""

    def __init__(self, graph: Graph) -> None:
        self._parent: dict[Value, Value] = {}
        self._results: dict[Value, int] = {}  # by class: slots among the graph's results
        self._outside: dict[Value, bool] = {}  # by class: holds an input or a constant
        self._escaping: set[Value] = set()
        for value in (*graph.inputs, *graph.constants.values()):
            self._enter(value, outside=True)
        for node in graph.nodes:
            self.add(node)
        for value in graph.result_values:
            self._results[self._find(value)] += 1
            self._escape(value)

    def add(self, node: Node) -> None:
        """Take in a new node."""
        for value in node.results:
            self._enter(value)
            if may_share(node.op):
                for operand in node.operand_values:
                    self._unite(operand, value)

    def becomes_constant(self, value: Value) -> None:
        """The value is about to be a constant's."""
        self._outside[self._find(value)] = True

    def escapes(self, value: Value) -> bool:
        """Whether a result of the graph may lie in this value's memory."""
        return value in self._escaping

    def is_exposed(self, value: Value) -> bool:
        """Whether a caller gets this memory and may see it elsewhere too: in an input, constant or result."""
        root = self._find(value)
        return value in self._escaping and (self._outside[root] or self._results[root] > 1)

    def may_replace(self, old: Value, new: Value) -> bool:
        """Whether no caller can tell that `new` stands for `old`, but by the bits of it."""
        if old not in self._escaping:
            return True
        own, other = self._find(old), self._find(new)
        if own is other:
            return not self.is_exposed(old)
        return not self._outside[other] and not self._results[other]

    def replaced(self, old: Value, new: Value) -> None:
        """`new` stands for `old` from now on."""
        if old in self._escaping:
            self._escape(new)
        self._unite(old, new)

    def _enter(self, value: Value, outside: bool = False) -> None:
        self._parent[value] = value
        self._results[value] = 0
        self._outside[value] = outside

    def _find(self, value: Value) -> Value:
        root = value
        while self._parent[root] is not root:
            root = self._parent[root]
        while self._parent[value] is not root:
            self._parent[value], value = root, self._parent[value]
        return root

    def _unite(self, one: Value, other: Value) -> None:
        a, b = self._find(one), self._find(other)
        if a is not b:
            self._parent[b] = a
            self._results[a] += self._results[b]
            self._outside[a] |= self._outside[b]

    def _escape(self, value: Value) -> None:
        """Mark a value, and what it may be a view of."""
        waiting = [value]
        while waiting:
            value = waiting.pop()
            if value in self._escaping:
                continue
            self._escaping.add(value)
            if value.producer is not None and may_share(value.producer.op):
                waiting += value.producer.operand_values
