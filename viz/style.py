"""The look that all pictures share: kinds of op, colours for light and dark, text widths.

The CSS uses plain colours and one media query, no variables, so that viewers outside browsers show it too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"


@dataclass(frozen=True)
class Colour:
    """Fill, border and ink of one meaning, on a light and on a dark ground."""

    meaning: str
    light: tuple[str, str, str]
    dark: tuple[str, str, str]


KINDS: dict[str, Colour] = {
    "compute": Colour(
        "compute (conv, matmul)", ("#d9e8fb", "#4a86cf", "#12355f"), ("#17324f", "#5e9be0", "#d5e6fb")
    ),
    "pointwise": Colour("memory-bound", ("#fdeccb", "#cf9a35", "#59400c"), ("#40331a", "#c99a45", "#f8e7c4")),
    "reduction": Colour(
        "reduction, norm, pool", ("#d7f0e0", "#4aa272", "#14482d"), ("#17392a", "#54ac7d", "#d2f0de")
    ),
    "move": Colour("view or move", ("#f1f2f4", "#a9b0ba", "#4c545f"), ("#24292f", "#626b77", "#c3cad3")),
    "folded": Colour(
        "from constants only", ("#ece3f8", "#9a78c9", "#432a68"), ("#31264a", "#9c7fd0", "#e6dcf7")
    ),
    "other": Colour(
        "effects, or unknown", ("#fbdfe3", "#cf6679", "#651c2b"), ("#471f2a", "#d0707f", "#fadbe0")
    ),
}

FATES: dict[str, Colour] = {
    name: replace(KINDS[kind], meaning=meaning)
    for name, kind, meaning in (
        ("kept", "move", "kept"),
        ("fused", "compute", "fused"),
        ("replaced", "pointwise", "replaced"),
        ("folded", "folded", "folded into constants"),
        ("removed", "other", "removed"),
        ("new", "reduction", "new"),
    )
}

_INK = ("#1c2128", "#e3e8ee")
_MUTED = ("#667080", "#98a3b1")
_GROUND = ("#ffffff", "#0f141a")
_LINE = ("#8a94a3", "#76818f")
_MAIN = ("#4f5b6b", "#b3becb")
_GROUP = (("#f8f9fb", "#d5dae1"), ("#161c24", "#303a46"))
_FRAME = (("#f3f8fe", "#4a86cf"), ("#132234", "#5e9be0"))
_GROUP_DEEP = (("#f0f3f7", "#c9d0d9"), ("#1d252f", "#3a4654"))


def stylesheet(colours: Mapping[str, Colour]) -> str:
    """CSS of a picture whose boxes carry the classes `k-<name>` for the names in `colours`."""
    light, dark = _rules(colours, 0), _rules(colours, 1)
    return f"{_FIXED}{light}@media (prefers-color-scheme:dark){{{dark}}}"


_FIXED = f"""
.tc text{{font:12px {FONT}}}
.tc .b{{font-weight:bold}}
.tc .s{{font-size:10.5px}}
.tc .xs{{font-size:10px}}
.tc .h{{font-size:16px;font-weight:bold}}
.tc .gl{{font-size:11px;font-weight:bold}}
.tc .e{{fill:none}}
.tc .halo{{paint-order:stroke;stroke-width:3px;stroke-opacity:.8;stroke-linejoin:round}}
.tc .dash{{stroke-dasharray:4 3}}
.tc .n,.tc .v{{cursor:default}}
.tc .dim{{opacity:.22}}
.tc .k-removed{{stroke-dasharray:4 3}}
.tc .t-removed{{text-decoration:line-through}}
""".replace("\n", "")


def _rules(colours: Mapping[str, Colour], side: int) -> str:
    rules = [
        f".tc{{background:{_GROUND[side]}}}.tc .ground{{fill:{_GROUND[side]}}}.tc text{{fill:{_INK[side]}}}",
        f".tc .m{{fill:{_MUTED[side]}}}.tc .halo{{stroke:{_GROUND[side]}}}",
        f".tc .e{{stroke:{_LINE[side]}}}.tc .a{{fill:{_LINE[side]}}}",
        f".tc .main .e{{stroke:{_MAIN[side]}}}.tc .main .a{{fill:{_MAIN[side]}}}",
        f".tc .g0{{fill:{_GROUP[side][0]};stroke:{_GROUP[side][1]}}}",
        f".tc .g1{{fill:{_GROUP_DEEP[side][0]};stroke:{_GROUP_DEEP[side][1]}}}",
        f".tc .frame{{fill:{_FRAME[side][0]};stroke:{_FRAME[side][1]}}}",
        f".tc .io{{fill:{_GROUND[side]};stroke:{_MAIN[side]}}}",
        f".tc .badge{{fill:{_MAIN[side]}}}.tc .bt{{fill:{_GROUND[side]}}}",
        f".tc .n:hover rect{{stroke:{_INK[side]}}}",
    ]
    for name, colour in colours.items():
        fill, border, ink = colour.dark if side else colour.light
        rules.append(f".tc .k-{name}{{fill:{fill};stroke:{border}}}.tc .t-{name}{{fill:{ink}}}")
        rules.append(f".tc .d-{name}{{fill:{border}}}")
    return "".join(rules)


# Advance widths of Helvetica (and of the faces made to its measure), in thousandths of the size.
_WIDTHS: dict[str, int] = {
    **dict.fromkeys("ijl", 222),
    **dict.fromkeys(" !,./:;I[]\\ft", 278),
    **dict.fromkeys("()-r`{}", 333),
    **dict.fromkeys("*^", 430),
    **dict.fromkeys("Jckvsxyz", 500),
    **dict.fromkeys("+<=>~×−", 584),
    **dict.fromkeys("FTZ", 611),
    **dict.fromkeys("&ABEKPSVXY", 667),
    **dict.fromkeys("CDHNRUw", 722),
    **dict.fromkeys("GOQ", 778),
    **dict.fromkeys("Mm", 833),
    **dict.fromkeys("W%", 944),
    **dict.fromkeys("@…→", 1015),
}


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width of a line in px. Our own table: a layout must not depend on the fonts that a machine has."""
    total = sum(_WIDTHS.get(c, 556 if ord(c) < 0x2E80 else 1000) for c in text)
    return total * size / 1000 * (1.07 if bold else 1.0)


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters; what is left out in the middle shows as an ellipsis."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def human_count(number: float) -> str:
    """25.6 M, 1.7 k, 12."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number:.0f}"


def counted(number: int, noun: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def edge_width(size: float) -> float:
    """Stroke width in px of an edge that carries `size` bytes: logarithmic, 1 up to 1 kB, 6 from 64 MB."""
    return min(6.0, 1.0 + 5.0 * max(0.0, math.log2(max(size, 1) / 1024)) / 16)
