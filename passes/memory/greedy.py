"""Place buffers one after another, in nine orders, each by first fit and by best fit; keep the lowest plan.

First fit takes the lowest gap that is large enough, best fit the smallest. The orders by size and by breadth
are those of Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference" (2020); those that
weigh width (steps alive), area and the fullest step follow Moffitt, "MiniMalloc" (ASPLOS 2023).
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

# Placing is quadratic where many buffers are alive together: after this many pairs no further order is tried.
WORK = 2_000_000
CROWDED = 100  # neighbours a buffer from which whole arrays are faster than lists
VECTOR = 8  # pairs that an array looks at in the time of one in a list


@dataclass(frozen=True)
class Packing:
    """Offsets by position, the bytes that they take.

    Attributes:
        least: bytes that no plan is below, where a search has proven so; 0 where none has.
        nodes: choices that searches looked at.
    """

    offsets: tuple[int, ...]
    peak: int
    least: int = 0
    nodes: int = 0


def pack(
    lower: Sequence[int],
    upper: Sequence[int],
    size: Sequence[int],
    *,
    bound: int = 0,
    seconds: float | None = None,
) -> Packing:
    """Place buffers that are alive in steps [lower, upper) so that those alive together do not overlap.

    Args:
        bound: stop as soon as a plan takes no more than this: the lower bound, say.
        seconds: start no further order after this time; at least one is tried.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    offsets = [0] * len(size)
    peak = bound
    for group in groups(lower, upper):
        # What lives at another time is never in the way, and no group need be better than the worst.
        problem = _Problem([lower[i] for i in group], [upper[i] for i in group], [size[i] for i in group])
        placed = problem.best(peak, deadline)
        for i, offset in zip(group, placed, strict=True):
            offsets[i] = offset
            peak = max(peak, offset + size[i])
    return Packing(tuple(offsets), max((o + s for o, s in zip(offsets, size, strict=True)), default=0))


def groups(lower: Sequence[int], upper: Sequence[int]) -> Iterator[list[int]]:
    """Buffers cut apart at the steps that none lives across."""
    group: list[int] = []
    reach = 0
    for i in sorted(range(len(lower)), key=lambda i: (lower[i], upper[i])):
        if group and lower[i] >= reach:
            yield group
            group = []
        group.append(i)
        reach = max(reach, upper[i])
    if group:
        yield group


