"""Compile, execute, compare, benchmark and profile."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from capture._lazy import lazy_names

if TYPE_CHECKING:
    from runtime.benchmark import benchmark
    from runtime.compare import compare
    from runtime.compile import Compiled, compile
    from runtime.explain import Explanation, explain
    from runtime.finetune import finetune
    from runtime.measure import measure
    from runtime.persist import load
    from runtime.profile import profile
    from runtime.report import Report
    from runtime.tune import tune

__all__ = [
    "Compiled", "Explanation", "Report", "benchmark", "compare", "compile", "explain", "finetune", "load",
    "measure", "profile", "tune",
]  # fmt: skip

_HOMES = {
    "Compiled": "runtime.compile",
    "Explanation": "runtime.explain",
    "Report": "runtime.report",
    "benchmark": "runtime.benchmark",
    "compare": "runtime.compare",
    "compile": "runtime.compile",
    "explain": "runtime.explain",
    "finetune": "runtime.finetune",
    "load": "runtime.persist",
    "measure": "runtime.measure",
    "profile": "runtime.profile",
    "tune": "runtime.tune",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)

if "torch" in sys.modules:  # else nobody has called torch.compile, and the command line should start quickly
    from runtime.registration import register

    register()
