"""report.html: one file that holds the numbers, the drawings and the tables, and needs no network."""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capture._lazy import needed
from capture.ir import Graph
from capture.wording import human_size
from viz.difference import diff_svg
from viz.labels import common_name
from viz.picture import graph_svg
from viz.strip import latency_svg
from viz.style import FATES, human_count
from viz.timeline import Timeline, memory_svg, timeline_of

_LARGE = 60_000  # characters from which on a drawing that is not shown at first is compressed
TEMPLATES = Path(__file__).parent / "templates"


def report_html(report: Mapping[str, Any], graphs: Mapping[str, Graph], plan: Any = None) -> str:
    """The page as text. Every part whose data is missing is left out.

    Raises:
        CaptureError: jinja2 is missing, or pydot or pygraphviz where there are graphs to draw.
    """
    jinja2 = needed("jinja2", "writing a report")
    from markupsafe import Markup  # which jinja2 brings along

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=human_size,
        count=human_count,
        sci=_scientific,
        ms=_milliseconds,
        places=_places,
        stat=_stat,
        common=common_name,
    )
    timeline = _timeline(report, graphs, plan)
    rows, drawings = report.get("captured_ops") or [], _drawings(graphs)
    counts = Counter(row["fate"] for row in rows)
    page = environment.get_template("report.html.jinja").render(
        r={**_DEFAULTS, **{key: value for key, value in report.items() if value is not None}},
        cards=_cards(report),
        drawings=[{**d, "svg": Markup(d["svg"])} for d in drawings],
        graphs=[(which, _TITLES.get(which, which)) for which in dict.fromkeys(d["which"] for d in drawings)],
        memory=Markup(_inline(memory_svg(timeline))) if timeline is not None else "",
        strip=Markup(_inline(latency_svg(_latencies(report)))),
        ops=_with_code(report.get("ops") or [], graphs),
        slowest=max((row["microseconds"] for row in report.get("ops") or []), default=1.0) or 1.0,
        ledger=_with_code(rows, graphs),
        fates=[
            ("", f"all {len(rows)}"),
            *((fate, f"{counts[fate]} {fate}") for fate in FATES if counts[fate]),
        ],
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
    )
    return str(page)


_DEFAULTS: dict[str, Any] = {
    "model": "", "title": "", "backend": "", "device": "", "dtype": "", "threads": "", "parameters": 0,
    "frontend": "", "machine": {}, "inputs": [], "frontend_attempts": [], "passes": [], "candidates": [],
    "versions": {}, "files": [], "warnings": [], "seconds": {},
}  # fmt: skip


_TITLES = {"captured": "captured", "optimized": "optimised", "changes": "what changed"}


def _inline(svg: str) -> str:
    """An SVG document as an element of an HTML page, where the namespace goes without saying."""
    return svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)


def _timeline(report: Mapping[str, Any], graphs: Mapping[str, Graph], plan: Any) -> Timeline | None:
    memory = report.get("memory") or {}
    told = Timeline.of_report(memory)
    if told is not None:
        return told
    if plan is None and "optimized" in graphs:
        plan = graphs["optimized"].memory_plan
    return timeline_of(plan) if plan is not None else None


def _drawings(graphs: Mapping[str, Graph]) -> list[dict[str, str]]:
    """Each graph folded and unfolded, and what changed between two. The first needs no script to be seen."""
    made = []
    for which, graph in graphs.items():
        title = f"{graph.name}, {_TITLES.get(which, which)}"
        for folding in ("folded", "unfolded"):
            made.append((which, folding, graph_svg(graph, folded=folding == "folded", title=title)))
    if {"captured", "optimized"} <= set(graphs):
        for folding in ("folded", "unfolded"):
            svg = diff_svg(graphs["captured"], graphs["optimized"], folded=folding == "folded")
            made.append(("changes", folding, svg))
    found = []
    for which, folding, svg in made:
        plain = _inline(svg)
        packed = _pack(plain) if found and len(plain) > _LARGE else ""
        found.append({"which": which, "folding": folding, "svg": "" if packed else plain, "packed": packed})
    return found


def _pack(text: str) -> str:
    """Text compressed and in base64; browsers inflate it themselves."""
    return b64encode(zlib.compress(text.encode(), 9)).decode()


def _with_code(rows: list[dict[str, Any]], graphs: Mapping[str, Graph]) -> list[dict[str, Any]]:
    """Table rows with the text of the source lines that they point to."""
    code = {
        (op.file, op.line): op.code for graph in graphs.values() for op in graph.captured.values() if op.code
    }
    return [{**row, "code": code.get((row.get("file"), row.get("line")), "")} for row in rows]


