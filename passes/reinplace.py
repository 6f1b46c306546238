"""Make an update of what the model writes back a real write again: into the target, with no copy at the end.

    %0 = index_put(@cache, [%i], %x)             %0 = index_put(@cache, [%i], %x) via aten.in_place(operand=0)
    %1 = attention(%q, %0)              ==>      %1 = attention(%q, %0)
    return %1                                    return %1
    write @cache = %0                            write @cache = %0

    %0 = fusion.pointwise(%x, @mean) {...}       %0 = fusion.pointwise(...) {...} via aten.in_place(operand=1)
    write @mean = %0                    ==>      write @mean = %0

The meaning stays: the recipe says that the result's memory is the operand's. The memory plan then counts no
copy of the cache, and generated code calls index_put_ and leaves the copy out. Several updates in a row are
written so too, and, on a CPU, fusions whose first operator alone reads the target.

Does not fire where the old content, or a view of it, is read after the update, returned or written elsewhere,
where the update reads the target in another operand too, where the graph returns the new content or a view of
it, where a constant is unbound, where the target overlaps another or is strided otherwise than its updated
form, or where an input is the target of a fusion, or of what has a reader that looks at strides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from capture.ir import Constant, Fusion, Graph, Impl, Node, Value
from capture.ir.graph import values_in
from capture.ir.memory import overlapping
from passes.base import Pass, PassResult, register_pass
from passes.buffers import Buffers, buffers
from passes.layout import reads_strides
from passes.updates import IN_PLACE, updatable, updated_operand


@register_pass
@dataclass(frozen=True)
class Reinplace(Pass):
    name = "reinplace"

    def run(self, graph: Graph) -> PassResult:
        if not graph.writebacks:
            return PassResult(False)
        finder = _Finder(graph)
        updates = [pair for target in graph.writebacks for pair in finder.updates(target)]
        for node, position in updates:
            node.set_impl(Impl(IN_PLACE, {"operand": position}))
        saved = sum(v.tensor_type.nbytes for v in finder.saved if v.tensor_type.is_static)
        stats = {"updates": len(updates), "not_copied_bytes": saved}
        return PassResult(bool(updates), stats if updates else {})


class _Finder:
    """Finds updates that may be done in place, in the graph's present order."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.shared = buffers(graph)
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        self.views = _values_by_memory(self.shared)
        self.results = set(values_in(graph.results))
        self.bound = {c.name: c.tensor for c in graph.constants.values() if c.tensor is not None}
        self.overlapping = {name for pair in overlapping(self.bound) for name in pair}
        self.saved: list[Value] = []

    def updates(self, target: Value) -> list[tuple[Node, int]]:
        """The updates that lead from the target to what is written back; none if one of them may not.

        Each with the position of the operand that it writes into.
        """
        found: list[tuple[Node, int]] = []
        value = self.graph.writebacks[target]
        while value is not target:
            node = value.producer
            if node is None or node.impl is not None or not (positions := updatable(node)):
                return []
            if isinstance(node.op, Fusion) and target.is_input:
                return []  # not every operator may write where a caller's strides are others
            given = [node.operands[i] for i in positions]
            found.append((node, positions[given.index(target) if target in given else 0]))
            value = node.operands[found[-1][1]]
        if not found or not self._is_plain(target) or not all(self._is_last_reader(*pair) for pair in found):
            return []
        after = self._views_of(found[0][0].result)
        if after & self.results or any(v in after for t, v in self._writes() if t is not target):
            return []
        if target.is_input and any(reads_strides(user.op) for v in after for user in v.users):
            return []
        self.saved.append(target)
        return found

    def _is_plain(self, target: Value) -> bool:
        """Whether the target is laid out as its updated form would be, in memory of its own."""
        shared, updated = self.shared, self.graph.writebacks[target]
        if shared.roots[target] is not target or shared.layouts.get(target) != shared.layouts.get(updated):
            return False
        if not isinstance(target, Constant):
            return True  # callers may not pass one memory twice to a graph that writes
        return self.graph.constants.keys() == self.bound.keys() and target.name not in self.overlapping

    def _is_last_reader(self, node: Node, position: int) -> bool:
        """Whether nobody needs what the update writes over, or a view of it, after the update or in it."""
        old = self._views_of(node.operands[position])
        if old & self.results or any(value in old for _, value in self._writes()):
            return False
        others = [operand for i, operand in enumerate(node.operands) if i != position]
        if not old.isdisjoint(values_in((others, list(node.kwargs.values())))):
            return False
        end = self.position[node]
        return all(self.position[user] <= end for value in old for user in value.users)

    def _writes(self) -> Iterable[tuple[Value, Value]]:
        """(target, value) of the write-backs that copy something."""
        return ((target, value) for target, value in self.graph.writebacks.items() if target is not value)

    def _views_of(self, value: Value) -> set[Value]:
        """The values that lie, or may lie, in the value's memory."""
        return set().union(*(self.views[root] for root in self.shared.memory_of(value)))


def sound_updates(graph: Graph) -> frozenset[Node]:
    """The nodes that may be done as their recipe says, in place, in the graph's order as it is now.

    All that `reinplace` has found, unless a later pass has moved a read of old content behind the write.
    """
    marked = [node for node in graph.nodes if updated_operand(node) is not None]
    if not marked:
        return frozenset()
    shared = buffers(graph)
    views, position = _values_by_memory(shared), {node: i for i, node in enumerate(graph.nodes)}
    at_end = {*values_in(graph.results), *graph.writebacks.values()}
    stale: set[Value] = set()
    for node in marked:
        at = position[node]
        for root in shared.memory_of(node.result):
            old = [v for v in views[root] if v.producer is None or position[v.producer] < at]
            read = any(v in at_end or any(position[user] > at for user in v.users) for v in old)
            if read or root not in graph.writebacks:
                stale.add(root)
    return frozenset(node for node in marked if stale.isdisjoint(shared.memory_of(node.result)))


def is_written(target: Value, value: Value) -> bool:
    """Whether recipes of updates, one after another, make the value in the target's own memory."""
    found: Value | None = value
    while found is not None and found is not target:
        found = updated_operand(found.producer) if found.producer is not None else None
    return found is target


def _values_by_memory(shared: Buffers) -> dict[Value, set[Value]]:
    """Root -> the values that lie in its memory, or may, at other sizes or strides."""
    found: dict[Value, set[Value]] = defaultdict(set)
    for value in shared.roots:
        for root in shared.memory_of(value):
            found[root].add(value)
    return found


__all__ = ["Reinplace", "is_written", "sound_updates"]
