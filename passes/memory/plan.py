"""The memory plan: where each transient buffer of a graph lies in one arena.

    value            lives in            made by            planned
    %0 = conv2d      buffer A            the callee         listed: oneDNN returns memory of its own
    %1 = reshape %0  buffer A (view)     -                  -
    %2 = add %1, %0  buffer B            aten.add.out       placed: generated code writes into the arena
    %3 = relu %2     buffer B (in place) aten.clamp_min.out placed

docs/memory.md explains the numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from capture.ir import Graph, Node, TensorType, Value, op_name
from capture.ir.text import names
from capture.ir.types import CONTIGUOUS, TORCH_FORMATS
from passes.buffers import Buffers, Layout, buffers
from passes.destinations import takes_destination
from passes.liveness import Liveness, check_version, liveness
from passes.memory.greedy import pack
from passes.memory.planner import SECOND, place
from passes.memory.search import Effort
from passes.memory.sizes import Sizes
from passes.memory.temporaries import temporaries_bytes

SLACK = 50  # the arena may raise the expected peak by one part in so many
ATTEMPTS = 6  # sizes from which on buffers are tried without the arena


@dataclass(frozen=True)
class Buffer:
    """One piece of memory and its life.

    Attributes:
        name: printed name of the value that it is made for.
        values: printed names of all values that live in it: views, and results written over their operand.
        first, end: alive in the steps first <= step < end.
        size: bytes, rounded up to the plan's alignment.
        offset: place in the plan over all transient buffers.
        placement: place in the arena of generated code; None where the callee allocates.
        callee: whether it is left to the operator to allocate.
        op, location: the operator that makes it, and the user's own ``file:line``.
    """

    name: str
    values: tuple[str, ...]
    first: int
    end: int
    size: int
    offset: int
    placement: int | None
    callee: bool
    op: str
    location: str


@dataclass(frozen=True)
class MemoryPlan:
    """Places for the transient buffers of a graph (not: inputs, constants, results). All sizes in bytes.

    Attributes:
        version: the graph's version that the plan was made for.
        alignment: sizes and offsets are multiples of it.
        sizes: the symbolic sizes that were fixed; the others are planned at their upper bounds.
        buffers: in order of birth.
        arena_bytes: size of the plan over all transient buffers.
        lower_bound_bytes: the most bytes alive at one step, which no plan of this order can beat.
        naive_bytes: every transient value in memory of its own for the whole call; views take none.
        callee_allocated_bytes: the most bytes alive at one step in buffers that operators allocate
            themselves.
        in_arena_bytes: size of the arena that generated code makes, for the buffers that it can place.
        expected_peak_bytes: in_arena_bytes + callee_allocated_bytes. Workspace inside operators comes on top.
        results_bytes: buffers that the graph returns; never in the arena.
        region_temporaries_bytes: the most that one fusion region takes beside its result if its operators run
            one by one. Not in the other numbers: a kernel keeps them in registers.
        peak_step: the step at which most bytes are alive; -1 without buffers.
        peak_holders: positions in `buffers` of what is alive at that step, largest first.
        steps: a label per step.
        live_bytes: bytes alive per step.
        offsets: value -> offset in the plan over all transient buffers (a view: its buffer's).
        placements: value -> offset in generated code's arena: what the code writes there, views not included.
        in_place: value -> the operand whose memory it is written over.
        unplanned: names of values without an upper bound, and of those on another device than the arena.
    """

    version: int
    alignment: int
    sizes: Mapping[str, int]
    buffers: tuple[Buffer, ...]
    arena_bytes: int
    lower_bound_bytes: int
    naive_bytes: int
    callee_allocated_bytes: int
    in_arena_bytes: int
    expected_peak_bytes: int
    results_bytes: int
    region_temporaries_bytes: int
    peak_step: int
    peak_holders: tuple[int, ...]
    steps: tuple[str, ...]
    live_bytes: tuple[int, ...]
    offsets: Mapping[Value, int] = field(repr=False)
    placements: Mapping[Value, int] = field(repr=False)
    in_place: Mapping[Value, Value] = field(repr=False)
    unplanned: tuple[str, ...]

    def check(self, graph: Graph) -> None:
        """Raise CaptureError where the graph has changed since the plan was made."""
        check_version("the memory plan", self.version, graph)


def plan(
    graph: Graph, *, alignment: int = 64, sizes: Mapping[str, int] | None = None, effort: int = SECOND
) -> MemoryPlan:
    """Plan the memory of the graph as it stands. The same graph gives the same plan.

    Args:
        alignment: bytes; sizes are rounded up to it.
        sizes: values of symbolic sizes by name. A size left out is planned at its upper bound; a value
            without a bound stays out of the plan.
        effort: work of the exact search, which runs where the greedy plan is above the lower bound.
            The default takes about a second.
    """
    return _Planner(graph, alignment, sizes, effort).plan()


def arena_bytes(
    shared: Buffers, live: Liveness, sizes: Sizes, *, limit: int | None = None
) -> tuple[int, int]:
    """(arena, lower bound) that `plan` would find for an order.

    Args:
        limit: where the lower bound is no less than this, it is returned for the arena too: the order has
            lost.
    """
    spans = [
        (*live.intervals[home], nbytes) for home in live.intervals if (nbytes := sizes(shared.nbytes[home]))
    ]
    bound = _lower_bound(spans)
    if limit is not None and bound >= limit:
        return bound, bound
    return pack(*_columns(spans), bound=bound).peak, bound


def _lower_bound(spans: Sequence[tuple[int, int, int]]) -> int:
    """The most bytes alive at one step, as the checker counts them."""
    from passes.memory_check import lower_bound  # here, so that `python -m passes.memory_check` loads it once

    return lower_bound(spans)


def _columns(spans: Sequence[tuple[int, int, int]]) -> tuple[list[int], list[int], list[int]]:
    return [s[0] for s in spans], [s[1] for s in spans], [s[2] for s in spans]


class _Planner:
    def __init__(self, graph: Graph, alignment: int, sizes: Mapping[str, int] | None, effort: int) -> None:
        self.graph = graph
        self.effort = effort
        self.shared = buffers(graph)
        self.live = liveness(graph)
        self.sizes = Sizes(graph, sizes, alignment)
        self.names = names(graph)
        self.device = _main_device(self.shared)
        self.unplanned: list[str] = []
        self.homes = [home for home in self.live.intervals if self._is_planned(home)]
        self.bytes = {home: self.sizes(self.shared.nbytes[home]) or 0 for home in self.homes}

    def _is_planned(self, home: Value) -> bool:
        nbytes = self.sizes(self.shared.nbytes[home])
        if nbytes is None or home.tensor_type.device != self.device:
            self.unplanned.append(self.names[home])
            return False
        return nbytes > 0

    def plan(self) -> MemoryPlan:
        spans = [self._span(home) for home in self.homes]
        bound = _lower_bound(spans)
        offsets, arena = self._place(spans, bound, self.effort)
        placed, in_arena, callee = self._divide(bound)
        lives_in = self._lives_in()
        made = self._buffers(offsets, placed, lives_in)
        position = dict(zip(self.homes, offsets, strict=True))
        live_bytes = _live_bytes(spans, self.live.steps)
        peak_step = max(range(len(live_bytes)), key=live_bytes.__getitem__) if self.homes else -1
        return MemoryPlan(
            version=self.graph.version,
            alignment=self.sizes.alignment,
            sizes=self.sizes.given,
            buffers=made,
            arena_bytes=arena,
            lower_bound_bytes=bound,
            naive_bytes=self._total(root for root in self.live.homes if self.live.homes[root] in self.bytes),
            callee_allocated_bytes=callee,
            in_arena_bytes=in_arena,
            expected_peak_bytes=in_arena + callee,
            results_bytes=self._total(_returned(self.graph, self.shared)),
            region_temporaries_bytes=max(map(self._temporaries, self.graph.nodes), default=0),
            peak_step=peak_step,
            peak_holders=_holders(made, peak_step),
            steps=tuple(self._label(node) for node in self.graph.nodes),
            live_bytes=live_bytes,
            offsets={v: position[home] for home in self.homes for v in lives_in[home]},
            placements={root: placed[home] for root, home in self.live.homes.items() if home in placed},
            in_place={v: o for v, o in self.live.in_place.items() if self.live.homes[v] in self.bytes},
            unplanned=tuple(self.unplanned),
        )

    def _divide(self, bound: int) -> tuple[dict[Value, int], int, int]:
        """Which buffers generated code places, and where; bytes of its arena; most bytes alive with the
        callees.

        All that it can, unless the two peaks, at different steps, add up to more than the lower bound: an
        arena is held for the whole call. Then the largest are left to the callees, which free them in
        between.
        """
        mine = [home for home in self.homes if _is_placeable(home, self.shared)]
        sizes = sorted({self.bytes[home] for home in mine}, reverse=True)
        for most in [*sizes[:: -(-len(sizes) // ATTEMPTS) or 1], 0]:
            chosen = [home for home in mine if self.bytes[home] <= most]
            spans = [self._span(home) for home in chosen]
            offsets, in_arena = self._place(spans, _lower_bound(spans), self.effort // ATTEMPTS)
            placed = dict(zip(chosen, offsets, strict=True))
            callee = _lower_bound([self._span(home) for home in self.homes if home not in placed])
            if in_arena + callee <= bound + bound // SLACK:
                break
        return placed, in_arena, callee

    def _place(
        self, spans: Sequence[tuple[int, int, int]], bound: int, effort: int
    ) -> tuple[tuple[int, ...], int]:
        packing = place(*_columns(spans), bound=bound, effort=Effort(work=effort))
        return packing.offsets, packing.peak

    def _span(self, home: Value) -> tuple[int, int, int]:
        return (*self.live.intervals[home], self.bytes[home])

    def _temporaries(self, node: Node) -> int:
        return temporaries_bytes(node, self.sizes)

    def _total(self, roots: object) -> int:
        """Bytes of buffers, each rounded up; those without a bound not counted."""
        return sum(self.sizes(self.shared.nbytes[root]) or 0 for root in roots)  # type: ignore[attr-defined]

    def _lives_in(self) -> dict[Value, list[Value]]:
        """Home -> the values that live there, views included, in order."""
        found: dict[Value, list[Value]] = defaultdict(list)
        for value in self.names:
            home = self.live.homes.get(self.shared.roots.get(value, value))
            if home is not None:
                found[home].append(value)
        return found

    def _buffers(
        self, offsets: Sequence[int], placed: Mapping[Value, int], lives_in: Mapping[Value, list[Value]]
    ) -> tuple[Buffer, ...]:
        made = []
        for home, offset in zip(self.homes, offsets, strict=True):
            first, end = self.live.intervals[home]
            node = home.producer
            assert node is not None  # inputs and constants are no transients
            values = tuple(self.names[v] for v in lives_in[home])
            placement = placed.get(home)
            made.append(
                Buffer(
                    name=self.names[home],
                    values=values,
                    first=first,
                    end=end,
                    size=self.bytes[home],
                    offset=offset,
                    placement=placement,
                    callee=placement is None,
                    op=op_name(node.op),
                    location=_location(node),
                )
            )
        return tuple(made)

    def _label(self, node: Node) -> str:
        results = ", ".join(self.names[v] for v in node.results)
        return f"{results} = {op_name(node.op)}" if results else op_name(node.op)


def _is_placeable(home: Value, shared: Buffers) -> bool:
    """Whether generated code can make the buffer: the op takes given memory, laid out as the type says, and
    its size is known when the arena is made."""
    node, layout = home.producer, shared.layouts.get(home)
    if node is None or layout is None or home in shared.escaping or not takes_destination(node):
        return False
    return home.tensor_type.is_static and _is_plain(layout, home.tensor_type)


def _is_plain(layout: Layout, type_: TensorType) -> bool:
    """Whether the value is as dense as its type says, so that the arena's view of it is laid out the same."""
    rank = len(layout.shape)
    order = [0, *range(2, rank), 1] if type_.memory_format.startswith("channels_last") else list(range(rank))
    if type_.memory_format != CONTIGUOUS and type_.memory_format not in TORCH_FORMATS:
        return False
    strides, expected = {}, 1
    for axis in reversed(order):
        strides[axis] = 1 if layout.shape[axis] == 1 else expected
        expected = expected * layout.shape[axis]
    return layout.offset == 0 and layout.strides == tuple(strides[axis] for axis in range(rank))


def _main_device(shared: Buffers) -> object:
    """The device of most transient buffers: the arena's."""
    count: dict[object, int] = defaultdict(int)
    for root in shared.transients:
        count[root.tensor_type.device] += 1
    return max(count, key=lambda device: count[device], default=None)


def _returned(graph: Graph, shared: Buffers) -> list[Value]:
    """Roots of the buffers that the graph makes and returns."""
    roots = dict.fromkeys(
        shared.roots[v] for v in graph.results if isinstance(v, Value) and v in shared.roots
    )
    return [root for root in roots if root.producer is not None]


def _live_bytes(spans: Sequence[tuple[int, int, int]], steps: int) -> tuple[int, ...]:
    change = [0] * (steps + 1)
    for first, end, size in spans:
        change[first] += size
        change[end] -= size
    return tuple(accumulate(change[:-1]))


def _holders(made: Sequence[Buffer], step: int) -> tuple[int, ...]:
    alive = [i for i, b in enumerate(made) if b.first <= step < b.end]
    return tuple(sorted(alive, key=lambda i: -made[i].size))


def _location(node: Node) -> str:
    file, line = node.origin.locations[0] if node.origin.locations else ("", 0)
    return f"{file}:{line}" if file else ""


__all__ = ["Buffer", "MemoryPlan", "arena_bytes", "plan"]
