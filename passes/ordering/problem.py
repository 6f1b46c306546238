"""Scheduling as a problem of its own: tasks, what comes before what, and the buffers they make and read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from capture.ir import Graph, Node, ScalarType, TensorType, Trait, Value, dims, has
from capture.ir.dims import Dim
from capture.ir.graph import free_dims
from passes.buffers import Buffers
from passes.updates import updated_operand

SizeOf = Callable[[Dim], "int | None"]


@dataclass(frozen=True)
class Problem:
    """Tasks 0..n-1, in a valid order as given, and buffers 0..m-1.

    Attributes:
        before: per task, the tasks that must run before it.
        sizes: bytes per buffer; what is not to be counted is 0.
        makes: per task, the buffers that it makes.
        readers: per buffer, the tasks after all of which it is free; its maker counts as one.
        kept: per buffer, whether it outlives the tasks.
        reuses: per task, (made, read) pairs: the made buffer takes the read one's memory if that one is free
            then.
        base: bytes that are alive throughout.
        given: buffers that are there at the start.
    """

    before: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    makes: tuple[tuple[int, ...], ...]
    readers: tuple[tuple[int, ...], ...]
    kept: tuple[bool, ...]
    reuses: tuple[tuple[tuple[int, int], ...], ...]
    base: int = 0
    given: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return len(self.before)

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """Per task, the tasks that wait for it."""
        found: list[list[int]] = [[] for _ in self.before]
        for task, needed in enumerate(self.before):
            for other in needed:
                found[other].append(task)
        return tuple(map(tuple, found))

    @cached_property
    def touches(self) -> tuple[tuple[int, ...], ...]:
        """Per task, the buffers that it makes or reads."""
        found: list[list[int]] = [[] for _ in self.before]
        for buffer, readers in enumerate(self.readers):
            for task in readers:
                found[task].append(buffer)
        return tuple(map(tuple, found))

    @cached_property
    def start(self) -> int:
        """Bytes alive before the first task."""
        return self.base + sum(self.sizes[b] for b in self.given)

    @cached_property
    def floor(self) -> int:
        """Bytes that every order needs at some step, going by what single tasks make and read."""
        return max([self.start, *self._needs])

    @property
    def fullest(self) -> int:
        """The task that makes and reads most."""
        return max(range(self.count), key=self._needs.__getitem__)

    @cached_property
    def _needs(self) -> list[int]:
        """Per task, the bytes that it makes and reads, and those alive throughout."""
        found = []
        for touched, reuses in zip(self.touches, self.reuses, strict=True):
            reused = max((self.sizes[made] for made, _ in reuses), default=0)
            found.append(self.base + sum(self.sizes[b] for b in touched) - reused)
        return found

    def peak(self, order: Sequence[int]) -> int:
        """The most bytes alive while the tasks run in that order."""
        state = Progress(self)
        return max((state.move(task) for task in order), default=self.start)


class Progress:
    """How far a run has come: bytes alive, and who still reads each buffer.

    Args:
        backward: tasks are taken back from the end instead: a buffer comes alive with the last of its readers
            and is gone with its maker.
    """

    def __init__(self, problem: Problem, *, backward: bool = False) -> None:
        self.problem = problem
        self.backward = backward
        self.left = [len(readers) for readers in problem.readers]  # those still to be moved
        self.turn = list(self.left) if backward else [1] * len(self.left)  # when a move ends its life
        self.live = problem.start
        if backward:
            self.live = problem.base + sum(s for s, k in zip(problem.sizes, problem.kept, strict=True) if k)

    def cost(self, task: int) -> tuple[int, int]:
        """(bytes alive while the task runs, bytes alive on its other side), if it were moved now."""
        problem = self.problem
        grown = freed = reused = 0
        for buffer in problem.makes[task]:
            grown += problem.sizes[buffer]
        for buffer in problem.touches[task]:
            if self.left[buffer] == self.turn[buffer] and not problem.kept[buffer]:
                freed += problem.sizes[buffer]
        for made, read in problem.reuses[task]:
            if self.left[read] == self.turn[read] and not problem.kept[read]:
                reused = problem.sizes[made]
                break
        if self.backward:
            return self.live + freed - reused, self.live + freed - grown
        return self.live + grown - reused, self.live + grown - freed

    def move(self, task: int) -> int:
        """Run the task, or take it back; returns the bytes alive meanwhile."""
        during, self.live = self.cost(task)
        for buffer in self.problem.touches[task]:
            self.left[buffer] -= 1
        return during


def problem_of(graph: Graph, shared: Buffers, size_of: SizeOf) -> Problem:
    """The scheduling problem of a graph, in its present order."""
    nodes = list(graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    index = {root: i for i, root in enumerate(shared.transients)}
    makes: list[tuple[int, ...]] = []
    readers: list[dict[int, None]] = [{} for _ in index]
    for i, node in enumerate(nodes):
        made = tuple(index[v] for v in node.results if v in index)
        makes.append(made)
        for value in (*node.results, *node.operand_values):
            root = shared.roots.get(value)
            if root in index:
                readers[index[root]][i] = None
    kept = {shared.roots[v] for v in graph.writebacks.values() if v in shared.roots} | shared.escaping
    for result in reversed(list(shared.held)):
        for root in shared.held[result]:
            if root in index and result in index:
                readers[index[root]].update(readers[index[result]])
                if result in kept:
                    kept.add(root)
    reuses = tuple(
        tuple((index[v], index[shared.roots[o]]) for v, o in shared.reusable.get(node, ())) for node in nodes
    )
    return Problem(
        before=_before(nodes, position, shared, set(graph.dims)),
        sizes=tuple(size_of(shared.nbytes[root]) or 0 for root in index),
        makes=tuple(makes),
        readers=tuple(map(tuple, readers)),
        kept=tuple(root in kept for root in index),
        reuses=reuses,
    )


def _before(
    nodes: Sequence[Node], position: dict[Node, int], shared: Buffers, dims_of_inputs: set[str]
) -> tuple[tuple[int, ...], ...]:
    """Per node, those that must stay before it: makers of operands and sizes, effects, writes, reads."""
    found: list[tuple[int, ...]] = []
    effect: int | None = None
    size_maker: dict[str, int] = {}
    accesses = _Accesses(shared)
    for i, node in enumerate(nodes):
        needed = {position[v.producer]: None for v in node.operand_values if v.producer is not None}
        needed.update(dict.fromkeys(size_maker[name] for name in free_dims(node) if name in size_maker))
        needed.update(dict.fromkeys(accesses.add(i, node)))
        if is_ordered(node):
            if effect is not None:
                needed[effect] = None
            effect = i
        for value in node.results:
            for name in _sizes_in(value) - dims_of_inputs:
                size_maker.setdefault(name, i)
        found.append(tuple(needed))
    return tuple(found)


class _Accesses:
    """Keeps a node that writes into memory after all earlier and before all later ones that touch it."""

    def __init__(self, shared: Buffers) -> None:
        self.shared = shared
        self.last_write: dict[Value, int] = {}
        self.since: dict[Value, list[int]] = {}

    def add(self, step: int, node: Node) -> list[int]:
        written = _written(node)
        needed: list[int] = []
        for value in dict.fromkeys((*node.operand_values, *node.results)):
            for root in self.shared.memory_of(value):
                if root in self.last_write:
                    needed.append(self.last_write[root])
                if value in written:
                    needed += self.since.get(root, [])
                    self.last_write[root], self.since[root] = step, []
                else:
                    self.since.setdefault(root, []).append(step)
        return [s for s in needed if s != step]


def _written(node: Node) -> set[Value]:
    """Operands that the node's op, or its recipe, writes into."""
    if (updated := updated_operand(node)) is not None:
        return {updated}
    schema = getattr(node.op, "_schema", None)
    if schema is None or not schema.is_mutable:
        return set()
    names = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return {v for name in names for v in [node.arg(name)] if isinstance(v, Value)}


def is_ordered(node: Node) -> bool:
    """Whether the node must keep its place among its like: it has an effect, or draws random numbers."""
    if node.regions:
        return any(is_ordered(inner) for region in node.regions for inner in region.nodes)
    return has(node.op, Trait.EFFECTFUL | Trait.RANDOM)


def _sizes_in(value: Value) -> set[str]:
    if isinstance(value.type, TensorType):
        return dims.free_names(list(value.type.shape))
    return dims.free_names(value.type.expr) if isinstance(value.type, ScalarType) else set()


__all__ = ["Problem", "Progress", "is_ordered", "problem_of"]
