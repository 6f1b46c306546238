"""Where everything goes: Graphviz's dot, on boxes whose sizes we give it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from capture._lazy import needed
from capture.errors import CaptureError
from viz.elements import Point, Rect
from viz.scene import Box, Group, Link, LinkKey
from viz.style import text_width

LABEL_HEIGHT = 20  # of a group's heading, in px


@dataclass
class Placed:
    """Positions in px, y downwards. Boxes by centre, groups as rectangles."""

    width: float
    height: float
    boxes: dict[str, Point] = field(default_factory=dict)
    groups: dict[str, Rect] = field(default_factory=dict)
    links: dict[LinkKey, list[Point]] = field(default_factory=dict)  # Bézier points, the tip last


def place(root: Group, links: list[Link], sinks: list[str]) -> Placed:
    """Lay out a scene, or a part of one; the boxes in `sinks` at the bottom.

    Raises:
        CaptureError: pydot or pygraphviz is missing, or Graphviz fails.
    """
    return _read(run_dot(_dot(root, links, sinks)), links)


def run_dot(text: str) -> dict[str, Any]:
    """Graphviz's layout of a DOT text, as its JSON."""
    pygraphviz = _import("pygraphviz")
    graph = pygraphviz.AGraph(string=text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Graphviz says of the machine's fonts: we use none
            found: dict[str, Any] = json.loads(graph.draw(format="json0", prog="dot"))
            return found
    except (OSError, ValueError) as error:
        raise CaptureError("Graphviz could not lay out the graph", why=str(error).strip()) from error
    finally:
        graph.close()


def _import(name: str) -> Any:
    return needed(name, "drawing a graph", "pydot pygraphviz   (their wheels bring Graphviz along)")


def _dot(root: Group, links: list[Link], sinks: list[str]) -> str:
    pydot = _import("pydot")
    dot = pydot.Dot("scene", graph_type="digraph", ranksep="0.34", nodesep="0.24", splines="spline")
    dot.set_node_defaults(shape="box", fixedsize="true", label='""')
    dot.set_edge_defaults(arrowsize="0.5", weight="1")
    main = {key for link in links if link.main for key in (link.source, link.target)}
    _fill(pydot, dot, root.items, main)
    if sinks:
        bottom = pydot.Subgraph("bottom", rank="sink")
        for key in sinks:
            bottom.add_node(pydot.Node(key))
        dot.add_subgraph(bottom)
    known = {box.key for box in root.boxes()}
    for i, link in enumerate(links):
        if link.source in known and link.target in known:
            dot.add_edge(pydot.Edge(link.source, link.target, id=str(i), **_edge(link)))
    return str(dot.to_string())


def _edge(link: Link) -> dict[str, str]:
    return {"tailport": "s", "headport": "n", "weight": "40"} if link.main else {}


def _fill(pydot: Any, into: Any, items: Iterable[Group | Box], main: set[str]) -> None:
    for item in items:
        if isinstance(item, Group):
            width = round(text_width(item.label + "  " + item.badge, 11, bold=True)) + 44
            room = f'BORDER="0" FIXEDSIZE="TRUE" WIDTH="{width}" HEIGHT="{LABEL_HEIGHT}"'
            label = f"<<TABLE {room}><TR><TD></TD></TR></TABLE>>"
            cluster = pydot.Cluster(item.key, label=label, margin="10")
            _fill(pydot, cluster, item.items, main)
            into.add_subgraph(cluster)
        else:
            width, height = item.size
            size = {"width": f"{width / 72:.4f}", "height": f"{height / 72:.4f}"}
            group = {"group": "main"} if item.key in main else {}
            into.add_node(pydot.Node(item.key, **size, **group))


def _read(found: dict[str, Any], links: list[Link]) -> Placed:
    left, bottom, right, top = (float(v) for v in found["bb"].split(","))
    placed = Placed(right - left, top - bottom)

    def point(text: str) -> Point:
        x, y = text.split(",")
        return float(x) - left, top - float(y)

    for thing in found.get("objects", ()):
        name = str(thing["name"])
        if name.startswith("cluster_"):
            x0, y0, x1, y1 = (float(v) for v in thing["bb"].split(","))
            placed.groups[name.removeprefix("cluster_")] = (x0 - left, top - y1, x1 - left, top - y0)
        elif "pos" in thing:
            placed.boxes[name] = point(thing["pos"])
    for edge in found.get("edges", ()):
        words = edge["pos"].split()
        tip = [point(w[2:]) for w in words if w.startswith("e,")]
        path = [point(w) for w in words if not w.startswith(("e,", "s,"))]
        placed.links[links[int(edge["id"])].key] = [*path, *tip]
    return placed
