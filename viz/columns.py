"""Break a tall picture into columns that are read like a newspaper's.

a             a   ,-> d            A link that leads from one column into the next runs through two
b             b   |   e            ports; one that comes from further away starts at a ghost, a small
c      ==>    c   |   f            pill that names the box it stands for.
d             `---'
:
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from viz.elements import Point
from viz.layout import Placed, place
from viz.scene import Box, Group, Link, Scene

ASPECT = 1.5  # width over height to aim for
TALL = 1400.0  # px that one column may be high before it is broken
_VERY_TALL = 3000.0  # from here on, broken even inside a block that repeats
GUTTER = 64.0
_CANDIDATES = 60  # places to cut that are weighed against each other
_TYPICAL_WIDTH = 340.0
_REPEAT = 8.0  # what a cut inside a repeated block costs; inside any other group, 1


@dataclass
class Part:
    """What stands in one column. `exits`: port in this column -> port in the next."""

    root: Group
    links: list[Link] = field(default_factory=list)
    exits: dict[str, str] = field(default_factory=dict)


@dataclass
class Arrangement:
    """Parts side by side, in one system of coordinates; `bends` are the lines from column to column."""

    scene: Scene
    placed: Placed
    bends: list[tuple[Link, list[Point]]]


def arrange(scene: Scene) -> Arrangement:
    """Lay out a scene, in columns where one would be too tall."""
    parts = _split(scene, _cuts(scene))
    placed = [place(part.root, part.links, sinks=list(part.exits)) for part in parts]
    total = Placed(sum(p.width for p in placed) + GUTTER * (len(placed) - 1), max(p.height for p in placed))
    left = 0.0
    for one in placed:
        total.boxes.update({k: (x + left, y) for k, (x, y) in one.boxes.items()})
        total.groups.update({k: (a + left, b, c + left, d) for k, (a, b, c, d) in one.groups.items()})
        total.links.update({k: [(x + left, y) for x, y in path] for k, path in one.links.items()})
        left += one.width + GUTTER
    bends, left = [], 0.0
    for part, one in zip(parts, placed, strict=True):
        left += one.width + GUTTER
        for i, (exit_, entry) in enumerate(part.exits.items()):
            link = next(link for link in part.links if link.target == exit_)
            bends.append((link, _bend(total.boxes[exit_], total.boxes[entry], left - GUTTER / 2 + 8 * i)))
    root = Group("root", "", [item for part in parts for item in part.root.items])
    return Arrangement(Scene(root, [link for part in parts for link in part.links]), total, bends)


def _bend(start: Point, end: Point, gutter: float) -> list[Point]:
    low, high = start[1] + 14, min(end[1], 0.0) - 14
    top, foot = (start[0], start[1] - 8), (end[0], end[1] + 4)  # into the ends of the links there
    return [top, (start[0], low), (gutter, low), (gutter, high), (end[0], high), foot]


def _cuts(scene: Scene) -> list[int]:
    """Positions in the order of boxes before which a new column starts."""
    boxes, around = _flat(scene.root)
    depth = _depths(scene, boxes, around)
    height = max(depth, default=0.0)
    if height <= TALL:
        return []
    crossing = _crossings(scene, boxes)

    def price(c: int) -> float:
        shared = [a for a, b in zip(around[c - 1], around[c], strict=False) if a is b]
        return sum(_REPEAT if group.badge else 1.0 for group in shared) + 0.8 * max(0, crossing[c] - 1)

    prices = {c: price(c) for c in range(1, len(boxes))}
    if height < _VERY_TALL:
        prices = {c: p for c, p in prices.items() if p < _REPEAT}
    cheapest: dict[int, int] = {}  # one place for each stretch of the way down
    for c in sorted(prices, key=lambda c: (-prices[c], -c)):
        cheapest[int(depth[c] / height * _CANDIDATES)] = c
    places = sorted(cheapest.values())
    ideal = math.sqrt(ASPECT * height / _TYPICAL_WIDTH)
    most = min(len(places), round(1.5 * ideal)) + 1
    plans = [_plan(depth, places, prices, count, height) for count in range(1, most + 1)]
    return min(plans, key=lambda plan: round(plan[0] + 3 * math.log((len(plan[1]) + 1) / ideal) ** 2, 6))[1]


def _plan(
    depth: list[float], places: list[int], prices: dict[int, float], columns: int, height: float
) -> tuple[float, list[int]]:
    """The cheapest way to that many columns: its cost and its cuts, by dynamic programming."""
    step = height / columns

    def uneven(start: float, end: float) -> float:
        return 8 * ((end - start) / step - 1) ** 2 / columns

    best: dict[int, tuple[float, list[int]]] = {
        c: (0.3 * prices[c] + uneven(0.0, depth[c]), [c]) for c in places
    }
    if columns == 1:
        return 0.0, []
    for _ in range(columns - 2):
        following = {}
        for c in places:
            ways = [
                (spent + 0.3 * prices[c] + uneven(depth[at], depth[c]), [*cuts, c])
                for at, (spent, cuts) in best.items()
                if at < c
            ]
            if ways:
                following[c] = min(ways)
        best = following
    ends = [(spent + uneven(depth[at], height), cuts) for at, (spent, cuts) in best.items()]
    return min(ends, default=(math.inf, []))


def _flat(group: Group, around: tuple[Group, ...] = ()) -> tuple[list[Box], list[tuple[Group, ...]]]:
    """Boxes in order, and for each the groups it stands in, outermost first."""
    boxes: list[Box] = []
    chains: list[tuple[Group, ...]] = []
    for item in group.items:
        if isinstance(item, Group):
            inner, inner_chains = _flat(item, (*around, item))
            boxes += inner
            chains += inner_chains
        else:
            boxes.append(item)
            chains.append(around)
    return boxes, chains


def _depths(scene: Scene, boxes: list[Box], around: list[tuple[Group, ...]]) -> list[float]:
    """About how far down each box will stand: the longest way to it."""
    at = {box.key: i for i, box in enumerate(boxes)}
    depth = [0.0] * len(boxes)
    for link in sorted(scene.links, key=lambda k: at[k.source]):
        s, t = at[link.source], at[link.target]
        if s < t:
            entered = sum(all(g is not h for h in around[s]) for g in around[t])
            gap = 25 + 32 * entered + (boxes[s].size[1] + boxes[t].size[1]) / 2
            depth[t] = max(depth[t], depth[s] + gap)
    highest = 0.0
    for i, d in enumerate(depth):  # a side branch starts high up, and is drawn low, beside what uses it
        highest = depth[i] = max(d, highest)
    return depth


def _crossings(scene: Scene, boxes: list[Box]) -> list[int]:
    """For each position, how many values cross a cut before it."""
    at = {box.key: i for i, box in enumerate(boxes)}
    reach: dict[tuple[str, int], int] = {}
    for link in scene.links:
        value = (link.source, link.port)
        reach[value] = max(reach.get(value, 0), at[link.target])
    counts = [0] * (len(boxes) + 1)
    for (source, _), last in reach.items():
        for c in range(at[source] + 1, last + 1):
            counts[c] += 1
    return counts


def _split(scene: Scene, cuts: list[int]) -> list[Part]:
    if not cuts:
        return [Part(scene.root, scene.links)]
    boxes, _ = _flat(scene.root)
    column = {box.key: sum(i >= c for c in cuts) for i, box in enumerate(boxes)}
    for box in boxes:  # an input stands where it is first used
        used = [column[link.target] for link in scene.links if link.source == box.key]
        if box.shape == "io" and used:
            column[box.key] = min(used)
    known = {box.key: box for box in boxes}
    parts = [Part(Group("root", "", list(_only(scene.root, column, i)))) for i in range(len(cuts) + 1)]
    main = {(k.source, k.port) for k in scene.links if k.main and column[k.target] == column[k.source] + 1}
    stand_in: dict[tuple[str, int, int], str] = {}
    for link in scene.links:
        start, end = column[link.source], column[link.target]
        if start == end:
            parts[end].links.append(link)
            continue
        value = (link.source, link.port, end)
        if value not in stand_in:
            if end == start + 1 and value[:2] in main:
                stand_in[value] = _add_ports(parts, link, end)
            else:
                stand_in[value] = _add_ghost(parts[end], known[link.source], link, len(stand_in))
        parts[end].links.append(replace(link, source=stand_in[value], port=0))
    return parts


def _only(group: Group, column: dict[str, int], wanted: int) -> Iterator[Group | Box]:
    """The group's items that stand in one column; a group that goes on there says so."""
    for item in group.items:
        if isinstance(item, Box):
            if column[item.key] == wanted:
                yield item
        elif inner := list(_only(item, column, wanted)):
            began = min(column[box.key] for box in item.boxes()) < wanted
            label = f"{item.label}, continued" if began else item.label
            yield replace(item, key=f"{item.key}_{wanted}", label=label, items=inner)


def _add_ports(parts: list[Part], link: Link, end: int) -> str:
    exit_, entry = f"exit{end}_{len(parts[end - 1].exits)}", f"entry{end}_{len(parts[end - 1].exits)}"
    parts[end - 1].root.items.append(Box(exit_, "port", "io", [], ""))
    parts[end].root.items.insert(0, Box(entry, "port", "io", [], ""))
    parts[end - 1].links.append(replace(link, target=exit_, main=True))
    parts[end - 1].exits[exit_] = entry
    return entry


def _add_ghost(part: Part, box: Box, link: Link, number: int) -> str:
    key = f"ghost{number}"
    title, muted, _ = box.lines[0]
    lines = [(title, box.place or muted, "")]
    part.root.items.insert(0, Box(key, "ghost", "io", lines, f"drawn in an earlier column\n{box.tooltip}"))
    return key
