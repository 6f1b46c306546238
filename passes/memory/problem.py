"""Buffers and stretches of time as the search sees them, and the orders that it tries buffers in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

NODE = 16  # sections that are looked at in the time that a node of a search takes besides
WIDE = 4096  # buffers from which on a set of them, a long integer, takes its time


class Problem:
    """Buffers on sections: the moments at which a set of buffers is alive that is part of no larger one.

    Attributes:
        weight: what a look at a section costs, where 1 is that of a few hundred buffers.
        setup: what it costs to prepare a search, in such looks.
        least_work: what a search costs that places each buffer at once.
    """

    def __init__(self, lower: Sequence[int], upper: Sequence[int], size: Sequence[int]) -> None:
        self.size = list(size)
        self.count = len(size)
        ends = _ends_after_starts(lower, upper)
        self.first = [bisect_right(ends, step) for step in lower]
        self.end = [bisect_right(ends, step) for step in upper]  # exclusive
        self.sections = len(ends)
        self.weight = 1 + self.count // WIDE
        self.setup = sum(self.end) - sum(self.first) + self.sections * (self.weight - 1)
        self.least_work = self.setup + self.count * NODE * self.weight
        change = [0] * (self.sections + 1)
        for first, end, nbytes in zip(self.first, self.end, self.size, strict=True):
            change[first] += nbytes
            change[end] -= nbytes
        self.load = list(accumulate(change[:-1]))
        self.steps = [end - start for start, end in zip(lower, upper, strict=True)]

    def order(self, measures: str, noise: float, rng: Random) -> list[int]:
        """Buffers by decreasing measures; with noise, each value up to so much larger.

        Args:
            measures: of A, area (sections times size), F, the fullest section of its life, T, steps alive,
                W, width in sections, and Z, size: the first decides, the next among equals.
        """
        width = [end - first for first, end in zip(self.first, self.end, strict=True)]
        values = {
            "A": lambda i: width[i] * self.size[i],
            "F": lambda i: max(self.load[self.first[i] : self.end[i]]),
            "T": lambda i: self.steps[i],
            "W": lambda i: width[i],
            "Z": lambda i: self.size[i],
        }
        keys = [[values[m](i) * (1 + noise * rng.random()) for m in measures] for i in range(self.count)]
        return sorted(range(self.count), key=lambda i: [-value for value in keys[i]])


def _ends_after_starts(lower: Sequence[int], upper: Sequence[int]) -> list[int]:
    """The steps at which a buffer ends and since the last of which one has begun."""
    events = sorted([(step, 0) for step in set(upper)] + [(step, 1) for step in set(lower)])
    return [step for (step, begins), (_, before) in zip(events[1:], events, strict=False) if before > begins]


@dataclass(frozen=True)
class Style:
    """How a search chooses.

    Attributes:
        measures: the order in which buffers are tried in a section: see Problem.order.
        noise: how far that order is from strict.
        level: of sections with equally many ways on, prefer the lowest (1), the highest (-1), the first (0).
        learns: prefer sections in which searches failed.
    """

    measures: str
    noise: float
    level: int
    learns: bool


ORDERS = ("FA", "Z", "T", "A", "W", "AZ", "FZ", "WTA")


def styles(rng: Random) -> Iterator[Style]:
    """Every order once for either direction of time, then all of them again and again with noise."""
    noise = 0.0
    while True:
        for measures in ORDERS:
            for _ in range(2):
                yield Style(measures, noise, rng.choice((0, 1, -1)), rng.random() < 0.5)
        noise = 0.1


__all__ = ["Problem", "Style", "styles"]
