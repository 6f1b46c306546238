"""Exact and beam search over the sets of tasks that have run.

The bytes alive after a set of tasks has run depend on the set alone, so a set reached at two peaks need be
followed from the lower one only (Ahn et al., "Ordering Chaos", MLSys 2020, search the same space by dynamic
programming). Two more things keep the space small:

- A safe move, a task that fits under the peak so far and leaves no more alive than before, is made at once.
  The bytes alive are a submodular function of the set: what the move saves now it saves at least later. (That
  holds with writing in place too, since what is written over is as large as what is written.)
- Both ends: one search runs tasks from the start, another takes them back from the end. An order exists only
  if both get through, so the first to run dry has proven that none does; one direction's poor choices are
  rarely the other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from typing import Any, NamedTuple

from passes.ordering.problem import Problem

FLOOR_TASKS = 300  # up to here the lower bound looks at each pair of task and buffer


@dataclass
class Budget:
    """Moves that may still be looked at; shared by the searches of one pass, so that its time is bounded."""

    moves: int


class State(NamedTuple):
    """A set of tasks that have run, and how: bytes alive, peak so far, tasks to move next, the way here."""

    done: int
    live: int
    peak: int
    ready: tuple[int, ...]
    way: tuple[Any, int] | None


@dataclass(frozen=True)
class Found:
    """What an exact search has found.

    Attributes:
        order: the best order below the limit, or None.
        bound: no order has a lower peak than this (the limit, where none is below it).
        certain: whether `order` is the best there is, or none is below the limit.
    """

    order: list[int] | None
    bound: int
    certain: bool


class Walk:
    """Moves in one direction: tasks run, or are taken back from the end. Sets of tasks are bit masks."""

    def __init__(self, problem: Problem, budget: Budget, *, backward: bool = False) -> None:
        self.problem = problem
        self.budget = budget
        self.backward = backward
        everything = (1 << problem.count) - 1
        self.first, self.last = (everything, 0) if backward else (0, everything)
        self.next = problem.before if backward else problem.after
        self.needs = [_mask(tasks) for tasks in (problem.after if backward else problem.before)]
        self.growth = [sum(problem.sizes[b] for b in made) for made in problem.makes]
        readers = [_mask(tasks) for tasks in problem.readers]
        self.frees = [
            [(readers[b], problem.sizes[b]) for b in touched if problem.sizes[b] and not problem.kept[b]]
            for touched in problem.touches
        ]
        self.reuses = [
            [(readers[read], problem.sizes[made]) for made, read in pairs if not problem.kept[read]]
            for pairs in problem.reuses
        ]

    def cost(self, done: int, live: int, task: int) -> tuple[int, int]:
        """(bytes alive while the task runs, bytes alive on its other side)."""
        now = done if self.backward else done | 1 << task
        freed = 0
        for readers, size in self.frees[task]:
            if readers & now == readers:
                freed += size
        during = live + (freed if self.backward else self.growth[task])
        there = during - (self.growth[task] if self.backward else freed)
        for readers, size in self.reuses[task]:
            if readers & now == readers:
                during -= size
                break
        return during, there

    def start(self, peak: int) -> State:
        problem = self.problem
        kept = problem.base + sum(s for s, k in zip(problem.sizes, problem.kept, strict=True) if k)
        ready = tuple(t for t in range(problem.count) if not self.needs[t])
        live = kept if self.backward else problem.start
        return State(self.first, live, max(peak, live), ready, None)

    def move(self, state: State, task: int, during: int, there: int) -> State:
        done = state.done ^ 1 << task
        waiting = done if self.backward else ~done
        needs = self.needs
        ready = [t for t in state.ready if t != task]
        ready += [t for t in self.next[task] if not needs[t] & waiting]
        return State(done, there, max(state.peak, during), tuple(ready), (state.way, task))

    def settle(self, state: State) -> State:
        """Make safe moves until there is none."""
        moved = True
        while moved and self.budget.moves > 0:
            moved = False
            done, live, peak, ready, _ = state
            for task in ready:
                self.budget.moves -= 1
                during, there = self.cost(done, live, task)
                if during <= peak and there <= live:
                    state = self.move(state, task, during, there)
                    moved = True
                    break
        return state

    def followers(self, state: State, limit: int) -> Iterator[State]:
        """What one more move leads to, where the peak stays below `limit`."""
        self.budget.moves -= len(state.ready)
        for task in state.ready:
            during, there = self.cost(state.done, state.live, task)
            if during < limit:
                yield self.settle(self.move(state, task, during, there))

    def moved(self, state: State) -> int:
        """How many tasks have been moved."""
        run = state.done.bit_count()
        return self.problem.count - run if self.backward else run


class _Front:
    """The states that one direction has reached: the best of each set, those not yet followed on a heap."""

    def __init__(self, walk: Walk, floor: int) -> None:
        self.walk = walk
        first = walk.start(floor)
        settled = walk.settle(first)
        self.best = {first.done: first, settled.done: settled}
        self.heap = [(settled.peak, 0, 0, settled)]
        self.effort = 0

    def top(self) -> int | None:
        """The least peak of what is to be followed; None at the end."""
        while self.heap and self.best[self.heap[0][3].done] is not self.heap[0][3]:
            heappop(self.heap)
        return self.heap[0][0] if self.heap else None

    def follow(self, limit: int) -> Iterator[State]:
        """Follow the state with the least peak, of these the farthest; gives the states that are new or
        better."""
        before = self.walk.budget.moves
        state = heappop(self.heap)[3]
        for following in self.walk.followers(state, limit):
            known = self.best.get(following.done)
            if known is None or following.peak < known.peak:
                self.best[following.done] = following
                entry = (following.peak, -self.walk.moved(following), len(self.best) + len(self.heap))
                heappush(self.heap, (*entry, following))
                yield following
        self.effort += before - self.walk.budget.moves


class Search:
    """Searches one problem; an order with a peak of `enough` is as good as any."""

    def __init__(self, problem: Problem, budget: Budget, enough: int = 0) -> None:
        self.problem = problem
        self.budget = budget
        self.enough = enough

    def exact(self, limit: int) -> Found:
        """Best first on the peak, from both ends in turn: an order with the least peak, if below `limit`."""
        if self.floor >= limit:
            return Found(None, limit, True)
        fronts = [_Front(Walk(self.problem, self.budget, backward=b), self.floor) for b in (False, True)]
        order: list[int] | None = None
        reached = [(front, state) for front in fronts for state in front.best.values()]
        while True:
            for front, state in reached:
                other = fronts[front is fronts[0]]
                meeting = other.best.get(state.done)
                peak = max(state.peak, meeting.peak) if meeting is not None else limit
                if meeting is not None and peak < limit:
                    order = _joined(state, meeting) if front is fronts[0] else _joined(meeting, state)
                    limit = peak
            tops = [front.top() for front in fronts]
            if any(top is None or top >= limit for top in tops):
                return Found(order, limit, True)
            if self.budget.moves <= 0:
                return Found(order, max(top for top in tops if top is not None), False)
            front = min(fronts, key=lambda f: f.effort)
            reached = [(front, state) for state in front.follow(limit)]

    def beam(self, width: int, limit: int, *, backward: bool = False) -> list[int] | None:
        """Follow the `width` best sets of each size to an order with a peak below `limit`, if one is met.

        Fewer than `width` where the budget, spread over the sizes to come, does not suffice.
        """
        walk = Walk(self.problem, self.budget, backward=backward)
        first = walk.settle(walk.start(self.floor))
        levels: list[dict[int, State]] = [{} for _ in range(self.problem.count + 1)]
        levels[walk.moved(first)][first.done] = first
        for size, level in enumerate(levels[:-1]):
            kept = sorted(level.values(), key=lambda s: (s.peak, s.live))[:width]
            level.clear()
            reserve = self.budget.moves - self.budget.moves // (self.problem.count - size)
            for i, state in enumerate(kept):
                if self.budget.moves <= (reserve if i else 0):
                    break
                for following in walk.followers(state, limit):
                    there = levels[walk.moved(following)]
                    known = there.get(following.done)
                    if known is None or following.peak < known.peak:
                        there[following.done] = following
        end = levels[-1].get(walk.last)
        if end is None:
            return None
        order = _way(end)
        return order if backward else order[::-1]

    # -- bounds ------------------------------------------------------------------------------------------

    @cached_property
    def floor(self) -> int:
        """`enough`, or the bytes that every order needs at some step: what is surely alive while a task runs.

        That is what it makes and reads, and what was made for it or before it and is needed after it.
        """
        problem = self.problem
        if problem.count > FLOOR_TASKS:
            return max(problem.floor, self.enough)
        ancestors, descendants = self._ancestors(), self._descendants()
        readers = [_mask(tasks) for tasks in problem.readers]
        makers = [0] * len(problem.sizes)
        for task, made in enumerate(problem.makes):
            for buffer in made:
                makers[buffer] = 1 << task
        most = max(problem.floor, self.enough)
        for task, touched in enumerate(problem.touches):
            surely = problem.base - max((problem.sizes[made] for made, _ in problem.reuses[task]), default=0)
            for buffer, size in enumerate(problem.sizes):
                there = not makers[buffer] or makers[buffer] & ancestors[task]
                needed = problem.kept[buffer] or readers[buffer] & descendants[task]
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


def _way(state: State) -> list[int]:
    """The moves that led to a state, the last one first."""
    order: list[int] = []
    way = state.way
    while way is not None:
        way, task = way
        order.append(task)
    return order


def _joined(forward: State, backward: State) -> list[int]:
    """The order through a set that both directions have reached."""
    return _way(forward)[::-1] + _way(backward)


__all__ = ["Budget", "Found", "Search"]
