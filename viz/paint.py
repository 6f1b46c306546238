"""An arranged scene as SVG elements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from viz.columns import Arrangement
from viz.elements import Point, Rect, path, rect, text, xml, xy
from viz.layout import Placed
from viz.scene import Box, Group, Link
from viz.space import EDGE, Space, samples
from viz.style import edge_width, text_width

_HEADING = 11.0
_SHAPE = 10.0
_RADIUS = {"node": 5, "fusion": 9, "view": 10, "io": 10, "ghost": 10}


def paint(arranged: Arrangement) -> Iterator[str]:
    """Frames, links, boxes, and then the captions where there is room for them."""
    scene, placed = arranged.scene, arranged.placed
    boxes = [box for box in scene.root.boxes() if box.shape != "port"]
    links = [(link, placed.links[link.key]) for link in scene.links if link.key in placed.links]
    space = Space()
    for link, points in links:
        space.take_curve(points[:-1], edge_width(link.bytes))
    for box in boxes:
        space.take(_outline(box, placed.boxes[box.key]))
    for frame in placed.groups.values():
        space.take_frame(frame)
    yield from _frames(scene.root.items, placed, 0)
    for link, points in sorted(links, key=lambda pair: pair[0].main):
        yield _link(link, points)
    for link, corners in arranged.bends:
        yield _bend(link, corners)
    for box in boxes:
        yield _box(box, placed.boxes[box.key])
    yield from _headings(scene.root.items, placed, space)
    yield from _shapes(links, space)


def _outline(box: Box, centre: Point) -> Rect:
    width, height = box.size
    return centre[0] - width / 2, centre[1] - height / 2, centre[0] + width / 2, centre[1] + height / 2


def _stack(look: str, area: Rect, radius: float) -> Iterator[str]:
    """Two more cards behind what stands for several."""
    for shift in (6.0, 3.0):
        yield rect(look, (area[0] + shift, area[1] + shift, area[2] + shift, area[3] + shift), radius)


def _frames(items: Iterable[Group | Box], placed: Placed, depth: int) -> Iterator[str]:
    for item in items:
        if isinstance(item, Group):
            look = item.look or f"g{depth % 2}"
            if item.badge:
                yield from _stack(look, placed.groups[item.key], 8)
            yield rect(look, placed.groups[item.key], 8)
            yield from _frames(item.items, placed, depth + 1)


def _headings(items: Iterable[Group | Box], placed: Placed, space: Space) -> Iterator[str]:
    """Names of groups, at the side of the frame's top where no link passes, or between two."""
    for item in items:
        if not isinstance(item, Group):
            continue
        left, top, right, _ = placed.groups[item.key]
        if item.badge:
            yield from _badge(item.badge, right - 8, top + 14)
            right -= _badge_width(item.badge) + 6
        label, spots = _heading_spots(item.label, (left, top, right, top), space, may_shorten=not item.look)
        (x, y, *_), _ = space.best(spots)
        yield text(x, y + 12, label, "gl m halo")
        yield from _headings(item.items, placed, space)


def _heading_spots(label: str, area: Rect, space: Space, *, may_shorten: bool) -> tuple[str, list[Rect]]:
    """Where a name may stand, and the name; a module's loses its first parts where it fits nowhere else."""
    left, top, right, _ = area
    _, dot, rest = label.partition(".")
    width = text_width(label, _HEADING, bold=True)
    first, last = left + 10, right - 10 - width
    between = [first + step for step in range(8, int(last - first), 8)]
    spots = [(x, top + 5, x + width, top + 20) for x in (first, last, *between)]
    if may_shorten and dot and min(map(space.clashes, spots)):
        shorter = _heading_spots(f"…{rest}", area, space, may_shorten=True)
        if not min(map(space.clashes, shorter[1])):
            return shorter
    return label, spots


def _badge_width(label: str) -> float:
    return text_width(label, _HEADING, bold=True) + 14


def _badge(label: str, right: float, middle: float) -> Iterator[str]:
    width = _badge_width(label)
    yield rect("badge", (right - width, middle - 8.5, right, middle + 8.5), 8.5)
    yield text(right - width / 2, middle + 4, label, "gl bt", "middle")


