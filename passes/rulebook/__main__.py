"""`python -m passes.rulebook` prints docs/built-in-rules.md: every built-in rule, by its file."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

from passes.rewriting import rules
from passes.rulebook import BUILT_IN

INTRODUCTION = """\
# The built-in rules

Operators that a model spells out are put back as the one operator that they are, from level 2 on. Each
spelling is a rule of its own: `--passes 'rewrite{rules=gelu.1+gelu.2}'` runs two of them alone, and
`python -m capture explain` tells which were applied. [Write a rewrite rule](rules.md) shows how to add one.
This page is printed by `python -m passes.rulebook`.
"""


def page() -> str:
    """The whole page: for each file of rules its header, then its rules."""
    return "\n".join([INTRODUCTION, *_sections()])


def _sections() -> Iterator[str]:
    for module, families in BUILT_IN.items():
        yield f"## {module.rpartition('.')[2].replace('_', ' ')}\n"
        yield inspect.cleandoc(sys.modules[module].__doc__ or "") + "\n"
        yield "| rules | spellings | not looked at in graphs without | may differ for |"
        yield "|---|---|---|---|"
        for family, names in families.items():
            yield f"| {family} | {len(names)} | {_anchors(names)} | {_excuses(names)} |"
        yield ""


def _anchors(names: list[str]) -> str:
    """The operators that all of these rules need."""
    known = rules()
    shared = set.intersection(*({str(op) for op in known[name].anchors} for name in names))
    return ", ".join(sorted(op.removeprefix("aten.") for op in shared)) or "those of the spelling"


def _excuses(names: list[str]) -> str:
    """The kinds of numbers for which one of these rules may differ, and why."""
    known = rules()
    told: dict[str, list[str]] = {}
    for kind, why in dict.fromkeys(pair for name in names for pair in known[name].excused.items()):
        told.setdefault(why, []).append(kind)
    return "; ".join(f"{' and '.join(kinds)}: {why}" for why, kinds in told.items())


if __name__ == "__main__":
    sys.stdout.write(page())