def _cards(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The numbers at the head: label, value, detail, and tone ("good", "bad" or "")."""
    return [card for make in (_speed, _parity, _memory, _nodes) if (card := make(report))]


def _latencies(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the strips show: one of them where eager is kept."""
    sides = dict(report.get("latency_ms") or {})
    if report.get("backend") == "eager":
        sides.pop("optimized", None)
    return sides


def _speed(report: Mapping[str, Any]) -> dict[str, str] | None:
    latency, speedup = report.get("latency_ms"), report.get("speedup")
    if latency and report.get("backend") == "eager":
        eager = _milliseconds(latency["eager"]["median"])
        detail = "; ".join(filter(None, ["run by eager itself: speed-up 1.00 ×", report.get("noisy_reason")]))
        return {"label": "Latency", "value": eager, "detail": detail, "tone": ""}
    if latency and report.get("noisy"):
        sides = " → ".join(_milliseconds(latency[side]["min"]) for side in ("eager", "optimized"))
        detail = f"{report.get('noisy_reason')}; minima {sides}"
        return {"label": "Speed-up", "value": "too noisy to tell", "detail": detail, "tone": ""}
    if not latency or speedup is None:
        return None
    low, high = report.get("speedup_interval") or (speedup, speedup)
    detail = f"95% interval {low:.2f} to {high:.2f}"
    if calls := report.get("breakeven_calls"):
        detail += f"; pays for itself after {calls:,} calls"
    sides = " → ".join(_milliseconds(latency[side]["median"]) for side in ("eager", "optimized"))
    tone = "good" if low > 1 else "bad" if high < 1 else ""
    return {"label": f"Speed-up, {sides}", "value": f"{speedup:.2f} ×", "detail": detail, "tone": tone}


def _parity(report: Mapping[str, Any]) -> dict[str, str] | None:
    parity = report.get("parity")
    if not parity:
        return None
    errors = [("ours", parity.get("error_vs_fp64")), ("eager", parity.get("eager_error_vs_fp64"))]
    detail = ", ".join(f"{name} {_scientific(error)}" for name, error in errors if error is not None)
    detail = f"error against fp64: {detail}" if detail else ""
    if parity.get("reason"):
        detail += f"{'; ' if detail else ''}{parity['reason']}"
    ok = bool(parity.get("ok"))
    value = "agrees" if ok else "differs"
    return {
        "label": "Results against eager",
        "value": value,
        "detail": detail,
        "tone": "good" if ok else "bad",
    }


def _memory(report: Mapping[str, Any]) -> dict[str, str] | None:
    memory = report.get("memory") or {}
    arena, bound, naive = (memory.get(f"{key}_bytes") for key in ("arena", "lower_bound", "naive"))
    if arena is None:
        return None
    parts = [f"naive {human_size(naive)}"] if naive is not None else []
    parts += [f"{arena / bound:.2f} × the lower bound"] if bound else []
    if (measured := memory.get("measured_peak_bytes")) is not None:
        parts.append(f"measured {human_size(measured)}")
    if report.get("backend") not in (None, "aten"):
        parts.append("for the backend aten")
    return {"label": "Memory planned", "value": human_size(arena), "detail": ", ".join(parts), "tone": ""}


def _nodes(report: Mapping[str, Any]) -> dict[str, str] | None:
    nodes = report.get("nodes") or {}
    if "captured" not in nodes:
        return None
    now = nodes.get("optimized")
    value = f"{nodes['captured']}" if now is None else f"{nodes['captured']} → {now}"
    seconds = report.get("seconds") or {}
    detail = ", ".join(f"{name} {spent:.2f} s" for name, spent in seconds.items() if spent is not None)
    return {"label": "Nodes", "value": value, "detail": detail, "tone": ""}


def _scientific(value: Any) -> str:
    return "–" if value is None else f"{value:.2g}"


def _milliseconds(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g} ms" if value < 999.5 else f"{value / 1e3:.3g} s"


def _stat(pair: tuple[str, Any]) -> str:
    """A number that a pass tells: ``folded 53``, ``arena 5.2 MB``."""
    name, value = pair
    if name.endswith("_bytes") and isinstance(value, (int, float)):
        return f"{name.removesuffix('_bytes').replace('_', ' ')} {human_size(value)}"
    return f"{name} {value}"


def _places(row: Mapping[str, Any]) -> str:
    return f"{row['file']}:{row['line']}" if row.get("file") else ""
