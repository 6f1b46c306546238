"""A graph's picture: scene, layout, legend and paint put together."""

from __future__ import annotations

from collections.abc import Mapping

from capture.ir import Graph
from viz.columns import arrange
from viz.elements import document, moved, rect, text
from viz.paint import paint
from viz.scene import Scene, build
from viz.style import KINDS, Colour, counted, stylesheet, text_width

MARGIN = 18.0
_HEAD = 84.0  # room for title, facts and legend
_BEND = 18.0  # more of it where lines bend over the columns' heads


def graph_svg(graph: Graph, *, folded: bool = True, title: str | None = None) -> str:
    """A graph as SVG text."""
    facts = counted(len(graph.nodes), "node") + (f" · {graph.frontend}" if graph.frontend else "")
    return draw(build(graph, folded=folded), graph.name if title is None else title, facts, KINDS)


def draw(scene: Scene, title: str, facts: str, colours: Mapping[str, Colour]) -> str:
    """A scene as SVG text. `colours` are the meanings that its kinds have."""
    arranged = arrange(scene)
    kinds = {box.kind for box in scene.root.boxes()}
    kinds |= {swatch for box in scene.root.boxes() for *_, swatch in box.lines}
    legend, legend_width = _legend({k: c for k, c in colours.items() if k in kinds})
    placed, bend = arranged.placed, _BEND if arranged.bends else 0.0
    widest = max(placed.width, text_width(title, 16, bold=True), text_width(facts, 12), legend_width)
    width, height = widest + 2 * MARGIN, placed.height + _HEAD + 2 * bend + MARGIN
    body = [
        text(MARGIN, 28, title, "h"),
        text(MARGIN, 46, facts, "m"),
        moved(MARGIN, 66, legend),
        moved((width - placed.width) / 2, _HEAD + bend, "".join(paint(arranged))),
    ]
    return document(width, height, stylesheet(colours), body)


def _legend(colours: Mapping[str, Colour]) -> tuple[str, float]:
    parts, x = [], 0.0
    for name, colour in colours.items():
        parts.append(rect(f"k-{name}", (x, -9, x + 12, 3), 3) + text(x + 17, 1, colour.meaning, "s m"))
        x += 17 + text_width(colour.meaning, 10.5) + 16
    return "".join(parts), x
