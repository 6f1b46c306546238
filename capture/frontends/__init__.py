"""Front ends: ways from a PyTorch program to a Graph."""

from capture.frontends.ladder import capture

__all__ = ["capture"]
