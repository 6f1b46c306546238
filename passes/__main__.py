"""`python -m passes` prints docs/passes.md: every pass, made from the header of its file."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator

import passes
from passes.base import Pass

INTRODUCTION = """\
# The passes

Each pass takes a graph and edits it: `passes.optimize(graph, passes=["simplify", "fold-constants"])`, with
options in braces as in `fold-constants{max_bytes=1024}`. [Write your first pass](first-pass.md) shows how one
is made. This page is printed by `python -m passes`, from the headers of their files.
"""


def page() -> str:
    """The whole page, in the order in which the default pipeline runs the passes."""
    return "\n".join([INTRODUCTION, *_levels(), "", *_sections()])


def _levels() -> Iterator[str]:
    yield "| level | passes, in order |"
    yield "|---|---|"
    for level, names in passes.PIPELINES.items():
        yield f"| {level} | {', '.join(names) or 'none'} |"


def _sections() -> Iterator[str]:
    known = {name: cls for name, cls in passes.registered().items() if cls.__module__.startswith("passes.")}
    ordered = dict.fromkeys(name for names in passes.PIPELINES.values() for name in names if name in known)
    for name in [*ordered, *sorted(set(known) - set(ordered))]:
        yield f"## {name}\n"
        yield inspect.cleandoc(sys.modules[known[name].__module__].__doc__ or "") + "\n"
        if options := list(_options(known[name])):
            yield "\n".join(["Options:\n", *options]) + "\n"


def _options(cls: type[Pass]) -> Iterator[str]:
    for field in (f for f in dataclasses.fields(cls) if f.repr):
        yield f"- `{field.name}` (default {field.default!r})"


if __name__ == "__main__":
    sys.stdout.write(page())
