"""Latency samples of two engines as two strips on one scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from viz.elements import document, number, path, rect, text
from viz.style import stylesheet
from viz.timeline import nice_ticks

_CSS = """
.tc .tick{stroke:#6b7686;stroke-opacity:.55;stroke-width:1.4}
.tc .bar0{fill:#c9d0da}
.tc .bar1{fill:#8fb8ea}
.tc .mid{stroke:#1c2128;stroke-width:2}
.tc .grid{stroke:#e7eaee}
@media (prefers-color-scheme:dark){
.tc .tick{stroke:#aab4c1}
.tc .bar0{fill:#3a4451}
.tc .bar1{fill:#2b5688}
.tc .mid{stroke:#e3e8ee}
.tc .grid{stroke:#232b35}
}
""".replace("\n", "")
_LEFT, _WIDTH, _ROW = 74.0, 560.0, 30.0


def latency_svg(latency: Mapping[str, Any]) -> str:
    """`latency` is the report's ``latency_ms``: for "eager" and "optimized" median, min and samples."""
    rows = [
        (name, latency[side])
        for side, name in (("eager", "eager"), ("optimized", "ours"))
        if latency.get(side)
    ]
    shown = [sample for _, row in rows for sample in (row["median"], *row.get("samples", ()))]
    if not shown:
        return ""
    # An outlier is drawn at the edge: it must not press all else to the left.
    top = min(max(shown), 2.5 * max(row["median"] for _, row in rows)) * 1.05
    body = []
    for tick in nice_ticks(top * 1000, 5):
        x = _LEFT + _WIDTH * tick / 1000 / top
        body.append(path("grid", f"M{number(x)},6V{number(10 + _ROW * len(rows))}"))
        body.append(text(x, 24 + _ROW * len(rows), f"{tick / 1000:g} ms", "s m", "middle"))
    for i, (name, row) in enumerate(rows):
        y = 10 + _ROW * i
        middle = _LEFT + _WIDTH * row["median"] / top
        body.append(rect(f"bar{i}", (_LEFT, y + 3, middle, y + 21), 3))
        for sample in row.get("samples", ()):
            x = _LEFT + _WIDTH * min(sample, top) / top
            body.append(path("tick", f"M{number(x)},{number(y + 6)}v12"))
        body.append(path("mid", f"M{number(middle)},{number(y + 1)}v22"))
        body.append(text(_LEFT - 10, y + 16, name, "b", "end"))
        rightmost = max(middle, *(_LEFT + _WIDTH * min(s, top) / top for s in row.get("samples", ())), _LEFT)
        body.append(text(rightmost + 8, y + 16, f"{row['median']:.3g} ms", "halo"))
    return document(_LEFT + _WIDTH + 80, 34 + _ROW * len(rows), stylesheet({}) + _CSS, body)
