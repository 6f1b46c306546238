"""The memory plan as a picture: steps on x, bytes on y, one rectangle a buffer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

from capture.errors import CaptureError
from capture.ir import Graph
from capture.wording import human_size
from viz.elements import Rect, document, number, path, rect, text
from viz.labels import common_name, kind_of_name, modules_by_name
from viz.style import KINDS, counted, shorten, stylesheet, text_width

PLOT_HEIGHT = 380.0
LEFT, RIGHT, TOP, BOTTOM = 78.0, 24.0, 140.0, 34.0  # around the plot, for axes and headings
_NAIVE = 100.0  # where the naive level is drawn: above the break in the axis
_HOLDERS = 6

_CSS = """
.tc .live{fill:none;stroke:#1c2128}
.tc .bound{stroke:#2f8f5b;stroke-width:1.6;stroke-dasharray:6 4}
.tc .naive{stroke:#c2504f;stroke-width:1.6}
.tc .measured{stroke:#8a94a3;stroke-width:1.4;stroke-dasharray:2 3}
.tc .planned{stroke:#8a94a3;stroke-width:1.4}
.tc .tb{fill:#23774a}
.tc .tn{fill:#b23c3b}
.tc .axis{fill:none;stroke:#a9b0ba}
.tc .grid{stroke:#e7eaee}
.tc .step{fill:transparent}
.tc .step:hover{fill:rgba(120,130,150,.16)}
.tc .v:hover rect{stroke-width:2}
.tc rect.callee{fill-opacity:.5}
.tc rect.holds{stroke:#d9480f}
.tc .mark{fill:#d9480f}
.tc .over{pointer-events:none}
@media (prefers-color-scheme:dark){
.tc .live{stroke:#e3e8ee}
.tc .bound{stroke:#54ac7d}
.tc .naive{stroke:#e07b79}
.tc .measured,.tc .planned{stroke:#76818f}
.tc .tb{fill:#6cc294}
.tc .tn{fill:#ee9290}
.tc .axis{stroke:#5b6572}
.tc .grid{stroke:#232b35}
.tc rect.holds{stroke:#ff8a50}
.tc .mark{fill:#ff8a50}
}
""".replace("\n", "")


@dataclass(frozen=True)
class Bar:
    """A buffer: alive in steps first <= step < end, at bytes [offset, offset + size)."""

    name: str
    op: str
    location: str
    first: int
    end: int
    offset: int
    size: int
    callee: bool
    values: tuple[str, ...] = ()
    module: str = ""


@dataclass(frozen=True)
class Timeline:
    """What the picture shows. Sizes in bytes."""

    bars: tuple[Bar, ...]
    steps: tuple[str, ...]
    live: tuple[int, ...]
    arena: int
    lower_bound: int
    naive: int
    callee: int
    results: int
    measured: int = 0  # what a run's own peak was, where known

    @staticmethod
    def of_plan(plan: Any) -> Timeline:
        """From a MemoryPlan."""
        bars = tuple(
            Bar(b.name, b.op, b.location, b.first, b.end, b.offset, b.size, b.callee, tuple(b.values))
            for b in plan.buffers
        )
        sizes = plan.arena_bytes, plan.lower_bound_bytes, plan.naive_bytes, plan.callee_allocated_bytes
        return Timeline(bars, tuple(plan.steps), tuple(plan.live_bytes), *sizes, plan.results_bytes)

    @staticmethod
    def of_report(memory: Mapping[str, Any]) -> Timeline | None:
        """From the `memory` part of a report; None where it has no timeline."""
        rows = memory.get("timeline")
        if not rows:
            return None
        fields = ("name", "op", "location", "first", "end", "offset", "size", "callee")
        modules = {row["name"]: row.get("module", "") for row in memory.get("peak_holders") or ()}
        bars = tuple(
            Bar(*(row[f] for f in fields), module=modules.get(row["name"], "")) for row in rows["buffers"]
        )
        keys = ("arena_bytes", "lower_bound_bytes", "naive_bytes", "callee_allocated_bytes", "results_bytes")
        keys += ("measured_peak_bytes",)
        sizes = [int(memory.get(key) or 0) for key in keys]
        return Timeline(bars, tuple(map(str, rows["steps"])), tuple(rows["live_bytes"]), *sizes)


def timeline_of(source: Any) -> Timeline:
    """The timeline of a graph's plan, or of a plan.

    Raises:
        CaptureError: the graph has no plan for its present version.
    """
    if isinstance(source, Timeline):
        return source
    if isinstance(source, Graph):
        if source.memory_plan is None:
            raise CaptureError(
                "the graph has no memory plan",
                why="a plan is made by the pass `memory`, and holds until the graph is edited",
                hint="passes.optimize(graph, level=2)",
            )
        told, modules = Timeline.of_plan(source.memory_plan), modules_by_name(source)
        return replace(told, bars=tuple(replace(b, module=modules.get(b.name, "")) for b in told.bars))
    return Timeline.of_plan(source)


def memory_svg(source: Any) -> str:
    """A plan as SVG text."""
    return _Painter(timeline_of(source)).svg()


class _Painter:
    def __init__(self, timeline: Timeline) -> None:
        self.t = timeline
        self.count = max(len(timeline.steps), 1)
        self.plot_width = min(1250.0, max(640.0, self.count * 14.0))
        self.top_bytes = max([timeline.arena, timeline.lower_bound, timeline.measured, *timeline.live, 1])
        self.peak = max(range(len(timeline.live)), key=timeline.live.__getitem__, default=-1)
        self.holders = sorted(
            (b for b in timeline.bars if b.first <= self.peak < b.end),
            key=lambda b: (-b.size, b.first, b.name),
        )
        self.footer = self._footer()
        self.captions: list[tuple[float, float]] = []  # heights and widths of what levels are called

    def x(self, step: float) -> float:
        return LEFT + self.plot_width * step / self.count

    def y(self, size: float) -> float:
        return TOP + PLOT_HEIGHT * (1 - size / self.top_bytes)

    def svg(self) -> str:
        heading, needed = self._heading()
        width = max(LEFT + self.plot_width + RIGHT, needed)
        height = TOP + PLOT_HEIGHT + BOTTOM + 18 * len(self.footer) + 14
        body = [
            *heading,
            *self._axes(),
            *self._strips(),
            *(self._bar(bar) for bar in self.t.bars if bar not in self.holders),
            *(self._bar(bar) for bar in self.holders),
            *self._levels(),
            *(self._name(bar) for bar in self.t.bars),
            *self.footer,
        ]
        return document(width, height, stylesheet(KINDS) + _CSS, body)

    def _heading(self) -> tuple[list[str], float]:
        """Title, facts and legend, and the width that they take."""
        t = self.t
        facts = [
            f"{counted(len(t.bars), 'buffer')} over {counted(len(t.steps), 'step')}",
            f"planned {human_size(t.arena)}",
        ]
        if t.lower_bound:
            facts[-1] += f" = {t.arena / t.lower_bound:.2f} × the lower bound"
        facts.append(f"naive {human_size(t.naive)}")
        facts.append(f"operators allocate at most {human_size(t.callee)} of it themselves")
        facts.append(f"results {human_size(t.results)} apart")
        told = " · ".join(facts)
        parts = [text(18, 28, "Memory plan", "h"), text(18, 46, told, "m")]
        used = {kind_of_name(bar.op) for bar in t.bars}
        marks = [(f"k-{name}", colour.meaning) for name, colour in KINDS.items() if name in used]
        marks += [("k-move callee dash", "dashed: allocated by the operator itself")] if t.callee else []
        marks += [("io holds", "alive at the peak")] if self.holders else []
        x = 18.0
        for look, meaning in marks:
            parts += [rect(look, (x, 57, x + 12, 69), 2), text(x + 17, 67, meaning, "s m")]
            x += 33 + text_width(meaning, 10.5)
        parts += [path("live", f"M{number(x)},63h18", 1.6), text(x + 23, 67, "bytes alive", "s m")]
        return parts, max(x + 23 + text_width("bytes alive", 10.5), 18 + text_width(told, 12)) + 18

    def _axes(self) -> Iterator[str]:
        right, foot = self.x(self.count), TOP + PLOT_HEIGHT
        for size in nice_ticks(self.top_bytes):
            y = self.y(size)
            yield _level("grid", y, right) + text(LEFT - 8, y + 3.5, human_size(size), "s m", "end")
        broken = f"V{number(TOP - 12)}l-5,-3l10,-5l-5,-3V{number(_NAIVE - 8)}"
        yield path(
            "axis", f"M{number(LEFT)},{number(foot)}{broken}M{number(LEFT)},{number(foot)}H{number(right)}"
        )
        for step in nice_ticks(self.count - 1):
            yield text(self.x(step + 0.5), foot + 15, step, "s m", "middle")
        yield text(right, foot + 29, "step (one op each, in the order of the schedule)", "s m", "end")

    def _strips(self) -> Iterator[str]:
        """A column behind each step, to hover over."""
        for i, (label, live) in enumerate(zip(self.t.steps, self.t.live, strict=True)):
            area = (self.x(i), TOP, self.x(i + 1), TOP + PLOT_HEIGHT)
            yield rect("step", area, title=f"step {i}: {label}\n{human_size(live)} alive")

    def _area(self, bar: Bar) -> Rect:
        x, y = self.x(bar.first), self.y(bar.offset + bar.size)
        return x, y, max(x + 1, self.x(bar.end)), max(y + 1, self.y(bar.offset))

    def _bar(self, bar: Bar) -> str:
        lines = [f"{bar.name}   {human_size(bar.size)}", bar.op, bar.location]
        lines.append(f"alive in steps {bar.first} to {bar.end - 1}, offset {bar.offset:,}")
        lines += ["allocated by the operator itself"] if bar.callee else []
        lines += [f"holds {', '.join(bar.values)}"] if len(bar.values) > 1 else []
        look = f"k-{kind_of_name(bar.op)}" + " callee dash" * bar.callee
        stroke = 1.0 if self.count < 200 else 0.6
        if bar in self.holders:
            look, stroke = f"{look} holds", 2.0
        return f'<g class="v">{rect(look, self._area(bar), 0, stroke, chr(10).join(filter(None, lines)))}</g>'

    def _name(self, bar: Bar) -> str:
        """The buffer's name, where there is room for it."""
        left, top, right, bottom = self._area(bar)
        for shown in (f"{bar.name} {bar.op.partition('.')[2].partition('.')[0]}", bar.name):
            if bottom - top >= 13 and text_width(shown, 10) <= right - left - 8:
                return text(left + 4, top + min((bottom - top) / 2 + 3.5, 14), shown, "xs halo over")
        return ""

    def _levels(self) -> Iterator[str]:
        """Bytes alive as a line, bounds as levels (the naive one above the break), a mark at the peak."""
        t, right = self.t, self.x(self.count)
        if t.live:
            stairs = (f"V{number(self.y(size))}H{number(self.x(i + 1))}" for i, size in enumerate(t.live))
            width = 1.6 if self.count < 300 else 1.0
            yield path("live", f"M{number(self.x(0))},{number(self.y(t.live[0]))}{''.join(stairs)}", width)
        levels = [("bound", "tb", "lower bound", t.lower_bound), ("measured", "m", "measured", t.measured)]
        levels += [("planned", "m", "planned", t.arena)] if t.arena != t.lower_bound else []
        times = f" ({t.naive / t.arena:.1f} ×)" if t.arena else ""
        yield _level("naive", _NAIVE, right) + self._caption(
            _NAIVE, f"naive {human_size(t.naive)}{times}", "tn"
        )
        for look, ink, label, size in levels:
            if size:
                y = self.y(size)
                yield _level(look, y, right) + self._caption(y, f"{label} {human_size(size)}", ink)
        if self.holders:
            x, y = self.x(self.peak + 0.5), self.y(t.live[self.peak])
            yield path("mark", f"M{number(x - 5)},{number(y - 11)}h10l-5,8Z")

    def _caption(self, y: float, told: str, ink: str) -> str:
        """A level's name above its line, beside those of levels close by, at the end away from the peak."""
        used = sum(width for other, width in self.captions if abs(other - y) < 12)
        self.captions.append((y, text_width(told, 10.5) + 14))
        if self.peak >= self.count / 2:
            return text(LEFT + 8 + used, y - 5, told, f"s {ink} halo")
        return text(self.x(self.count) - 8 - used, y - 5, told, f"s {ink} halo", "end")

    def _footer(self) -> list[str]:
        """Who holds the memory at the peak."""
        if not self.holders:
            return []
        y = TOP + PLOT_HEIGHT + BOTTOM + 16
        head = f"Peak of {human_size(self.t.live[self.peak])} in step {self.peak}, {self.t.steps[self.peak]}"
        lines = [text(18, y, f"{shorten(head, 96)}, held by", "b")]
        for bar in self.holders[:_HOLDERS]:
            y += 18
            told = "  ".join(filter(None, (bar.name, common_name(bar.op), bar.module, bar.location)))
            lines.append(
                text(96, y, human_size(bar.size), "s", "end") + text(108, y, shorten(told, 108), "s m")
            )
        if rest := self.holders[_HOLDERS:]:
            size = human_size(sum(bar.size for bar in rest))
            lines.append(
                text(96, y + 18, size, "s", "end") + text(108, y + 18, f"in {len(rest)} more", "s m")
            )
        return lines


def _level(look: str, y: float, right: float) -> str:
    return path(look, f"M{number(LEFT)},{number(y)}H{number(right)}")


def nice_ticks(top: float, wanted: int = 6) -> list[int]:
    """Whole numbers 0, s, 2s, ... up to `top`, at most `wanted` + 1 of them, with s = 1, 2, 5, 10, 20, ..."""
    step = 1
    for tenths in cycle((20, 25, 20)):
        if top / step <= wanted:
            break
        step = step * tenths // 10
    return [i * step for i in range(int(top / step) + 1)]
