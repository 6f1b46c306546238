"""Capture PyTorch programs into one small graph IR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capture._lazy import lazy_names
from capture.errors import CaptureError
from capture.logs import configure

if TYPE_CHECKING:
    from capture.frontends import capture
    from capture.ir.graph import Graph

__all__ = ["CaptureError", "Graph", "capture"]

configure()

_HOMES = {"capture": "capture.frontends", "Graph": "capture.ir.graph"}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
