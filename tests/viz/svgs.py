"""Reading pictures back: what the tests look for in an SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from capture.ir import Graph
from capture.ir.text import names
from viz.style import text_width

NAMESPACE = "{http://www.w3.org/2000/svg}"


class Picture:
    """A parsed SVG. Raises ParseError where it is not well-formed."""

    def __init__(self, svg: str) -> None:
        self.svg = svg
        self.root = ElementTree.fromstring(svg)
        self.boxes = [g for g in self.root.iter(f"{NAMESPACE}g") if g.get("class") == "n"]
        self.links = [g for g in self.root.iter(f"{NAMESPACE}g") if g.get("data-f")]

    @property
    def texts(self) -> list[str]:
        return [t.text or "" for t in self.root.iter(f"{NAMESPACE}text")]

    @property
    def badges(self) -> list[str]:
        return [t.text or "" for t in self.root.iter(f"{NAMESPACE}text") if "bt" in (t.get("class") or "")]

    @property
    def headings(self) -> list[str]:
        """Names of frames."""
        return [t.text or "" for t in self.root.iter(f"{NAMESPACE}text") if t.get("class") == "gl m halo"]

    @property
    def names(self) -> list[str]:
        """Printed names of the nodes and inputs that the boxes stand for."""
        return [name for box in self.boxes for name in (box.get("data-n") or "").split()]

    @property
    def titles(self) -> list[str]:
        """The first line of text in each box."""
        return [lines[0] for box in self.boxes if (lines := texts_of(box))]

    def box(self, title: str) -> ElementTree.Element:
        """The one box with that first line."""
        (found,) = (box for box in self.boxes if texts_of(box)[:1] == [title])
        return found

    def kinds(self) -> dict[str, str]:
        """First line of each box -> the kind that colours it."""
        found = {}
        for box in self.boxes:
            look = (rect.get("class") or "" for rect in box.iter(f"{NAMESPACE}rect"))
            kind = next((c for c in look if c.startswith("k-")), "")
            if kind:
                found[texts_of(box)[0]] = kind.split()[0].removeprefix("k-")
        return found


def texts_of(box: ElementTree.Element) -> list[str]:
    return [t.text or "" for t in box.iter(f"{NAMESPACE}text")]


def tooltip(element: ElementTree.Element) -> str:
    found = element.find(f"{NAMESPACE}title")
    assert found is not None
    return found.text or ""


def node_names(graph: Graph) -> set[str]:
    """The printed name of each node's first result."""
    named = names(graph)
    return {named[n.results[0]] for n in graph.nodes if n.results}


def font_sizes(svg: str) -> list[float]:
    """Every font size that the stylesheet sets, in px."""
    return [float(size) for size in re.findall(r"font(?:-size)?:[^;}]*?([\d.]+)px", svg)]


def shape_areas(picture: Picture) -> dict[str, list[tuple[float, float, float, float]]]:
    """Where the shapes beside links stand (left, top, right, bottom), where boxes and where frames do."""

    def area(rect: ElementTree.Element) -> tuple[float, float, float, float]:
        x, y, width, height = (float(rect.get(key) or 0) for key in ("x", "y", "width", "height"))
        return x, y, x + width, y + height

    shapes = [t for t in picture.root.iter(f"{NAMESPACE}text") if t.get("class") == "xs m halo"]
    places = [(float(t.get("x") or 0), float(t.get("y") or 0), text_width(t.text or "", 10)) for t in shapes]
    rects = list(picture.root.iter(f"{NAMESPACE}rect"))
    return {
        "shapes": [(x, y - 9, x + width, y + 2) for x, y, width in places],
        "boxes": [area(rect) for box in picture.boxes for rect in box.iter(f"{NAMESPACE}rect")],
        "frames": [area(rect) for rect in rects if rect.get("class") in ("g0", "g1", "frame")],
    }


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
