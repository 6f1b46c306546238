"""Search for a plan that fits a capacity: depth first, valley by valley, restarted in many orders.

A plan's buffers can be let down until each rests on the floor or on another one. So plans are built upwards.
At any moment each section of time has a floor, below which all is settled:

    bytes        +-------+
      ^          |   c   |              the floor over [2, 4) is a valley between the walls b and c;
      |  +---+   |       |              what rests in it lies within [2, 4): d, e or f
      |  | b |   +-------+
      |  +---+---+                      a section may waste no more than capacity - bytes alive in it
      |  |   a   |
      +--+-------+-------------> time

- A valley that no buffer left lies within is filled up to its lower wall: that much is wasted in it.
- Of all sections at the bottom of a valley the one with the fewest ways to go on is branched on: each buffer
  that can be the lowest in it, and "none of them rests here", which wastes at least the smallest step up.
- What no buffer left connects is solved apart, and where one part fails the others are not tried again.
- Parts (buffers left, floors) that failed are remembered.

Where sections are full, little may be wasted, so that nearly every choice is forced. A wrong choice early on
costs more than any search can repair: searches have small budgets and start again in other orders.

That buffers rest on others, sections, floors and the bound on what is left follow Moffitt, "MiniMalloc: A
Lightweight Memory Allocator for Hardware-Accelerated Machine Learning" (ASPLOS 2023). Sections that made
searches fail are preferred as in Boussemart et al., "Boosting Systematic Search by Weighting Constraints"
(ECAI 2004).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

from passes.memory.problem import NODE, Problem, Style, styles

SECOND = 4_000_000  # work of about a second
CLOCK = 8192  # work between two looks at the clock
FIRST = 2  # nodes per buffer in the first searches
ROUND = 32  # searches before the budget of each doubles
NONE = -1  # the option that no buffer rests here


class Effort:
    """How long to search: units of work (sections looked at), seconds on the clock, or both.

    Attributes:
        nodes: choices looked at so far.
    """

    def __init__(
        self, work: int | None = None, seconds: float | None = None, whole: Effort | None = None
    ) -> None:
        self.work = work
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.whole = whole
        self.nodes = 0

    def part(self, share: float) -> Effort:
        """A share of what is left. What it spends is spent here too."""
        work = None if self.work is None else max(min(self.work, 1), int(self.work * share))
        return Effort(work, None if self.seconds is None else self.seconds * share, self)

    def allows(self, work: int) -> bool:
        """Whether so much work can be done in what is left, by a rough count where it is a time."""
        enough = self.seconds is None or work <= self.seconds * SECOND
        return enough and (self.work is None or work <= self.work)

    def spend(self, work: int, nodes: int) -> None:
        """Count nodes and their work."""
        self.nodes += nodes
        if self.work is not None:
            self.work -= work
        if self.whole is not None:
            self.whole.spend(work, nodes)

    @property
    def seconds(self) -> float | None:
        """What is left on the clock."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def over(self) -> bool:
        return (self.work is not None and self.work <= 0) or self.seconds == 0


