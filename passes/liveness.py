"""When each buffer of a graph is alive, in steps of the schedule, and which results are written over an
operand.

    step   node                      %0          %1          %2
    0      %0 = conv2d(%x, ...)      [0,         .           .
    1      %1 = reshape(%0, ...)       a view: lives in %0's buffer
    2      %2 = relu(%1)                   3)                [2, over %0's last use: in its memory
    3      %3 = linear(%2, ...)                                 4)

A buffer is alive from the step that makes it to the last step that reads it, views included: [first, end).
Inputs, constants and results live longer than the call and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from capture.errors import CaptureError
from capture.ir import Graph, Node, Value
from passes.buffers import Buffers, buffers


@dataclass(frozen=True)
class Liveness:
    """Lifetimes of a graph's transient buffers, for one order of its nodes.

    Attributes:
        version: the graph's version that this was made for.
        steps: number of nodes.
        lifetimes: [first, end) of each buffer by its root, before any in-place reuse.
        in_place: result -> the operand whose memory it takes.
        homes: root -> the root that it shares memory with, by in-place reuse (itself where it shares none).
        intervals: [first, end) by home: what is to be placed.
    """

    version: int
    steps: int
    lifetimes: Mapping[Value, tuple[int, int]]
    in_place: Mapping[Value, Value]
    homes: Mapping[Value, Value]
    intervals: Mapping[Value, tuple[int, int]]

    def check(self, graph: Graph) -> None:
        """Raise CaptureError where the graph has changed since."""
        check_version("the liveness", self.version, graph)


def check_version(what: str, version: int, graph: Graph) -> None:
    """Refuse an analysis of a graph that has changed since.

    Raises:
        CaptureError: the versions differ.
    """
    if version != graph.version:
        raise CaptureError(
            f"{what} was made for another version of the graph",
            why=f"made for version {version}; the graph is at {graph.version}",
            hint="make it anew after the last edit",
        )


def liveness(graph: Graph) -> Liveness:
    """The liveness of the graph as it stands."""
    found: Liveness = graph.analysis(
        "liveness", lambda: liveness_of(buffers(graph), list(graph.nodes), graph)
    )
    return found


def liveness_of(shared: Buffers, order: Sequence[Node], graph: Graph) -> Liveness:
    """Liveness if the graph's nodes ran in `order`."""
    lifetimes = _lifetimes(shared, order, graph)
    in_place: dict[Value, Value] = {}
    homes: dict[Value, Value] = {}
    taken = {
        root for value in graph.writebacks.values() for root in shared.memory_of(value)
    }  # read at the end
    for step, node in enumerate(order):
        for result, operand in shared.reusable.get(node, ()):
            root = shared.roots[operand]
            if result not in in_place and root not in taken and lifetimes[root][1] == step + 1:
                in_place[result] = operand
                homes[result] = homes[root]
                taken.add(root)
        for value in node.results:
            if value in lifetimes:
                homes.setdefault(value, value)
    intervals: dict[Value, tuple[int, int]] = {}
    for root, home in homes.items():
        first, end = lifetimes[root]
        intervals[home] = (intervals.get(home, (first, end))[0], end)
    return Liveness(graph.version, len(order), lifetimes, in_place, homes, intervals)


def _lifetimes(shared: Buffers, order: Sequence[Node], graph: Graph) -> dict[Value, tuple[int, int]]:
    """[first, end) by root, transients only, in order of birth."""
    first: dict[Value, int] = {}
    end: dict[Value, int] = {}
    for step, node in enumerate(order):
        for value in node.results:
            root = shared.roots.get(value)
            if root is not None and root not in shared.lasting:
                first.setdefault(root, step)
                end[root] = step + 1
        for root in _read(shared, node):
            end[root] = step + 1
    written = (shared.roots.get(v) for v in graph.writebacks.values())  # copied after the last step
    for root in (*written, *shared.escaping):
        if root in first:
            end[root] = len(order)
    _extend_held(shared, end)
    return {root: (start, end[root]) for root, start in first.items()}


def _read(shared: Buffers, node: Node) -> Iterable[Value]:
    """Transient roots that a node reads."""
    for value in node.operand_values:
        root = shared.roots.get(value)
        if root is not None and root not in shared.lasting:
            yield root


def _extend_held(shared: Buffers, end: dict[Value, int]) -> None:
    """What a result may share memory with lives as long as the result; later ones first: it adds up."""
    for result in reversed(list(shared.held)):
        for root in shared.held[result]:
            if root in end:
                end[root] = max(end[root], end.get(result, 0))


__all__ = ["Liveness", "check_version", "liveness", "liveness_of"]
