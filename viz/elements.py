"""SVG elements as text. Every text that comes from outside passes through `xml`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.sax.saxutils import escape

Point = tuple[float, float]
Rect = tuple[float, float, float, float]  # left, top, right, bottom

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml(content: object) -> str:
    """Text made safe for element content and for attributes in double quotes."""
    return escape(_ILLEGAL.sub("\ufffd", str(content)), {'"': "&quot;"})


def number(value: float) -> str:
    """A coordinate: one decimal at most, so that equal pictures have equal bytes."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")


def xy(point: Point) -> str:
    return f"{number(point[0])},{number(point[1])}"


def text(x: float, y: float, content: object, look: str = "", anchor: str = "start") -> str:
    """One line of text; `anchor` is start, middle or end."""
    attributes = f' class="{look}"' if look else ""
    attributes += f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text{attributes} x="{number(x)}" y="{number(y)}">{xml(content)}</text>'


def rect(look: str, area: Rect, radius: float = 0.0, stroke: float = 0.0, title: str = "") -> str:
    """A rectangle, with a tooltip where `title` is given."""
    left, top, right, bottom = area
    size = f'width="{number(right - left)}" height="{number(bottom - top)}"'
    extra = f' rx="{number(radius)}"' if radius else ""
    extra += f' stroke-width="{number(stroke)}"' if stroke else ""
    head = f'<rect class="{look}" x="{number(left)}" y="{number(top)}" {size}{extra}'
    return f"{head}><title>{xml(title)}</title></rect>" if title else f"{head}/>"


def path(look: str, d: str, width: float = 0.0) -> str:
    stroke = f' stroke-width="{number(width)}"' if width else ""
    return f'<path class="{look}" d="{d}"{stroke}/>'


def moved(x: float, y: float, content: str) -> str:
    """A group shifted by (x, y)."""
    return f'<g transform="translate({number(x)},{number(y)})">{content}</g>'


def document(width: float, height: float, css: str, body: Iterable[str]) -> str:
    """A whole SVG with its ground."""
    size = f'width="{number(width)}" height="{number(height)}"'
    box = f'viewBox="0 0 {number(width)} {number(height)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="tc" {size} {box} role="img">'
    return "".join([head, f"<style>{css}</style>", f'<rect class="ground" {size}/>', *body, "</svg>\n"])