class Search:
    """Is there a plan that takes no more than `capacity` bytes?

    Attributes:
        impossible: there is none; this is proven.
    """

    def __init__(
        self, lower: Sequence[int], upper: Sequence[int], size: Sequence[int], capacity: int
    ) -> None:
        self.capacity = capacity
        forwards = Problem(lower, upper, size)
        backwards = Problem([-step for step in upper], [-step for step in lower], size)
        self.sides = [(problem, [1.0] * problem.sections) for problem in (forwards, backwards)]
        self.impossible = max(forwards.load, default=0) > capacity
        self.rng = Random(0)
        self.styles = styles(self.rng)
        self.tried = 0

    def run(self, effort: Effort) -> list[int] | None:
        """Offsets, or None where none are found before the effort is over. Can be called again to go on."""
        while not self.impossible and not effort.over:
            problem, weights = self.sides[self.tried % 2]
            dive = _Dive(problem, self.capacity, next(self.styles), weights, self.rng)
            nodes = FIRST * problem.count * 2 ** (self.tried // ROUND)
            self.tried += 1
            outcome = dive.run(nodes, effort)
            if outcome:
                return dive.offsets()
            self.impossible = outcome is False
        return None


class _Part(NamedTuple):
    """Sections to solve, joined by the buffers left on them; what has to be solved after them."""

    first: int
    end: int
    parent: int  # position of the node whose choice made it; -1: none
    rest: _Part | None


class _Node(NamedTuple):
    """A choice: what rests in this section? With all that is needed to come back to it."""

    part: _Part
    floor: list[int]
    spare: list[int]
    left: int
    key: tuple[int, tuple[int, ...]]
    choice: _Choice
    options: list[int]  # buffers or NONE, the next to try last


class _Choice(NamedTuple):
    section: int
    options: int  # buffers
    valley: _Valley
    step_up: int  # wasted at least if none rests here; 0: one must


class _Valley(NamedTuple):
    """A stretch of floor at one level, lower than what is on both sides."""

    level: int
    first: int
    end: int
    left: int  # floor to the left, and to the right
    right: int
    wall: int  # the lower of the two
    inside: int  # buffers left that lie within it


class _Dive:
    """One search. Sets of buffers are bits of an integer, the most promising buffer the lowest bit."""

    def __init__(
        self, problem: Problem, capacity: int, style: Style, weights: list[float], rng: Random
    ) -> None:
        self.order = problem.order(style.measures, style.noise, rng)
        self.capacity = capacity
        self.weights = weights
        self.preference = weights if style.learns else [1.0] * problem.sections
        self.tie = style.level / (capacity + 1)
        self.first = [problem.first[i] for i in self.order]
        self.end = [problem.end[i] for i in self.order]
        self.size = [problem.size[i] for i in self.order]
        self.floor = [0] * problem.sections
        self.spare = [capacity - load for load in problem.load]  # bytes that a section may still waste
        self.left = (1 << problem.count) - 1  # buffers not yet placed
        self.placed = [0] * problem.count
        self.failed: set[tuple[int, tuple[int, ...]]] = set()
        self.nodes: list[_Node] = []
        self.setup, self.weight = problem.setup, problem.weight
        self._index(problem.sections)

    def _index(self, sections: int) -> None:
        """Buffers alive in a section; that begin at or after it; that end at or before it; equal ones."""
        self.alive, self.after, self.before = [0] * sections, [0] * (sections + 1), [0] * (sections + 1)
        self.twins = [0] * len(self.size)
        equal: dict[tuple[int, int, int], int] = defaultdict(int)
        for i, (first, end, size) in enumerate(zip(self.first, self.end, self.size, strict=True)):
            bit = 1 << i
            for s in range(first, end):
                self.alive[s] |= bit
            self.after[first] |= bit
            self.before[end] |= bit
            self.twins[i] = equal[first, end, size]
            equal[first, end, size] |= bit
        for s in range(sections):
            self.after[sections - 1 - s] |= self.after[sections - s]
            self.before[s + 1] |= self.before[s]

    def offsets(self) -> list[int]:
        """Where the buffers were placed, by their position in the problem."""
        found = [0] * len(self.order)
        for rank, i in enumerate(self.order):
            found[i] = self.placed[rank]
        return found

    def run(self, nodes: int, effort: Effort) -> bool | None:
        """Whether there is a plan; None: not known after so many nodes."""
        sections = len(self.floor)
        self.todo = self._split(_Part(0, sections, -1, None), -1, 0, sections)
        work, count, told, outcome = self.setup, 0, 0, None
        while self.todo is not None and outcome is None and count < nodes:
            work += (NODE + self.todo.end - self.todo.first) * self.weight
            count += 1
            if not self._go_on(self._open(self.todo)):
                outcome = False
            elif work >= CLOCK:
                effort.spend(work, count - told)
                work, told = 0, count
                if effort.over:
                    break
        effort.spend(work, count - told)
        return True if self.todo is None else outcome

    def _split(self, part: _Part, parent: int, first: int, end: int) -> _Part | None:
        """The parts that `part` falls into now that less is left on the sections [first, end) of it."""
        rest, start, before = part.rest, part.first, 0
        for s in range(first, end):
            here = self.alive[s] & self.left
            if (s > first and not here & before) or not here:
                if s > start:
                    rest = _Part(start, s, parent, rest)
                start = s if here else s + 1
            before = here
        return _Part(start, part.end, parent, rest) if part.end > start else rest

    def _open(self, part: _Part) -> int:
        """Position of a new node for the part, or of the node to go back to where the part is hopeless."""
        choice = self._choose(part.first, part.end)
        if choice is None:
            return part.parent
        here = slice(part.first, part.end)
        floor = self.floor[here]
        key = (self.left & self.after[part.first] & self.before[part.end], tuple(floor))
        if key in self.failed:
            return part.parent
        self.nodes.append(_Node(part, floor, self.spare[here], self.left, key, choice, self._options(choice)))
        return len(self.nodes) - 1

    def _go_on(self, at: int) -> bool:
        """Take the next option of a node, or of the nearest above it that has one left; False: none has."""
        while at >= 0:
            node = self.nodes[at]
            del self.nodes[at + 1 :]
            part = node.part
            self.floor[part.first : part.end] = node.floor
            self.spare[part.first : part.end] = node.spare
            self.left = node.left
            if node.options:
                self._take(node, node.options.pop(), at)
                return True
            self.failed.add(node.key)
            at = part.parent
        return False

    def _take(self, node: _Node, option: int, at: int) -> None:
        """Put a buffer on the floor of the section, or raise its floor."""
        level, part = node.choice.valley.level, node.part
        if option == NONE:
            self.floor[node.choice.section] += node.choice.step_up
            self.spare[node.choice.section] -= node.choice.step_up
            self.todo = _Part(part.first, part.end, at, part.rest)
            return
        first, end = self.first[option], self.end[option]
        self.placed[option] = level
        self.floor[first:end] = [level + self.size[option]] * (end - first)
        self.left ^= 1 << option
        self.todo = self._split(part, at, first, end)

    def _choose(self, first: int, end: int) -> _Choice | None:
        """The section with the fewest ways to go on; None where one has none."""
        while True:
            fewest, found, raised = float("inf"), None, False
            for valley in self._valleys(first, end):
                level, wall = valley.level, valley.wall
                for s in range(valley.first, valley.end):
                    options = self.alive[s] & valley.inside
                    if not options:
                        self.floor[s] = wall
                        self.spare[s] -= wall - level
                        raised, dead = True, self.spare[s] < 0
                    else:
                        dead = self._falls_short(options, level + self.spare[s], wall)
                    if dead:
                        self.weights[s] += 1
                        return None
                    ways = 2 * options.bit_count() + (self.spare[s] > 0) + self.tie * level
                    if ways < fewest * self.preference[s]:
                        fewest, found = ways / self.preference[s], (s, options, valley)
            if not raised:
                break
        assert found is not None  # the lowest valley of a part has options, or no room
        section, _, valley = found
        return _Choice(*found, self._step_up(section, valley))

    def _valleys(self, first: int, end: int) -> Iterator[_Valley]:
        floor, outside = self.floor, self.capacity + 1
        start = first
        while start < end:
            level, stop = floor[start], start + 1
            while stop < end and floor[stop] == level:
                stop += 1
            left = floor[start - 1] if start > first else outside
            right = floor[stop] if stop < end else outside
            if left > level < right:
                inside = self.after[start] & self.before[stop] & self.left
                yield _Valley(level, start, stop, left, right, min(left, right), inside)
            start = stop

    def _falls_short(self, options: int, top: int, wall: int) -> bool:
        """Whether a section does not reach the wall, with all that can rest in it and all it may waste."""
        if wall > self.capacity:
            return False
        while options and top < wall:
            bit = options & -options
            options ^= bit
            top += self.size[bit.bit_length() - 1]
        return top < wall

    def _step_up(self, section: int, valley: _Valley) -> int:
        """The least by which the floor rises if nothing rests on it; 0 where that wastes too much.

        What is lowest in the section then rests on the wall, or on a buffer of the valley beside it.
        """
        others = valley.inside & ~self.alive[section]
        least = valley.wall - valley.level
        while others:
            bit = others & -others
            others ^= bit
            least = min(least, self.size[bit.bit_length() - 1])
        return least if least <= self.spare[section] else 0

    def _options(self, choice: _Choice) -> list[int]:
        """Best last: by the order, but first what joins the walls beside it; of equal buffers one."""
        valley, found, left = choice.valley, [], choice.options
        while left:
            bit = left & -left
            left ^= bit
            i = bit.bit_length() - 1
            if not self.twins[i] & self.left:
                found.append(i)
        found.reverse()
        found.sort(key=lambda i: self._joins(i, valley))
        return [NONE, *found] if choice.step_up else found

    def _joins(self, i: int, valley: _Valley) -> int:
        """How many walls of the valley the buffer would touch and end level with."""
        top = valley.level + self.size[i]
        at_left = self.first[i] == valley.first and top == valley.left
        at_right = self.end[i] == valley.end and top == valley.right
        return at_left + at_right


__all__ = ["SECOND", "Effort", "Search"]
