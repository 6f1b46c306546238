"""Graph, memory plan and report data in; SVG and HTML out.

viz.svg(graph, "graph.svg")          the graph: modules as frames, repeated blocks once
viz.memory(graph, "memory.svg")      the memory plan: a rectangle a buffer
viz.diff(a, b, "diff.svg")           what passes made of `a`, op by op
viz.report(report, "report.html")    everything on one page, in one file
viz.tradeoff(search, "tune.svg")     what tuning looked at: latency over error
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from capture.ir import Graph
from capture.ir.serialize import write_aside

__all__ = ["diff", "memory", "report", "svg", "tradeoff"]

PathLike = str | os.PathLike[str]


def svg(graph: Graph, path: PathLike | None = None, *, fold: bool = True, title: str | None = None) -> str:
    """Draw a graph.

    Nodes stand in frames by module path; blocks that repeat with the same ops and shapes are drawn once, with
    "× N". Hovering over a box shows its types, operands, source line, kernel and cost.

    Args:
        path: where given, the picture is written there.
        fold: draw repeated blocks once.
        title: the heading; the graph's name without it.

    Returns:
        SVG text. The same graph gives the same bytes.

    Raises:
        CaptureError: pydot or pygraphviz is missing, or the file cannot be written.
    """
    from viz.picture import graph_svg

    return _written(graph_svg(graph, folded=fold, title=title), path)


def memory(graph_or_plan: Any, path: PathLike | None = None) -> str:
    """Draw a memory plan: steps on x, offsets on y, a rectangle a buffer, and what bounds it.

    Args:
        graph_or_plan: a graph that has a plan, or a MemoryPlan.
        path: where given, the picture is written there.

    Returns:
        SVG text.

    Raises:
        CaptureError: the graph has no plan, or the file cannot be written.
    """
    from viz.timeline import memory_svg

    return _written(memory_svg(graph_or_plan), path)


def diff(a: Graph, b: Graph, path: PathLike | None = None, *, fold: bool = True) -> str:
    """Draw what became of graph `a` in graph `b`, which passes made from it.

    Each node of `a` is coloured by its fate (kept, fused, replaced, folded, removed); what was fused into one
    node stands in one frame; nodes that only `b` has are put in where they stand.

    Args:
        path: where given, the picture is written there.
        fold: draw repeated blocks once.

    Returns:
        SVG text.

    Raises:
        CaptureError: pydot or pygraphviz is missing, or the file cannot be written.
    """
    from viz.difference import diff_svg

    return _written(diff_svg(a, b, folded=fold), path)


def report(
    report: Any, path: PathLike, *, graphs: Mapping[str, Graph] | None = None, plan: Any = None
) -> str:
    """Write a report as one HTML file that needs no network.

    Args:
        report: a Report, or the dictionary of its JSON.
        path: the file to write.
        graphs: "captured" and "optimized", to be drawn folded and unfolded.
        plan: a MemoryPlan; without it the plan of the optimised graph, or the report's own timeline is drawn.

    Returns:
        The HTML text.

    Raises:
        CaptureError: jinja2, pydot or pygraphviz is missing, or the file cannot be written.
    """
    from viz.page import report_html

    return _written(report_html(report, graphs or {}, plan), path)


def tradeoff(search: Mapping[str, Any], path: PathLike | None = None) -> str:
    """Draw what tuning looked at: each candidate by latency and by what it loses, and the Pareto front.

    Args:
        search: the dictionary of a TuneResult.
        path: where given, the picture is written there.

    Returns:
        SVG text.

    Raises:
        CaptureError: the file cannot be written.
    """
    from viz.scatter import tradeoff_svg

    return _written(tradeoff_svg(search), path)


def _written(text: str, path: PathLike | None) -> str:
    if path is not None:
        write_aside(path, text)
    return text
