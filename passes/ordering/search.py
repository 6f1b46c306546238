"""Exact and beam search over the sets of tasks that have run.

The bytes alive after a set of tasks has run depend on the set alone, so a set reached at two peaks need be
followed from the lower one only (Ahn et al., "Ordering Chaos", MLSys 2020, search the same space by dynamic
programming). A safe move, a task that fits under the peak so far and leaves no more alive than before, is
made at once: it can only lower what any other task finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from typing import NamedTuple

from passes.ordering.problem import Problem

FLOOR_TASKS = 300  # up to here the lower bound looks at each pair of task and buffer


@dataclass
class Budget:
    """Moves that may still be looked at; shared by the searches of one pass, so that its time is bounded."""

    moves: int


class State(NamedTuple):
    """A set of tasks that have run, and how: bytes alive, peak so far, the ready tasks, and the way here."""

    done: int
    live: int
    peak: int
    ready: tuple[int, ...]
    way: tuple[object, int] | None


class Search:
    """Searches one problem. Sets of tasks are bit masks."""

    def __init__(self, problem: Problem, budget: Budget) -> None:
        self.problem = problem
        self.budget = budget
        self.all = (1 << problem.count) - 1
        self.before = [_mask(needed) for needed in problem.before]
        self.readers = [_mask(tasks) for tasks in problem.readers]
        self.growth = [sum(problem.sizes[b] for b in made) for made in problem.makes]

    # -- moves -------------------------------------------------------------------------------------------

    def cost(self, done: int, live: int, task: int) -> tuple[int, int]:
        """(bytes alive while the task runs, bytes alive after it) where `done` have run."""
        problem = self.problem
        now = done | 1 << task
        during = live + self.growth[task]
        after = during
        for buffer in problem.touches[task]:
            if not problem.kept[buffer] and not self.readers[buffer] & ~now:
                after -= problem.sizes[buffer]
        for made, read in problem.reuses[task]:
            if not problem.kept[read] and not self.readers[read] & ~now:
                during -= problem.sizes[made]
                break
        return during, after

    def start(self, peak: int) -> State:
        problem = self.problem
        ready = tuple(t for t in range(problem.count) if not problem.before[t])
        return self.settle(State(0, problem.start, peak, ready, None))

    def run(self, state: State, task: int, during: int, after: int) -> State:
        done = state.done | 1 << task
        ready = tuple(t for t in state.ready if t != task)
        ready += tuple(t for t in self.problem.after[task] if not self.before[t] & ~done)
        return State(done, after, max(state.peak, during), ready, (state.way, task))

    def settle(self, state: State) -> State:
        """Make safe moves until there is none."""
        moved = True
        while moved and self.budget.moves > 0:
            moved = False
            for task in state.ready:
                self.budget.moves -= 1
                during, after = self.cost(state.done, state.live, task)
                if during <= state.peak and after <= state.live:
                    state = self.run(state, task, during, after)
                    moved = True
                    break
        return state

    def followers(self, state: State, limit: int) -> Iterator[State]:
        """What one more task leads to, where the peak stays below `limit`."""
        for task in state.ready:
            self.budget.moves -= 1
            during, after = self.cost(state.done, state.live, task)
            if during < limit:
                yield self.settle(self.run(state, task, during, after))

    # -- searches ----------------------------------------------------------------------------------------

    def exact(self, limit: int) -> tuple[list[int] | None, bool]:
        """Best first on the peak: an order whose peak is the least and below `limit`.

        Returns:
            (order or None where there is none below the limit, whether this is certain: the budget sufficed).
        """
        if self.floor >= limit:
            return None, True
        first = self.start(self.floor)
        best = {first.done: first.peak}
        heap = [(first.peak, -first.done.bit_count(), 0, first)]
        pushed = 0
        while heap:
            peak, _, _, state = heappop(heap)
            if state.done == self.all:
                return _tasks(state), True
            if best[state.done] < peak:
                continue
            if self.budget.moves <= 0:
                return None, False
            for following in self.followers(state, limit):
                known = best.get(following.done)
                if known is None or following.peak < known:
                    best[following.done] = following.peak
                    pushed += 1
                    heappush(heap, (following.peak, -following.done.bit_count(), pushed, following))
        return None, True

    def beam(self, width: int, limit: int) -> list[int] | None:
        """Follow the `width` best sets of each size to an order with a peak below `limit`, if one is met."""
        first = self.start(self.floor)
        levels: list[dict[int, State]] = [{} for _ in range(self.problem.count + 1)]
        levels[first.done.bit_count()][first.done] = first
        for level in levels[:-1]:
            kept = sorted(level.values(), key=lambda s: (s.peak, s.live))[:width]
            level.clear()
            for state in kept:
                if self.budget.moves <= 0:
                    return None
                for following in self.followers(state, limit):
                    there = levels[following.done.bit_count()]
                    known = there.get(following.done)
                    if known is None or following.peak < known.peak:
                        there[following.done] = following
        ends = levels[-1].get(self.all)
        return None if ends is None else _tasks(ends)

    # -- bounds ------------------------------------------------------------------------------------------

    @cached_property
    def floor(self) -> int:
        """Bytes that every order needs at some step: for each task, what is surely alive while it runs.

        That is what it makes and reads, and what was made for it or before it and is needed after it.
        """
        problem = self.problem
        if problem.count > FLOOR_TASKS:
            return problem.floor
        ancestors, descendants = self._ancestors(), self._descendants()
        makers = [0] * len(problem.sizes)
        for task, made in enumerate(problem.makes):
            for buffer in made:
                makers[buffer] = 1 << task
        most = problem.floor
        for task, touched in enumerate(problem.touches):
            surely = problem.base - max((problem.sizes[made] for made, _ in problem.reuses[task]), default=0)
            for buffer, size in enumerate(problem.sizes):
                there = not makers[buffer] or makers[buffer] & ancestors[task]
                needed = problem.kept[buffer] or self.readers[buffer] & descendants[task]
                if (there and needed) or buffer in touched:
                    surely += size
            most = max(most, surely)
        return most

    def _ancestors(self) -> list[int]:
        found: list[int] = []
        for needed in self.problem.before:
            found.append(_mask(needed))
            for task in needed:
                found[-1] |= found[task]
        return found

    def _descendants(self) -> list[int]:
        found = [0] * self.problem.count
        for task in reversed(range(self.problem.count)):
            for later in self.problem.after[task]:
                found[task] |= 1 << later | found[later]
        return found


def _mask(tasks: tuple[int, ...]) -> int:
    mask = 0
    for task in tasks:
        mask |= 1 << task
    return mask


def _tasks(state: State) -> list[int]:
    """The order that led to a state."""
    order: list[int] = []
    way = state.way
    while way is not None:
        order.append(way[1])
        way = way[0]  # type: ignore[assignment]
    return order[::-1]


__all__ = ["Budget", "Search"]
