"""`import runtime` lets torch.compile know the backend "capture" in a checkout that is not installed.

An installation is found by its entry point, without an import.
"""

from __future__ import annotations

from torch._dynamo.backends import registry

from capture.__main__ import backend

__all__ = ["NAME", "register"]

NAME = "capture"


def register() -> None:
    """Tell torch.compile, once."""
    if NAME not in registry._COMPILER_FNS:
        registry.register_backend(backend, name=NAME)