def _box(box: Box, centre: Point) -> str:
    area = _outline(box, centre)
    look = {"io": "io", "ghost": "io dash"}.get(box.shape, f"k-{box.kind}")
    parts = [
        f'<g class="n" data-k="{box.key}" data-n="{xml(" ".join(box.names))}" data-s="{xml(box.search)}">'
    ]
    parts.append(f"<title>{xml(box.tooltip)}</title>")
    if box.badge:
        parts += _stack(look, area, _RADIUS[box.shape])
    parts.append(rect(look, area, _RADIUS[box.shape]))
    parts += _lines(box, area)
    if box.badge:
        parts += _badge(box.badge, area[2] - 5, centre[1])
    return "".join([*parts, "</g>"])


def _lines(box: Box, area: Rect) -> Iterator[str]:
    ink = f" t-{box.kind}" if box.shape in ("node", "view") else ""
    size = {"node": "b", "fusion": ""}.get(box.shape, "s")
    y = area[1] + {"node": 17.0, "fusion": 18.0}.get(box.shape, 13.8)
    right = area[2] - 10 - (_badge_width(box.badge) + 2 if box.badge else 0)
    for title, muted, swatch in box.lines:
        x = area[0] + 10
        if swatch:
            yield rect(f"d-{swatch}", (x, y - 8.5, x + 8, y - 0.5), 2)
            x += 13
        yield text(x, y, title, (size + ink).strip())
        if muted:
            yield text(right, y, muted, "s m", "end")
        y += 16


def _link(link: Link, points: list[Point]) -> str:
    """A curve as wide as its bytes, with its tip."""
    *curve, tip = points
    d = f"M{xy(curve[0])}C{' '.join(xy(p) for p in curve[1:])}"
    goes_on = link.target.startswith("exit")
    return _stroke(link, d, "" if goes_on else _head(curve[-1], tip, edge_width(link.bytes)))


def _stroke(link: Link, d: str, head: str) -> str:
    look = ' class="main"' if link.main else ""
    tip = path("a", head) if head else ""
    line = path("e", d, edge_width(link.bytes))
    ends = f'data-f="{link.source}" data-t="{link.target}"'
    return f"<g{look} {ends}><title>{xml(link.tooltip)}</title>{line}{tip}</g>"


def _head(base: Point, tip: Point, width: float) -> str:
    dx, dy = tip[0] - base[0], tip[1] - base[1]
    length = math.hypot(dx, dy) or 1.0
    half = 2.2 + width * 0.75
    nx, ny = -dy / length * half, dx / length * half
    return f"M{xy((base[0] + nx, base[1] + ny))}L{xy(tip)}L{xy((base[0] - nx, base[1] - ny))}Z"


def _bend(link: Link, corners: list[Point], radius: float = 12.0) -> str:
    """A line with rounded corners from the foot of one column to the head of the next."""
    d = [f"M{xy(corners[0])}"]
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        d.append(
            f"L{xy(_towards(corner, before, radius))}Q{xy(corner)} {xy(_towards(corner, after, radius))}"
        )
    return _stroke(link, "".join([*d, f"L{xy(corners[-1])}"]), "")


def _towards(start: Point, end: Point, distance: float) -> Point:
    length = math.dist(start, end)
    share = min(distance, length / 2) / length if length else 0.0
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def _shapes(links: list[tuple[Link, list[Point]]], space: Space) -> Iterator[str]:
    """The shape of each value that flows, once, beside its main link; the tooltip alone where no room is."""
    shown: set[tuple[str, int]] = set()
    for link, points in sorted(links, key=lambda pair: not pair[0].main):
        if (link.source, link.port) in shown:
            continue
        shown.add((link.source, link.port))
        (left, top, *_), clashes = space.best(_shape_spots(link, points))
        if clashes < EDGE:
            yield text(left, top + 9, link.label, "xs m halo")


def _shape_spots(link: Link, points: list[Point]) -> Iterator[Rect]:
    """Where a shape may stand: below the source, else further along the line, on its right or left."""
    width, gap = text_width(link.label, _SHAPE), 4 + edge_width(link.bytes) / 2
    x, y = points[0]
    corners = [(x, y + down) for down in (3, 12, 20)]
    corners += [(a, b - 5) for a, b in samples(points[:-1])]
    for a, top in corners:
        for left in (a + gap, a - gap - width):
            yield left, top, left + width, top + 11
