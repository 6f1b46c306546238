"""Fill a template: its blocks are the pieces of a kernel file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capture._lazy import needed
from codegen.triton.file import KernelFile

if TYPE_CHECKING:
    import jinja2

_PIECES = ("kernels", "launch", "reference", "examples", "captured", "work")


def fill(template: str, *, kind: str, title: str, notes: str, **holes: Any) -> KernelFile:
    """The kernel file that `<template>.py.jinja` gives with these holes filled.

    Raises:
        CaptureError: jinja2 is missing.
    """
    loaded = _environment().get_template(f"{template}.py.jinja")
    context = loaded.new_context(holes)
    pieces = {piece: "".join(loaded.blocks[piece](context)) for piece in _PIECES}
    return KernelFile(kind=kind, title=title, notes=notes, **pieces)


@cache
def _environment() -> jinja2.Environment:
    jinja2 = needed("jinja2", "writing kernels")
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


__all__ = ["fill"]