class _Problem:
    """One stretch of time."""

    def __init__(self, lower: list[int], upper: list[int], size: list[int]) -> None:
        self.lower, self.upper, self.size = lower, upper, size
        self.count = len(size)
        ones = [1] * self.count
        self.pairs = sum(_met(lower, upper, ones))  # each buffer with itself counted too
        self.crowded = self.pairs > CROWDED * self.count
        self.neighbours = [] if self.crowded else self._neighbours()
        self.work = self.count**2 // VECTOR if self.crowded else self.pairs

    def _neighbours(self) -> list[list[int]]:
        """For each buffer, those alive with it."""
        found: list[list[int]] = [[] for _ in range(self.count)]
        alive: list[tuple[int, int]] = []  # (upper, buffer), soonest to end first
        for i in sorted(range(self.count), key=lambda i: self.lower[i]):
            ended = next((k for k, (end, _) in enumerate(alive) if end > self.lower[i]), len(alive))
            del alive[:ended]
            for _, j in alive:
                found[i].append(j)
                found[j].append(i)
            insort(alive, (self.upper[i], i))
        return found

    def orders(self) -> Iterator[list[int]]:
        """Nine orders of the buffers, most promising first. Ties go by position: one input, one result."""
        size, lower, upper = self.size, self.lower, self.upper
        width = [end - start for start, end in zip(lower, upper, strict=True)]
        area = [s * w for s, w in zip(size, width, strict=True)]
        fullest = self._fullest()
        met = _met(lower, upper, size)
        keys = (
            lambda i: (-size[i], -width[i]),
            lambda i: (-fullest[i], -size[i]),
            lambda i: (-area[i], -size[i]),
            lambda i: (-width[i], -size[i]),
            lambda i: (-fullest[i], -width[i], -size[i]),
            lambda i: (-fullest[i], -area[i]),
            lambda i: (lower[i], -size[i]),
            lambda i: (-upper[i], -size[i]),
            lambda i: (-met[i], -size[i]),
        )
        for key in keys:
            yield sorted(range(self.count), key=key)

    def _fullest(self) -> list[int]:
        """For each buffer, the most bytes alive at a step of its life."""
        steps = sorted({*self.lower, *self.upper})
        at = {step: k for k, step in enumerate(steps)}
        change = [0] * len(steps)
        spans = list(zip(self.lower, self.upper, strict=True))
        for (start, end), size in zip(spans, self.size, strict=True):
            change[at[start]] += size
            change[at[end]] -= size
        alive = list(accumulate(change))
        return [max(alive[at[start] : at[end]], default=0) for start, end in spans]

    def best(self, bound: int, deadline: float | None) -> list[int]:
        """The lowest of the plans; the first that takes no more than `bound` bytes is good enough."""
        best: list[int] = []
        peak, work = -1, 0
        place = self._place_crowded if self.crowded else self._place
        for order in self.orders():
            for best_fit in (False, True):
                late = work + self.work > WORK or (deadline is not None and time.monotonic() > deadline)
                if best and late:
                    return best
                work += self.work
                placed = place(order, best_fit, peak if best else None)
                if placed is None:
                    continue
                best = placed
                peak = max((o + s for o, s in zip(placed, self.size, strict=True)), default=0)
                if peak <= bound:
                    return best
        return best

    def _place(self, order: Sequence[int], best_fit: bool, limit: int | None) -> list[int] | None:
        """Offsets, or None as soon as a buffer would end at or above `limit`."""
        size, neighbours = self.size, self.neighbours
        offsets = [-1] * self.count
        for i in order:
            spans = sorted([(offsets[j], size[j]) for j in neighbours[i] if offsets[j] >= 0])
            offset = _best_fit(spans, size[i]) if best_fit else _first_fit(spans, size[i])
            if limit is not None and offset + size[i] >= limit:
                return None
            offsets[i] = offset
        return offsets

    def _place_crowded(self, order: Sequence[int], best_fit: bool, limit: int | None) -> list[int] | None:
        """The same by whole arrays: the placed buffers in order of offset, those in the way by a mask."""
        lower, upper, offset, end = (np.empty(self.count, np.int64) for _ in range(4))
        offsets = [-1] * self.count
        for placed, i in enumerate(order):
            near = (lower[:placed] < self.upper[i]) & (upper[:placed] > self.lower[i])
            starts, tops = offset[:placed][near], np.maximum.accumulate(end[:placed][near])
            found = _gap(starts, tops, self.size[i], best_fit)
            if limit is not None and found + self.size[i] >= limit:
                return None
            offsets[i] = found
            at = int(np.searchsorted(offset[:placed], found, "right"))
            new = (self.lower[i], self.upper[i], found, found + self.size[i])
            for column, number in zip((lower, upper, offset, end), new, strict=True):
                column[at + 1 : placed + 1] = column[at:placed]
                column[at] = number
        return offsets


def _met(lower: Sequence[int], upper: Sequence[int], weight: Sequence[int]) -> list[int]:
    """For each buffer, the weight of all that are alive at a step of its life, its own included."""
    starts = sorted(zip(lower, weight, strict=True))
    ends = sorted(zip(upper, weight, strict=True))
    begun = [0, *accumulate(w for _, w in starts)]
    over = [0, *accumulate(w for _, w in ends)]
    first, last = [step for step, _ in starts], [step for step, _ in ends]
    return [
        begun[bisect_left(first, end)] - over[bisect_right(last, start)]
        for start, end in zip(lower, upper, strict=True)
    ]


def _gap(starts: NDArray[np.int64], tops: NDArray[np.int64], size: int, best_fit: bool) -> int:
    """The offset of the lowest or smallest gap below the starts that takes `size`; else above everything."""
    if not len(starts):
        return 0
    floors = np.concatenate(([0], tops[:-1]))
    gaps = starts - floors
    fits = np.flatnonzero(gaps >= size)
    if not len(fits):
        return int(tops[-1])
    return int(floors[fits[gaps[fits].argmin() if best_fit else 0]])


def _first_fit(spans: list[tuple[int, int]], size: int) -> int:
    """The lowest offset at which `size` bytes are free between (offset, size) spans in order."""
    top = 0
    for offset, taken in spans:
        if offset - top >= size:
            return top
        if offset + taken > top:
            top = offset + taken
    return top


def _best_fit(spans: list[tuple[int, int]], size: int) -> int:
    """The offset of the smallest gap that takes `size` bytes; above everything where none does."""
    top, best, smallest = 0, -1, -1
    for offset, taken in spans:
        gap = offset - top
        if gap >= size and (best < 0 or gap < smallest):
            best, smallest = top, gap
        if offset + taken > top:
            top = offset + taken
    return top if best < 0 else best


__all__ = ["Packing", "groups", "pack"]
