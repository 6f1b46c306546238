"""Give up a buffer across a step: its value is computed again before the first later reader.

    step   %0 = exp(%x)      readers of %0                   ... after give_up(%0, at=3)
    0      %0                                                %0
    1      %1 = f(%0)        here                            %1 = f(%0)
    2, 3   ...               none                            ...                  %0's memory is free
    4      %4 = g(%3, %0)    here                            %4 = exp(%x)
    5                                                        %5 = g(%3, %4)

Who shares memory with whom is kept up to date with each such edit, not found anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from capture.ir import Fusion, Graph, Node, Value
from capture.ir.copying import copy_body
from capture.ir.graph import map_operand
from passes.buffers import Buffers
from passes.ordering.problem import is_ordered
from passes.queries import is_pure_node
from passes.updates import updated_operand

DEPTH = 6  # values computed again for the sake of one


def is_recomputable(node: Node) -> bool:
    """Whether computing the node twice gives the same, and disturbs nothing."""
    plain = isinstance(node.op, Fusion) or not node.regions
    return plain and is_pure_node(node) and not is_ordered(node) and updated_operand(node) is None


@dataclass
class Trial:
    """One buffer given up: the nodes made, and how to take it back."""

    made: list[Node] = field(default_factory=list)
    redirected: list[tuple[Node, Value, Value]] = field(default_factory=list)
    before: tuple[dict, ...] = ()  # type: ignore[type-arg]


@dataclass(frozen=True)
class _Gone:
    """The values gone before `place`: those in the buffer that is given up, and what is dead by then.

    `alive` holds the roots of the memory that is needed there or later anyway.
    """

    shared: Buffers
    members: set[Value]
    alive: set[Value]
    place: Node

    def __contains__(self, value: Value) -> bool:
        dead = value.producer is not None and self.alive.isdisjoint(self.shared.memory_of(value))
        return value in self.members or dead


class Replay:
    """A graph and its buffers under such edits.

    Attributes:
        made: the nodes that compute something once more, of all edits that stand.
    """

    def __init__(self, graph: Graph, shared: Buffers, may_repeat: Callable[[Node], bool]) -> None:
        self.graph = graph
        self.may_repeat = may_repeat
        self.roots, self.nbytes = dict(shared.roots), dict(shared.nbytes)
        self.layouts, self.held = dict(shared.layouts), dict(shared.held)
        self.reusable = dict(shared.reusable)
        self.lasting, self.escaping = shared.lasting, shared.escaping
        self.made: list[Node] = []
        self.written = self._written()

    def _written(self) -> set[Value]:
        """Roots of memory that is written to in the middle of a call: what reads it may not run later."""
        shared = self.shared()
        found: set[Value] = set()
        for node in self.graph.nodes:
            mutable = getattr(getattr(node.op, "_schema", None), "is_mutable", False)
            targets = node.operand_values if mutable else [updated_operand(node)]
            found.update(root for v in targets if v is not None for root in shared.memory_of(v))
        return found

    def shared(self) -> Buffers:
        """The buffers as they are now."""
        return Buffers(
            self.graph.version, self.roots, self.nbytes, self.layouts, self.held, self.reusable, self.lasting,
            self.escaping,
        )  # fmt: skip

    def steps_by_memory(self) -> dict[Value, list[int]]:
        """Root -> the steps that make or read what lies in its memory, in order."""
        shared = self.shared()
        found: dict[Value, list[int]] = defaultdict(list)
        for step, node in enumerate(self.graph.nodes):
            values = (*node.operand_values, *node.results)
            for root in dict.fromkeys(root for v in values for root in shared.memory_of(v)):
                found[root].append(step)
        return found

    def touched(self, at: int) -> Iterator[Value]:
        """Roots of the memory that a step makes or reads."""
        node = list(self.graph.nodes)[at]
        shared = self.shared()
        for value in (*node.operand_values, *node.results):
            yield from shared.memory_of(value)

    def give_up(self, root: Value, at: int) -> Trial | None:
        """Compute again, before its first reader after step `at`, what lies in that buffer; None where it
        may not be."""
        nodes = list(self.graph.nodes)
        shared = self.shared()
        members = {v for v in self.roots if root in shared.memory_of(v)}
        if any(v.is_result for v in members):
            return None
        later = [node for node in nodes[at + 1 :] if not members.isdisjoint(node.operand_values)]
        early = {v for v in members if v.producer is not None} - {v for n in nodes[at:] for v in n.results}
        needed = [v for node in later for v in node.operand_values if v in early]
        if not needed:
            return None
        trial = Trial(
            before=tuple(
                each.copy() for each in (self.roots, self.nbytes, self.layouts, self.held, self.reusable)
            )
        )
        place = later[0]
        alive = self._alive(nodes, nodes.index(place))
        copies: dict[Value, Value] = {}
        gone = _Gone(shared, members, alive, place)
        if not all(self._copy(value, gone, copies, trial, DEPTH) for value in needed):
            self.undo(trial)
            return None
        self._redirect(nodes[at + 1 :], early, copies, trial)
        self.made += trial.made
        return trial

    def _alive(self, nodes: list[Node], at: int) -> set[Value]:
        """Roots of the memory that is needed at that step or later anyway."""
        shared = self.shared()
        needed = set(self.lasting) | self.escaping
        for value in self.graph.writebacks.values():
            needed.update(shared.memory_of(value))
        for node in nodes[at:]:
            needed.update(root for v in node.operand_values for root in shared.memory_of(v))
        return needed

    def _copy(self, value: Value, gone: _Gone, copies: dict[Value, Value], trial: Trial, depth: int) -> bool:
        """Compute the value again, and, before it, what it is made from and is gone by then."""
        if value in copies:
            return True
        node = value.producer
        if node is None or not depth or not self.may_repeat(node):
            return False
        for operand in dict.fromkeys(node.operand_values):
            if not self.written.isdisjoint(gone.shared.memory_of(operand)):
                return False
            if operand in gone and not self._copy(operand, gone, copies, trial, depth - 1):
                return False
        made = self._repeat(node, gone.place, copies)
        trial.made.append(made)
        self._note(node, made, copies)
        return True

    def _repeat(self, node: Node, place: Node, copies: dict[Value, Value]) -> Node:
        def leaf(operand: object) -> object:
            return copies.get(operand, operand) if isinstance(operand, Value) else operand

        regions = []
        for region in node.regions:
            copy = self.graph.new_region()
            inner: dict[Value, Value] = {v: copy.add_input(v.name, v.type) for v in region.inputs}
            copy_body(region, copy, inner)
            copy.set_results([inner[v] if isinstance(v, Value) else v for v in region.results])
            regions.append(copy)
        return self.graph.add_node(
            node.op,
            map_operand(node.operands, leaf),
            {name: map_operand(v, leaf) for name, v in node.kwargs.items()},
            types=[v.type for v in node.results],
            origin=node.origin,
            regions=regions,
            impl=node.impl,
            before=place,
        )

    def _note(self, node: Node, made: Node, copies: dict[Value, Value]) -> None:
        """Learn where the copy's results lie: as the node's own do, in the copies' memory."""
        copies.update(zip(node.results, made.results, strict=True))
        for old, new in zip(node.results, made.results, strict=True):
            if old not in self.roots:
                continue
            self.roots[new] = copies.get(self.roots[old], self.roots[old])
            if self.roots[new] is new:
                self.nbytes[new] = self.nbytes[old]
            if old in self.layouts:
                self.layouts[new] = self.layouts[old]
            if old in self.held:
                self.held[new] = tuple(copies.get(root, root) for root in self.held[old])
        if node in self.reusable:
            self.reusable[made] = self._moved(node, copies)

    def _redirect(
        self, later: list[Node], early: set[Value], copies: dict[Value, Value], trial: Trial
    ) -> None:
        """Let later nodes read the copies; what they view lies in the copies' memory then."""
        for node in later:
            for old in dict.fromkeys(v for v in node.operand_values if v in copies and v in early):
                node.replace_operand(old, copies[old])
                trial.redirected.append((node, old, copies[old]))
            if node in self.reusable:
                self.reusable[node] = self._moved(node, copies)
            for value in node.results:
                if value in self.roots:
                    self.roots[value] = copies.get(self.roots[value], self.roots[value])
                if value in self.held:
                    self.held[value] = tuple(copies.get(root, root) for root in self.held[value])

    def _moved(self, node: Node, copies: dict[Value, Value]) -> tuple[tuple[Value, Value], ...]:
        return tuple((copies.get(r, r), copies.get(o, o)) for r, o in self.reusable[node])

    def undo(self, trial: Trial) -> None:
        """Take an edit back; it must be the last that stands."""
        for node, old, new in reversed(trial.redirected):
            node.replace_operand(new, old)
        for node in reversed(trial.made):
            self.graph.erase(node)
        self.roots, self.nbytes, self.layouts, self.held, self.reusable = trial.before
        if trial.made and self.made[-len(trial.made) :] == trial.made:
            del self.made[-len(trial.made) :]


__all__ = ["Replay", "Trial", "is_recomputable"]
