"""Latency of engines measured against each other, and what each module took of it: all that tuning times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.benchmark import benchmark
from runtime.profile import profile
from runtime.reference import undone

__all__ = ["EngineTime", "Timer", "measure_engines"]

SECONDS = 0.8  # of timing, for each engine
PROFILED_CALLS = 7


@dataclass(frozen=True)
class EngineTime:
    """What a call of an engine takes.

    Attributes:
        ms: the median call, in milliseconds.
        modules: milliseconds of its ops, by the module paths that they stand for; empty where not profiled.
        doubt: why the machine was too busy to tell; empty where it was not.
    """

    ms: float
    modules: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    doubt: str = ""


Timer = Callable[[Mapping[str, Any], Sequence[Any]], Mapping[str, EngineTime]]


def measure_engines(engines: Mapping[str, Any], args: Sequence[Any]) -> dict[str, EngineTime]:
    """Time engines in interleaved rounds, then profile those that were compiled.

    Args:
        engines: modules, or what `runtime.compile` returned, by name.
        args: the inputs of each call.
    """
    timing = benchmark(engines, args, seconds=SECONDS * len(engines))
    return {
        name: EngineTime(
            timing.rows[name].median, _modules(f, args) if hasattr(f, "graph") else {}, timing.doubt(name)
        )
        for name, f in engines.items()
    }


def _modules(f: Any, args: Sequence[Any]) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    with undone(f):
        for event in profile(f, args, runs=PROFILED_CALLS).events:
            paths = tuple(event.module.split(", ")) if event.module else ()
            found[paths] = found.get(paths, 0.0) + event.microseconds / 1e3
    return found
