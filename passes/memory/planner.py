"""Plan greedily, and search where that is not as good as the lower bound.

    greedy: 1.3 x bound ==> search at the bound ==> at the capacity, if there is one ==> bisect in between

What is alive at other times is planned apart. The best plan found so far is kept throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd

from passes.memory.greedy import Packing, groups, pack
from passes.memory.problem import Problem
from passes.memory.search import SECOND, Effort, Search

BOUND_SHARE = 0.25  # of the effort goes into a plan at the lower bound
STEP_SHARE = 0.25  # of what is left, into one step of the bisection
MOST = 20_000  # buffers that are searched: with more, the sets of them would take gigabytes


def place(
    lower: Sequence[int],
    upper: Sequence[int],
    size: Sequence[int],
    *,
    bound: int,
    effort: Effort,
    capacity: int | None = None,
) -> Packing:
    """Place buffers that are alive in steps [lower, upper) so that those alive together do not overlap.

    Args:
        bound: the most bytes alive at one step: a plan that takes no more is not improved.
        effort: of the searches. Counted in work alone, the same input gives the same plan.
        capacity: a plan that takes no more than this is improved only by a try at the bound.
    """
    packing = pack(lower, upper, size, bound=bound, seconds=effort.seconds)
    if packing.peak <= bound:
        return packing
    offsets, least = list(packing.offsets), bound
    apart = list(groups(lower, upper))
    columns = (lower, upper, size, offsets)
    stretches = [_Stretch(*([column[i] for i in at] for column in columns)) for at in apart]
    floor = bound
    for stretch in sorted(stretches, key=lambda s: -s.peak):
        if stretch.peak <= floor:
            break
        stretch.improve(floor, capacity, effort)
        floor, least = max(floor, stretch.peak), max(least, stretch.least)
    for at, stretch in zip(apart, stretches, strict=True):
        for i, offset in zip(at, stretch.offsets, strict=True):
            offsets[i] = offset
    peak = max(offset + nbytes for offset, nbytes in zip(offsets, size, strict=True))
    return replace(packing, offsets=tuple(offsets), peak=peak, least=least, nodes=effort.nodes)


class _Stretch:
    """The buffers of one stretch of time.

    Attributes:
        offsets, peak: the best plan so far.
        least: no plan takes less; this is proven.
    """

    def __init__(self, lower: list[int], upper: list[int], size: list[int], offsets: list[int]) -> None:
        # What takes no memory is nowhere in the way.
        self.taking = [i for i, nbytes in enumerate(size) if nbytes]
        self.spans = tuple([column[i] for i in self.taking] for column in (lower, upper, size))
        self.offsets = [offset if nbytes else 0 for offset, nbytes in zip(offsets, size, strict=True)]
        self.size = size
        self.peak = max(offset + nbytes for offset, nbytes in zip(self.offsets, size, strict=True))
        self.least = 0
        self.unit = gcd(*size) or 1  # of all offsets, where buffers rest on each other, and so of the peak
        self.searches: dict[int, Search] = {}

    def improve(self, floor: int, capacity: int | None, effort: Effort) -> None:
        """Lower the peak to `floor`, or, where one is given, at least to the capacity."""
        if len(self.taking) > MOST or not effort.part(BOUND_SHARE).allows(Problem(*self.spans).least_work):
            return  # not even one search
        if self._reach(floor, effort.part(BOUND_SHARE)):
            return
        if capacity is not None and self.peak > capacity >= floor:
            self._reach(capacity, effort.part(1 - BOUND_SHARE))
        while not effort.over and (capacity is None or self.peak > capacity):
            low = -(-max(floor, capacity or 0, self.least) // self.unit) * self.unit
            if low >= self.peak:
                return
            self._bisect(low, effort)

    def _bisect(self, low: int, effort: Effort) -> None:
        """Once down to the smallest peak for which a share of the effort is enough."""
        while not effort.over:
            middle = (low + self.peak) // 2 // self.unit * self.unit
            if middle < low or middle >= self.peak:
                return
            if not self._reach(middle, effort.part(STEP_SHARE)):
                low = middle + self.unit

    def _reach(self, target: int, effort: Effort) -> bool:
        """Whether a plan is found that takes no more than `target`. A later call goes on with the search."""
        if target not in self.searches:
            self.searches[target] = Search(*self.spans, target)
        search = self.searches[target]
        found = search.run(effort)
        if search.impossible:
            self.least = max(self.least, (target // self.unit + 1) * self.unit)
        if found is None:
            return False
        for i, offset in zip(self.taking, found, strict=True):
            self.offsets[i] = offset
        self.peak = max(offset + nbytes for offset, nbytes in zip(self.offsets, self.size, strict=True))
        return True


__all__ = ["SECOND", "place"]
