"""Capture PyTorch programs into one small graph IR."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from capture.errors import CaptureError
from capture.logs import configure

if TYPE_CHECKING:
    from capture.frontends import capture
    from capture.ir.graph import Graph

__all__ = ["CaptureError", "Graph", "capture"]

configure()

_HOMES = {"capture": "capture.frontends", "Graph": "capture.ir.graph"}


def __getattr__(name: str) -> Any:
    """Import torch when it is needed: the command line can then say what is wrong, or be stopped, before."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
