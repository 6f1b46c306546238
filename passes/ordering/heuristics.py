"""Orders found in near-linear time: least memory first, from either end, and depth first from the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

from passes.ordering.problem import Problem, Progress

Key = Callable[[int, int, int], tuple[int, ...]]  # (bytes during, bytes after, task) -> least first


def by_growth(during: int, after: int, task: int) -> tuple[int, ...]:
    """The task that leaves least alive; then the one that needs least meanwhile."""
    return (after, during, task)


def by_need(during: int, after: int, task: int) -> tuple[int, ...]:
    """The task that needs least while it runs; then the one that leaves least."""
    return (during, after, task)


def least_memory_first(problem: Problem, key: Key, *, backward: bool = False) -> list[int]:
    """Of the tasks that can run, always the one with the least key; or, from the end, of those that can be
    last.

    What a task changes differs only once it becomes the last reader of a buffer (from the end: once it no
    longer is), so a heap of the differences, with stale entries left in, is enough.
    """
    state = Progress(problem, backward=backward)
    following = problem.before if backward else problem.after
    missing = [len(needed) for needed in (problem.after if backward else problem.before)]

    def entry(task: int) -> tuple[tuple[int, ...], int]:
        during, there = state.cost(task)
        return key(during - state.live, there - state.live, -task if backward else task), task

    heap = [entry(task) for task in range(problem.count) if not missing[task]]
    heapify(heap)
    done = [False] * problem.count
    order: list[int] = []
    while heap:
        _, task = heappop(heap)
        if done[task]:
            continue
        done[task] = True
        order.append(task)
        state.move(task)
        for other in following[task]:
            missing[other] -= 1
            if not missing[other]:
                heappush(heap, entry(other))
        for buffer in problem.touches[task]:
            readers = problem.readers[buffer]
            if state.left[buffer] == (len(readers) - 1 if backward else 1):
                for other in readers:
                    if not missing[other] and not done[other]:
                        heappush(heap, entry(other))
    return order[::-1] if backward else order


def depth_first(problem: Problem) -> list[int]:
    """Each task right before the first that waits for it; of its operands, those that need most memory first.

    The order of the operands is Sethi and Ullman's (1970): exact on trees.
    """
    need = _need(problem)
    done = [False] * problem.count
    order: list[int] = []
    sinks = [task for task in range(problem.count) if not problem.after[task]]
    stack = sinks[::-1]
    while stack:
        task = stack[-1]
        waiting = [t for t in problem.before[task] if not done[t]]
        if waiting:
            stack += sorted(waiting, key=lambda t: (need[t], -t))
            continue
        stack.pop()
        if not done[task]:
            done[task] = True
            order.append(task)
    return order


def heuristics(problem: Problem) -> Iterator[list[int]]:
    """Orders worth a look, each found in near-linear time."""
    for backward in (False, True):
        for key in (by_growth, by_need):
            yield least_memory_first(problem, key, backward=backward)
    yield depth_first(problem)


def _need(problem: Problem) -> list[int]:
    """Per task, bytes to compute it alone beyond what it leaves, were the graph a tree."""
    need: list[int] = []
    left = [sum(problem.sizes[b] for b in made) for made in problem.makes]
    for task, needed in enumerate(problem.before):
        most = held = 0
        for other in sorted(needed, key=lambda t: -need[t]):
            most = max(most, held + need[other] + left[other])
            held += left[other]
        need.append(max(most, held + left[task]) - left[task])
    return need


__all__ = ["by_growth", "by_need", "depth_first", "heuristics", "least_memory_first"]
