"""Per-op times of one call, eager's or ours, mapped to module path and source line; Chrome traces of them."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from capture.ir.serialize import write_aside
from runtime.benchmark import no_garbage_collection
from runtime.recorders import EagerRecorder, Event, line_recorder
from runtime.reference import clone_inputs, runnable, undone

__all__ = ["Profile", "chrome_trace", "profile"]


@dataclass(frozen=True)
class Profile:
    """The ops of one call in order; microseconds are medians over several calls."""

    events: tuple[Event, ...]

    @property
    def microseconds(self) -> float:
        """All ops together; what lies between them is not in it."""
        return sum(event.microseconds for event in self.events)

    def rows(self) -> list[dict[str, Any]]:
        """Ops of the same kind, module and line as one row, the slowest first; shares are of all ops."""
        groups: dict[tuple[str, str, str, int], list[Event]] = {}
        for event in self.events:
            groups.setdefault((event.op, event.module, event.file, event.line), []).append(event)
        total = self.microseconds or 1.0
        rows = []
        for (op, module, file, line), events in groups.items():
            spent = sum(event.microseconds for event in events)
            rows.append(
                {
                    "name": events[0].name,
                    "op": op,
                    "module": module,
                    "file": file,
                    "line": line,
                    "calls": len(events),
                    "microseconds": spent,
                    "share": spent / total,
                }
            )
        return sorted(rows, key=lambda row: -row["microseconds"])

    def chrome_trace(self, path: str | os.PathLike[str], title: str = "call") -> None:
        """Write a trace that chrome://tracing and Perfetto open."""
        chrome_trace(path, {title: self})


def profile(
    f: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, runs: int = 5
) -> Profile:
    """Time each op of a call.

    Args:
        f: a plain module (its ATen ops as dispatched), or what `runtime.compile` returned: a row for each
            node of the optimised graph (aten, triton), kernel of ONNX Runtime (onnx), or ATen op (eager).
        runs: calls that the medians are taken over; one more is made before them.
    """
    runs = max(1, runs)
    if getattr(f, "backend", None) == "onnx":
        from runtime.onnx_profile import record_onnx

        return Profile(tuple(_medians(record_onnx(f, args, kwargs or {}, runs))))
    function, make = _recorder(f)
    given, given_kw = clone_inputs((tuple(args), dict(kwargs or {})))
    recorded: list[list[Event]] = []
    # torch.cond compiles itself when it is called, but not under a recorder.
    uncompiled = torch.compiler.set_stance("force_eager")
    with torch.no_grad(), no_garbage_collection(), undone(f), uncompiled:
        function(*given, **given_kw)
        for _ in range(runs):
            with make() as recorder:
                function(*given, **given_kw)
            recorded.append(recorder.events)
    return Profile(tuple(_medians(recorded)))


def _recorder(f: Any) -> tuple[Any, Any]:
    """What to call, and what makes a recorder for it."""
    backend = getattr(f, "backend", None)
    if backend in ("aten", "triton"):
        return f, lambda: line_recorder(f.graph, f.executable.module, f.source)
    if backend == "eager":
        return f, lambda: EagerRecorder(f.module)
    function = runnable(f)
    return function, lambda: EagerRecorder(function)


def _medians(recorded: list[list[Event]]) -> list[Event]:
    """Median time by position; of the last call alone where calls took different paths."""
    last = recorded[-1]
    alike = [events for events in recorded if [e.op for e in events] == [e.op for e in last]]
    return [
        replace(event, microseconds=statistics.median(events[i].microseconds for events in alike))
        for i, event in enumerate(last)
    ]


def chrome_trace(path: str | os.PathLike[str], profiles: Mapping[str, Profile]) -> None:
    """Write profiles as processes of one trace, in the Trace Event Format.

    Raises:
        CaptureError: the place cannot be written to.
    """
    events: list[dict[str, Any]] = []
    for process, (title, made) in enumerate(profiles.items(), start=1):
        events.append({"ph": "M", "pid": process, "tid": 0, "name": "process_name", "args": {"name": title}})
        for event in made.events:
            place = {"module": event.module, "line": f"{event.file}:{event.line}" if event.file else ""}
            events.append(
                {
                    "ph": "X",
                    "pid": process,
                    "tid": 0,
                    "name": event.op,
                    "cat": "op",
                    "ts": event.start,
                    "dur": event.microseconds,
                    "args": {"value": event.name, **place},
                }
            )
    write_aside(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=1) + "\n")
