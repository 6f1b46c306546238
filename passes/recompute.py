"""Compute cheap values again where keeping them would take more memory than there is.

    %0 = exp(%x)                         %0 = exp(%x)
    %1 = conv(%0, ...)                   %1 = conv(%0, ...)
    %2 = conv(%1, ...)        ==>        %2 = conv(%1, ...)        %0 is not alive here any more
    %3 = add(%2, %0)                     %3 = exp(%x)
                                         %4 = add(%2, %3)

Of the buffers that are alive at the fullest step but not needed in it, the one is given up whose value costs
least to compute again for what that saves; and so on, until the planned arena fits `max_memory`. Runs after
scheduling: it keeps the order of what is there. The counts tell what it costs in FLOPs and in bytes moved.

Does not fire without `max_memory`, where the plan fits already, or for values that took more than `intensity`
FLOPs a byte (products, convolutions, attention) or whose cost has no bound, random numbers, effects,
conditions, what reads memory that the graph writes to, or what the graph returns. Where the plan cannot be
made to fit, it raises an error that names the least peak that was reached, and what is alive there.

Kumar et al., "Efficient Rematerialization for Deep Networks" (NeurIPS 2019), and Chen et al., "Training Deep
Nets with Sublinear Memory Cost" (2016), describe the trade.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from capture.errors import CaptureError
from capture.ir import Graph, Node, Value, op_name
from capture.ir.cost import cost
from capture.ir.text import names
from capture.wording import human_size
from passes.base import Pass, PassResult, make_pass, register_pass
from passes.buffers import buffers
from passes.liveness import Liveness, liveness_of
from passes.memory.plan import arena_bytes
from passes.memory.sizes import Sizes, default_alignment
from passes.ordering import problem_of
from passes.rematerialize import Replay, is_recomputable

TRIALS = 8  # buffers tried at each fullest step, the best first
CALL = 64  # bytes that could be moved in the time of a call
HOLDERS = 4  # of the fullest step that an error names


@register_pass
@dataclass(frozen=True)
class Recompute(Pass):
    name = "recompute"
    max_memory: int = 0  # bytes that the arena may take; 0: any number
    intensity: float = 8.0  # FLOPs for each byte that a value may have taken to be computed again

    def run(self, graph: Graph) -> PassResult:
        if not self.max_memory:
            return PassResult(False)
        work = _Work(graph, self.max_memory, self.intensity)
        work.check_floor()
        before = work.arena()
        while before > self.max_memory and work.step():
            pass
        arena = before
        if work.replay.made:  # sharing found anew, whatever was kept up to date on the way
            arena = work.final_arena()
        if arena > self.max_memory:
            raise work.error(before, arena)
        made = work.replay.made
        if not made:
            return PassResult(False)
        costs = [spent for node in made if (spent := work.cost_of(node)) is not None]
        stats = {
            "recomputed": len(made),
            "extra_flops": sum(flops for flops, _ in costs),
            "extra_bytes": sum(moved for _, moved in costs),
            "arena_bytes": arena,
            "saved_bytes": before - arena,
        }
        return PassResult(True, stats)


def within(pipeline: Sequence[str], max_memory: int) -> list[str]:
    """The pipeline that plans within so many bytes: `recompute` right before its plan, or both at its end."""
    steps = list(pipeline)
    plans = [i for i, step in enumerate(steps) if make_pass(step).name == "memory"]
    at = plans[-1] if plans else len(steps)
    return [*steps[:at], f"recompute{{max_memory={max_memory}}}", *(steps[at:] or ["memory"])]


class _Work:
    """The graph on its way below the budget."""

    def __init__(self, graph: Graph, budget: int, intensity: float) -> None:
        self.graph = graph
        self.budget = budget
        self.intensity = intensity
        self.sizes = Sizes(graph, alignment=default_alignment(graph))
        self.most = Sizes(graph)
        self.replay = Replay(graph, buffers(graph), self.may_repeat)

    def cost_of(self, node: Node) -> tuple[int, int] | None:
        """(FLOPs, bytes read and written) of a node, at the most that its sizes can be; None: without end."""
        spent = cost(node)
        flops, read, written = map(self.most, (spent.flops, spent.bytes_read, spent.bytes_written))
        return None if flops is None or read is None or written is None else (flops, read + written)

    def may_repeat(self, node: Node | None) -> bool:
        """Whether the node may be computed again, and costs little."""
        if node is None:
            return False
        spent = self.cost_of(node)
        return spent is not None and is_recomputable(node) and spent[0] <= self.intensity * max(spent[1], 1)

    def live(self) -> Liveness:
        return liveness_of(self.replay.shared(), list(self.graph.nodes), self.graph)

    def arena(self) -> int:
        return arena_bytes(self.replay.shared(), self.live(), self.sizes)[0]

    def final_arena(self) -> int:
        shared = buffers(self.graph)
        return arena_bytes(shared, liveness_of(shared, list(self.graph.nodes), self.graph), self.sizes)[0]

    def bytes_by_step(self, live: Liveness) -> list[int]:
        change = [0] * (live.steps + 1)
        for home, (first, end) in live.intervals.items():
            nbytes = self.size(home)
            change[first] += nbytes
            change[end] -= nbytes
        for step in range(1, live.steps):
            change[step] += change[step - 1]
        return change[: live.steps]

    def size(self, root: Value) -> int:
        return self.sizes(self.replay.nbytes[root]) or 0

    def excess(self, alive: Sequence[int]) -> tuple[int, int]:
        """Of the bytes alive at each step: (the most, how far they are above the budget in all)."""
        return max(alive, default=0), sum(max(0, n - self.budget) for n in alive)

    def step(self) -> bool:
        """Give up the buffer that is best given up at a fullest step; False where none lowers the excess."""
        live = self.live()
        alive = self.bytes_by_step(live)
        before = fullest, _ = self.excess(alive)
        if not before[1]:
            return False
        over = [0, *accumulate(n > self.budget for n in alive)]
        steps = self.replay.steps_by_memory()
        for at in [i for i, n in enumerate(alive) if n == fullest]:
            for root in self._idle(live, at, steps, over):
                trial = self.replay.give_up(root, at)
                if trial is None:
                    continue
                after = self.excess(self.bytes_by_step(self.live()))
                if after[0] <= before[0] and after[1] < before[1]:
                    return True
                self.replay.undo(trial)
        return False

    def _idle(
        self, live: Liveness, at: int, steps: Mapping[Value, list[int]], over: Sequence[int]
    ) -> list[Value]:
        """Buffers alive at a step that does not touch them, and cheap to make again: the best of them.

        Best is what relieves most bytes of steps above the budget for each byte moved or FLOP done once more.
        """
        found: list[tuple[float, Value]] = []
        for root, (first, end) in live.lifetimes.items():
            if not first < at < end - 1 or at in steps[root] or not self.may_repeat(root.producer):
                continue
            i = bisect(steps[root], at)
            if not 0 < i < len(steps[root]):
                continue
            relieved = over[steps[root][i]] - over[steps[root][i - 1] + 1]
            spent = self.cost_of(root.producer) if root.producer is not None else None
            assert spent is not None  # or it could not be made again
            found.append((self.size(root) * relieved / (sum(spent) + CALL), root))
        found.sort(key=lambda pair: -pair[0])
        return [root for worth, root in found[:TRIALS] if worth]

    def check_floor(self) -> None:
        """Stop at once where what a single node makes and reads does not fit.

        Raises:
            CaptureError: names the node.
        """
        problem = problem_of(self.graph, self.replay.shared(), self.sizes)
        if problem.floor <= self.budget:
            return
        at = problem.fullest
        live = self.live()
        touched = dict.fromkeys(live.homes[r] for r in self.replay.touched(at) if r in live.homes)
        raise CaptureError(
            f"the plan cannot fit {human_size(self.budget)}: one operator needs {human_size(problem.floor)}",
            where=list(self.graph.nodes)[at].where,
            why=self._held(at, list(touched)),
            hint="a higher --max-memory, or a smaller batch",
        )

    def error(self, before: int, arena: int) -> CaptureError:
        """Why the budget was not met: what was reached, and what is alive where the graph is fullest."""
        live = self.live()
        alive = self.bytes_by_step(live)
        at = max(range(len(alive)), key=alive.__getitem__)
        held = [home for home, (first, end) in live.intervals.items() if first <= at < end]
        return CaptureError(
            f"the plan does not fit {human_size(self.budget)}: {human_size(arena)} is the least reached",
            where=list(self.graph.nodes)[at].where,
            why=f"{human_size(before)} without computing anything twice; {self._held(at, held)}",
            hint="a higher --max-memory, a smaller batch, or recompute{intensity=...} to repeat dearer ones",
        )

    def _held(self, at: int, homes: list[Value]) -> str:
        """What is alive at a step, the largest first."""
        homes = sorted(homes, key=lambda home: -self.size(home))
        shown = names(self.graph)
        rows = [f"{shown[h]} of {_maker(h)} ({human_size(self.size(h))})" for h in homes[:HOLDERS]]
        more = f" and {len(homes) - HOLDERS} more" if len(homes) > HOLDERS else ""
        return f"fullest at {op_name(list(self.graph.nodes)[at].op)}: {', '.join(rows)}{more}"


def _maker(home: Value) -> str:
    return op_name(home.producer.op) if home.producer is not None else "an input"


__all__ = ["Recompute", "within"]
