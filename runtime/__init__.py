"""Compile, execute, compare, benchmark and profile."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from capture._lazy import lazy_names

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
__getattr__, __dir__ = lazy_names(__name__, _HOMES)


class _Runtime(ModuleType):
    """Five functions have the name of their file, which an import would put in the function's place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Runtime
