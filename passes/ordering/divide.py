"""Divide at cuts, and order each segment by itself, as well as its size allows.

    a -> b -> c -+-> d -+-> f -> g           c and f are cuts: every task is before or after them
                 `-> e -'                    segments: a b c | d e f | g

A cut's segments can be ordered one by one: whatever the order inside, the same buffers cross the cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from passes.ordering.heuristics import heuristics
from passes.ordering.problem import Problem
from passes.ordering.search import Budget, Found, Search


@dataclass(frozen=True)
class Ordering:
    """An order, its peak, and a lower bound on the peak of every order: equal where the order is optimal."""

    order: list[int]
    peak: int
    bound: int


@dataclass
class Segment:
    """Tasks between two cuts, the problem that they are, and the best order known, as the whole's tasks."""

    tasks: list[int]
    problem: Problem
    order: list[int]
    peak: int


def best_order(problem: Problem, *, beam: int = 64, moves: int = 1_000_000) -> Ordering:
    """An order with few bytes alive at its peak: exact in segments that the budget of moves suffices for.

    Args:
        beam: width of the beam search, where the exact search gives up.
        moves: how many single moves the searches may look at, all together.
    """
    budget = Budget(moves)
    segments = [Segment(tasks, part, tasks, 0) for tasks, part in _parts(problem, hoisted(problem))]
    for segment in segments:
        _try_heuristics(segment)
    floor = 0  # no order of the whole has a lower peak: a segment below it need not be improved
    known: dict[Problem, Found] = {}  # blocks repeat: each is searched once
    for segment in sorted(segments, key=lambda s: -s.peak):
        if segment.peak <= floor:
            break
        if segment.problem not in known:
            known[segment.problem] = _search(segment, floor, beam, budget)
        found = known[segment.problem]
        if found.order is not None:
            _take(segment, found.order)
        floor = max(floor, min(found.bound, segment.peak))
    order = [task for segment in segments for task in segment.order]
    return Ordering(order, problem.peak(order), floor)


def _try_heuristics(segment: Segment) -> None:
    """The lowest peak of the given order and the near-linear ones; at a tie, the given order."""
    part = segment.problem
    segment.peak = part.peak(range(part.count))
    if part.count < 3:
        return
    for order in heuristics(part):
        _take(segment, order)


def _search(segment: Segment, floor: int, beam: int, budget: Budget) -> Found:
    """An order of the part with a lower peak, if one is found, and a lower bound of its peak.

    Args:
        floor: what the whole needs anyway; no order of the part need be better.
    """
    part = segment.problem
    share = Budget(budget.moves // 2)
    found = Search(part, share, floor).exact(segment.peak)
    budget.moves -= budget.moves // 2 - share.moves
    if found.certain:
        return found
    order, peak = found.order, segment.peak if found.order is None else part.peak(found.order)
    for backward in (True, False):
        share = Budget(budget.moves // 2)
        better = Search(part, share, floor).beam(beam, peak, backward=backward)
        budget.moves -= budget.moves // 2 - share.moves
        if better is not None:
            order, peak = better, part.peak(better)
    return Found(order, found.bound, False)


def _take(segment: Segment, order: Sequence[int]) -> None:
    """Keep the order, in the part's own numbers, where its peak is lower."""
    peak = segment.problem.peak(order)
    if peak < segment.peak:
        segment.order = [segment.tasks[t] for t in order]
        segment.peak = peak


def freeing(problem: Problem) -> list[bool]:
    """Per task, whether it makes nothing and leads to nothing that does: run early, it only frees."""
    free = [False] * problem.count
    for task in reversed(range(problem.count)):
        grows = any(problem.sizes[b] for b in problem.makes[task])
        free[task] = not grows and all(free[later] for later in problem.after[task])
    return free


def hoisted(problem: Problem) -> list[int]:
    """The given order, but tasks that only free memory run as soon as they can: at the end, where results
    often are, they would hide the cuts."""
    free = freeing(problem)
    place: list[tuple[int, int]] = []  # the task whose place it shares, itself
    for task, needed in enumerate(problem.before):
        anchor = max((place[t][0] for t in needed), default=task) if free[task] else task
        place.append((anchor, task))
    return sorted(range(problem.count), key=place.__getitem__)


def cuts(problem: Problem, order: Sequence[int]) -> list[int]:
    """Positions in `order` of tasks that every other task is before or after; those that only free do not
    count.

    All before it lead to it if each has a follower no later than it; all after it come from it if each waits
    for something no earlier.
    """
    free = freeing(problem)
    position = {task: i for i, task in enumerate(order)}
    count = problem.count
    latest = [-1] * (count + 1)  # over all before a position, the latest of their first followers
    earliest = [count] * (count + 1)  # over all from a position on, the earliest of what they last wait for
    for i, task in enumerate(order):
        first = min((position[t] for t in problem.after[task] if not free[t]), default=count)
        latest[i + 1] = latest[i] if free[task] else max(latest[i], first)
    for i, task in reversed(list(enumerate(order))):
        last = max((position[t] for t in problem.before[task]), default=-1)
        earliest[i] = min(earliest[i + 1], last)
    return [i for i in range(count) if latest[i] <= i and earliest[i + 1] >= i]


def _parts(problem: Problem, order: Sequence[int]) -> Iterator[tuple[list[int], Problem]]:
    """The segments of `order` between cuts, as tasks and as problems of their own."""
    alive: dict[int, int] = {b: len(problem.readers[b]) for b in problem.given}
    start = 0
    for end in [*(i + 1 for i in cuts(problem, order)), problem.count]:
        if start < end:
            tasks = list(order[start:end])
            yield tasks, _part(problem, tasks, alive)
            start = end


def _part(problem: Problem, tasks: list[int], alive: dict[int, int]) -> Problem:
    """The problem that `tasks` are by themselves. Brings `alive`, buffer -> readers to come, to its end."""
    local = {task: i for i, task in enumerate(tasks)}
    touched = dict.fromkeys(b for task in tasks for b in problem.touches[task])
    number = {buffer: i for i, buffer in enumerate(touched)}
    given = [b for b in touched if b in alive]
    base = problem.base + sum(problem.sizes[b] for b in alive) - sum(problem.sizes[b] for b in given)
    readers = {b: tuple(local[t] for t in problem.readers[b] if t in local) for b in touched}
    kept = []
    for buffer in touched:
        left = alive.get(buffer, len(problem.readers[buffer])) - len(readers[buffer])
        kept.append(problem.kept[buffer] or left > 0)
        if kept[-1]:
            alive[buffer] = left
        else:
            alive.pop(buffer, None)
    return Problem(
        before=tuple(tuple(local[t] for t in problem.before[task] if t in local) for task in tasks),
        sizes=tuple(problem.sizes[b] for b in touched),
        makes=tuple(tuple(number[b] for b in problem.makes[task]) for task in tasks),
        readers=tuple(readers.values()),
        kept=tuple(kept),
        reuses=tuple(tuple((number[m], number[r]) for m, r in problem.reuses[task]) for task in tasks),
        base=base,
        given=tuple(number[b] for b in given),
    )


__all__ = ["Ordering", "best_order", "cuts", "hoisted"]
