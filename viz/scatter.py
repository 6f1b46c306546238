"""Candidates of a search: latency on x, what each loses on y, and the Pareto front as a staircase."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from viz.elements import document, number, path, text, xml
from viz.style import shorten, stylesheet, text_width
from viz.timeline import nice_ticks

_CSS = """
.tc .dot{fill:#8fb8ea;stroke:#4a86cf}
.tc .lost{fill:#f1f2f4;stroke:#a9b0ba}
.tc .chosen{fill:#54ac7d;stroke:#23774a}
.tc .front{fill:none;stroke:#4a86cf;stroke-dasharray:4 3}
.tc .budget{stroke:#c2504f;stroke-width:1.4}
.tc .tn{fill:#b23c3b}
.tc .grid{stroke:#e7eaee}
.tc .axis{fill:none;stroke:#a9b0ba}
@media (prefers-color-scheme:dark){
.tc .dot{fill:#2b5688;stroke:#5e9be0}
.tc .lost{fill:#24292f;stroke:#626b77}
.tc .chosen{fill:#2f8f5b;stroke:#6cc294}
.tc .front{stroke:#5e9be0}
.tc .budget{stroke:#e07b79}
.tc .tn{fill:#ee9290}
.tc .grid{stroke:#232b35}
.tc .axis{stroke:#5b6572}
}
""".replace("\n", "")
_LEFT, _TOP, _WIDTH, _HEIGHT, _FOOT = 64.0, 70.0, 620.0, 320.0, 48.0
_LOWEST = 1e-4  # a drop below it is drawn as it


def tradeoff_svg(search: Mapping[str, Any]) -> str:
    """`search` is what `TuneResult.to_dict()` gives: "trials", "front", "max_drop" and "score"."""
    trials = [t for t in search["trials"] if t["ms"] is not None]
    plot = _Plot(trials, search["max_drop"])
    front = [t for name in search["front"] for t in trials if t["name"] == name]
    score = search["score"]
    told = f"{score['name']}{', a proxy' * score['proxy']}; the dashed line is the Pareto front"
    body = [
        text(18, 28, "Latency over error", "h"),
        text(18, 46, told, "m"),
        *plot.axes(),
        plot.staircase(front),
        *(plot.dot(trial) for trial in trials),
        *plot.names(trials),
    ]
    width = max(_LEFT + _WIDTH + 40, text_width(told, 12) + 36)
    return document(width, _TOP + _HEIGHT + _FOOT, stylesheet({}) + _CSS, body)


class _Plot:
    """Scales: linear from 0 for milliseconds, logarithmic for drops, which lie decades apart."""

    def __init__(self, trials: Sequence[Mapping[str, Any]], budget: float) -> None:
        self.budget = budget
        self.top_ms = max([t["ms"] for t in trials], default=1.0) * 1.05 or 1.0
        worst = max([d for t in trials if (d := t["drop"]) is not None] + [budget, 10 * _LOWEST])
        self.decades = math.ceil(math.log10(worst / _LOWEST) - 1e-9)

    def x(self, ms: float) -> float:
        return _LEFT + _WIDTH * ms / self.top_ms

    def y(self, drop: float | None) -> float:
        """Not finite is drawn at the top."""
        share = 1.0 if drop is None else math.log10(max(drop, _LOWEST) / _LOWEST) / self.decades
        return _TOP + _HEIGHT * (1 - min(share, 1.0))

    def axes(self) -> list[str]:
        foot, right = _TOP + _HEIGHT, _LEFT + _WIDTH
        parts = []
        for decade in range(self.decades + 1):
            drop = _LOWEST * 10**decade
            y = self.y(drop)
            parts.append(path("grid", f"M{number(_LEFT)},{number(y)}H{number(right)}"))
            label = f"{drop:.4g}" if decade else f"< {drop:.4g}"
            parts.append(text(_LEFT - 6, y + 3.5, label, "s m", "end"))
        for tick in nice_ticks(self.top_ms * 1000):
            parts.append(text(self.x(tick / 1000), foot + 15, f"{tick / 1000:g}", "s m", "middle"))
        parts.append(path("axis", f"M{number(_LEFT)},{number(_TOP)}V{number(foot)}H{number(right)}"))
        parts.append(text(right, foot + 32, "milliseconds a call", "s m", "end"))
        parts.append(text(18, _TOP - 8, "drop of the score", "s m"))
        if self.budget > 0:
            y = self.y(self.budget)
            parts.append(path("budget", f"M{number(_LEFT)},{number(y)}H{number(right)}"))
            parts.append(text(right - 6, y - 5, f"budget {self.budget:.4g}", "s tn halo", "end"))
        return parts

    def staircase(self, front: Sequence[Mapping[str, Any]]) -> str:
        points = [(self.x(t["ms"]), self.y(t["drop"])) for t in front]
        if not points:
            return ""
        steps = "".join(f"H{number(x)}V{number(y)}" for x, y in points[1:])
        return path("front", f"M{number(points[0][0])},{number(points[0][1])}{steps}", 1.4)

    def dot(self, trial: Mapping[str, Any]) -> str:
        look = "chosen" if trial["kept"] else "dot" if trial["met"] else "lost"
        drop = "not finite" if trial["drop"] is None else f"{trial['drop']:.4g}"
        lines = [trial["name"], f"{trial['ms']:.4g} ms, drop {drop}", trial["reason"]]
        title = xml("\n".join(filter(None, lines)))
        at = f'cx="{number(self.x(trial["ms"]))}" cy="{number(self.y(trial["drop"]))}"'
        return f'<g class="v"><circle class="{look}" {at} r="5"><title>{title}</title></circle></g>'

    def names(self, trials: Sequence[Mapping[str, Any]]) -> list[str]:
        """A name beside each dot, moved up where another stands."""
        parts: list[str] = []
        taken: list[tuple[float, float, float]] = []
        for trial in sorted(trials, key=lambda t: (not t["kept"], t["ms"])):
            told = shorten(trial["name"], 40)
            wide = text_width(told, 10.5)
            left = self.x(trial["ms"]) + 9
            left = left if left + wide < _LEFT + _WIDTH + 30 else left - wide - 18
            y = self.y(trial["drop"]) - 4
            while any(
                abs(y - other) < 12 and left < end and start < left + wide + 8 for other, start, end in taken
            ):
                y -= 12
            taken.append((y, left, left + wide + 8))
            parts.append(text(left, y, told, "s b halo" if trial["kept"] else "s halo"))
        return parts
