"""Room for captions: what is drawn where, so that text can dodge it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from viz.elements import Point, Rect

_CELL = 48.0


class Space:
    """Rectangles that are taken, in a grid of cells."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], list[Rect]] = defaultdict(list)

    def take(self, rect: Rect) -> None:
        for cell in _cells(rect):
            self._cells[cell].append(rect)

    def take_curve(self, path: list[Point], width: float) -> None:
        """Take the room along a Bézier path."""
        half = width / 2 + 1
        for x, y in samples(path):
            self.take((x - half, y - half, x + half, y + half))

    def clashes(self, rect: Rect) -> int:
        """How many things taken overlap the rectangle."""
        found = {
            other for cell in _cells(rect) for other in self._cells.get(cell, ()) if _overlap(rect, other)
        }
        return len(found)

    def best(self, candidates: list[Rect]) -> Rect:
        """The candidate with the fewest clashes, the first of equals; it is taken."""
        chosen = min(candidates, key=self.clashes)
        self.take(chosen)
        return chosen


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
