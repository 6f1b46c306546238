"""Compile, execute, compare, benchmark and profile."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.benchmark import benchmark
    from runtime.compare import compare
    from runtime.compile import Compiled, compile
    from runtime.measure import measure
    from runtime.persist import load
    from runtime.profile import profile
    from runtime.report import Report

__all__ = ["Compiled", "Report", "benchmark", "compare", "compile", "load", "measure", "profile"]

_HOMES = {
    "Compiled": "runtime.compile",
    "Report": "runtime.report",
    "benchmark": "runtime.benchmark",
    "compare": "runtime.compare",
    "compile": "runtime.compile",
    "load": "runtime.persist",
    "measure": "runtime.measure",
    "profile": "runtime.profile",
}


def __getattr__(name: str) -> Any:
    """Import torch when it is needed: `python -m capture --help` answers at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Runtime(ModuleType):
    """Five functions have the name of their file, which an import would put in the function's place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Runtime
