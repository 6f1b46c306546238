"""Orders found in near-linear time: least peak memory first, and depth first from the results."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from passes.ordering.problem import Problem, Progress

Key = Callable[[int, int, int], tuple[int, ...]]  # (bytes during, bytes after, task) -> least first


def by_growth(during: int, after: int, task: int) -> tuple[int, ...]:
    """The task that leaves least alive; then the one that needs least meanwhile."""
    return (after, during, task)


def by_need(during: int, after: int, task: int) -> tuple[int, ...]:
    """The task that needs least while it runs; then the one that leaves least."""
    return (during, after, task)


def least_memory_first(problem: Problem, key: Key) -> list[int]:
    """Of the tasks that can run, always the one with the least key.

    What a task adds to the bytes alive changes only when it becomes the last reader of a buffer, so a heap of
    the differences, with stale entries left in, is enough.
    """
    state = Progress(problem)
    missing = [len(needed) for needed in problem.before]

    def entry(task: int) -> tuple[tuple[int, ...], int]:
        during, after = state.cost(task)
        return key(during - state.live, after - state.live, task), task

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
        state.run(task)
        for later in problem.after[task]:
            missing[later] -= 1
            if not missing[later]:
                heappush(heap, entry(later))
        for buffer in problem.touches[task]:
            if state.waiting[buffer] == 1:
                last = next(t for t in problem.readers[buffer] if not done[t])
                if not missing[last]:
                    heappush(heap, entry(last))
    return order


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


__all__ = ["by_growth", "by_need", "depth_first", "least_memory_first"]
