"""Capture PyTorch programs into one small graph IR."""

from capture.errors import CaptureError
from capture.frontends import capture
from capture.ir.graph import Graph

__all__ = ["CaptureError", "Graph", "capture"]
