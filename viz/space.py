"""Room for captions: what is drawn where, so that text can dodge it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from viz.elements import Point, Rect

_CELL = 48.0
# How bad it is to cover a point of a link, the edge of a frame, a box or text.
LINE, EDGE, SOLID = 1, 10, 50


class Space:
    """Rectangles that are taken, in a grid of cells."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], list[tuple[Rect, int]]] = defaultdict(list)

    def take(self, rect: Rect, weight: int = SOLID) -> None:
        for cell in _cells(rect):
            self._cells[cell].append((rect, weight))

    def take_frame(self, frame: Rect) -> None:
        """Take the room along the edges of a frame."""
        left, top, right, bottom = frame
        for x in (left, right):
            self.take((x - 1, top, x + 1, bottom), EDGE)
        for y in (top, bottom):
            self.take((left, y - 1, right, y + 1), EDGE)

    def take_curve(self, path: list[Point], width: float) -> None:
        """Take the room along a Bézier path."""
        half = width / 2 + 1
        for x, y in samples(path):
            self.take((x - half, y - half, x + half, y + half), LINE)

    def clashes(self, rect: Rect) -> int:
        """The weights of the things taken that overlap the rectangle."""
        found = {
            taken for cell in _cells(rect) for taken in self._cells.get(cell, ()) if _overlap(rect, taken[0])
        }
        return sum(weight for _, weight in found)

    def best(self, candidates: Iterable[Rect]) -> tuple[Rect, int]:
        """The candidate that clashes least, the first of equals, and how much it does; it is taken."""
        chosen, least = None, 0
        for candidate in candidates:
            clashes = self.clashes(candidate)
            if chosen is None or clashes < least:
                chosen, least = candidate, clashes
            if not clashes:
                break
        assert chosen is not None
        self.take(chosen)
        return chosen, least


def samples(path: list[Point], step: float = 6.0) -> Iterator[Point]:
    """Points along a Bézier path of 3n+1 control points."""
    for i in range(0, len(path) - 3, 3):
        (x0, y0), (x1, y1), (x2, y2), (x3, y3) = path[i : i + 4]
        count = max(2, int((abs(x3 - x0) + abs(y3 - y0)) / step))
        for j in range(count + 1):
            t = j / count
            a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
            yield a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3


def _overlap(a: Rect, b: Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _cells(rect: Rect) -> Iterator[tuple[int, int]]:
    for column in range(int(rect[0] // _CELL), int(rect[2] // _CELL) + 1):
        for row in range(int(rect[1] // _CELL), int(rect[3] // _CELL) + 1):
            yield column, row
