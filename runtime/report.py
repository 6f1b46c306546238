"""The report: one JSON document that says what was done, what it costs, and whether it is right.

`Report` is a mapping over that document. Keys stand in a fixed order; numbers that cannot be had are null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from capture.errors import CaptureError
from capture.ir import Graph
from capture.ir.serialize import write_aside
from capture.ir.text import names
from passes.ledger import ledger
from runtime.benchmark import Benchmark
from runtime.compare import Parity
from runtime.describe import count_parameters, graph_devices, graph_inputs, main_dtype
from runtime.machine import machine, versions
from runtime.profile import Profile
from runtime.wording import told
from viz.labels import modules_by_name

__all__ = ["FORMAT", "Report", "build_report"]

FORMAT = "torch-capture report 1"
REQUIRED = (
    "model", "versions", "device", "frontend", "nodes", "passes", "memory", "parity", "latency_ms", "backend",
    "seconds",
)  # fmt: skip


class Report(Mapping[str, Any]):
    """The document, to be read like a dict; `to_json` gives the same text for the same data."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = {"format": FORMAT, **_plain(data)}

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        """``<Report of ResNet-50: backend onnx, 175 -> 58 nodes, parity ok, 1.73x>``."""
        nodes, parity, speedup = (self.get(key) or {} for key in ("nodes", "parity", "speedup"))
        parts = [f"backend {self.get('backend')}"]
        if nodes:
            parts.append(f"{nodes['captured']} -> {nodes['optimized']} nodes")
        if parity:
            parts.append(f"parity {'ok' if parity['ok'] else 'FAILED'}")
        unknown = "too noisy for a verdict" if self.get("noisy") else "not measured yet"
        parts.append(f"{speedup:.2f}x" if speedup else unknown)
        return f"<Report of {self.get('title') or self.get('model')}: {', '.join(parts)}>"

    def with_(self, **changes: Any) -> Report:
        """A copy with some keys set."""
        return Report({**self._data, **changes})

    def to_dict(self) -> dict[str, Any]:
        copied: dict[str, Any] = json.loads(self.to_json())
        return copied

    def to_json(self) -> str:
        return json.dumps(self._data, indent=2, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON; the file appears whole or not at all.

        Raises:
            CaptureError: the place cannot be written to.
        """
        write_aside(path, self.to_json())

    @staticmethod
    def from_json(text: str, source: str = "the report") -> Report:
        """Read what `to_json` wrote.

        Raises:
            CaptureError: the text is no JSON, or not a report.
        """
        hint = "write it again: python -m capture MODEL --optimize"
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CaptureError(f"{source} is corrupt", why=f"it is no JSON: {error}", hint=hint) from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise CaptureError(
                f"{source} is not a report of torch-capture", why=f"it lacks format {FORMAT!r}", hint=hint
            )
        missing = [key for key in REQUIRED if key not in data]
        if missing:
            raise CaptureError(f"{source} is incomplete", why=f"it lacks {', '.join(missing)}", hint=hint)
        return Report(data)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Report:
        """Read a report.json.

        Raises:
            CaptureError: the file is missing, corrupt, or not a report.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CaptureError(f"cannot read the report {path}", why=str(error)) from error
        return Report.from_json(text, source=str(path))


def build_report(
    compiled: Any,
    *,
    model: str,
    title: str = "",
    parity: Parity | None = None,
    timing: Benchmark | None = None,
    profiles: Mapping[str, Profile] | None = None,
    measured_peak: int | None = None,
    files: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Report:
    """Put together what `runtime.compile` did and what was measured of it.

    Args:
        compiled: what `runtime.compile` returned.
        model: as the user named it; `title` is what it is called.
        timing: of the engines "eager" and "ours"; of "eager" alone where eager is kept.
        profiles: "eager" and "optimized", as far as there are any.
        measured_peak: bytes, from `measured_peak`.
    """
    captured, graph = compiled.captured, compiled.graph
    return Report(
        {
            "model": model,
            "title": title,
            "versions": versions(),
            "device": ", ".join(graph_devices(graph)),
            "machine": machine(),
            "threads": timing.threads if timing else torch.get_num_threads(),
            "dtype": main_dtype(compiled.module or captured),
            "parameters": count_parameters(compiled.module or captured),
            "inputs": graph_inputs(captured),
            "frontend": captured.frontend,
            "frontend_attempts": [list(attempt) for attempt in getattr(captured, "attempts", ())],
            "level": compiled.recipe.level,
            "nodes": {"captured": len(captured.nodes), "optimized": len(graph.nodes)},
            "passes": _passes(graph),
            "memory": _memory(graph, measured_peak),
            "parity": None if parity is None else parity.to_dict(),
            **_latency(compiled, timing),
            "backend": compiled.backend,
            "candidates": [
                {"backend": c.backend, "milliseconds": c.milliseconds, "reason": c.reason}
                for c in compiled.candidates
            ],
            "seconds": dict(compiled.seconds),
            "captured_ops": captured_ops(graph),
            "ops": [{"side": side, **row} for side, made in (profiles or {}).items() for row in made.rows()],
            "files": list(files),
            "warnings": list(warnings),
        }
    )


def captured_ops(graph: Graph) -> list[dict[str, Any]]:
    """A row per captured op: what became of it, by which pass, why, and which kernel computes it now."""
    named = names(graph)
    kernels = {named[n.results[0]]: n.impl.kernel for n in graph.nodes if n.impl is not None and n.results}
    return [
        {
            "id": row.id,
            "op": row.op,
            "module": row.module,
            "file": row.file,
            "line": row.line,
            "fate": row.kind,
            "pass": row.pass_name,
            "reason": row.reason,
            "node": row.node,
            "kernel": ", ".join(filter(None, (kernels.get(name) for name in row.node.split(", ")))),
        }
        for row in ledger(graph)
    ]


def _passes(graph: Graph) -> list[dict[str, Any]]:
    return [
        {
            "name": record.name,
            "seconds": record.seconds,
            "changed": record.changed,
            "nodes_before": record.nodes_before,
            "nodes_after": record.nodes_after,
            "stats": dict(record.stats),
            "done": told(record.name, record.stats),
            "notes": list(record.notes),
        }
        for record in graph.history
    ]


_PLAN_KEYS = (
    "naive_bytes", "lower_bound_bytes", "arena_bytes", "in_arena_bytes", "callee_allocated_bytes",
    "expected_peak_bytes", "results_bytes", "region_temporaries_bytes",
)  # fmt: skip


def _memory(graph: Graph, measured: int | None) -> dict[str, Any]:
    """Activations of the optimised graph, in bytes; null where there is no plan."""
    plan = graph.memory_plan
    memory: dict[str, Any] = {key: getattr(plan, key, None) for key in _PLAN_KEYS}
    memory["measured_peak_bytes"] = measured
    memory["peak_holders"] = []
    memory["timeline"] = None
    if plan is None:
        return memory
    fields = ("name", "op", "location", "first", "end", "offset", "size", "callee")
    buffers = [{key: getattr(b, key) for key in fields} for b in plan.buffers]
    modules = modules_by_name(graph)
    memory["peak_holders"] = [
        {**buffers[i], "module": modules.get(buffers[i]["name"], "")} for i in plan.peak_holders
    ]
    memory["timeline"] = {"steps": list(plan.steps), "live_bytes": list(plan.live_bytes), "buffers": buffers}
    return memory


def _latency(compiled: Any, timing: Benchmark | None) -> dict[str, Any]:
    """Latency of both sides; the speed-up is null where the machine was too busy to tell."""
    if timing is None:
        return {
            "latency_ms": None,
            "speedup": None,
            "speedup_interval": None,
            "noisy": False,
            "noisy_reason": None,
            "noise_floor": None,
            "breakeven_calls": None,
        }
    sides = {"eager": timing.rows[timing.baseline], "optimized": next(reversed(timing.rows.values()))}
    doubt = timing.doubt()
    told = not doubt or len(timing.rows) == 1  # eager against itself is 1.00 by definition
    saved_ms = 0.0 if doubt else sides["eager"].median - sides["optimized"].median
    spent_ms = 1e3 * sum(compiled.seconds.values())
    return {
        "latency_ms": {
            side: {"median": row.median, "min": row.min, "samples": list(row.samples)}
            for side, row in sides.items()
        },
        "speedup": timing.ratio if told else None,
        "speedup_interval": list(timing.ratio_interval) if told else None,
        "noisy": bool(doubt),
        "noisy_reason": doubt or None,
        "noise_floor": timing.noise_floor,
        "breakeven_calls": math.ceil(spent_ms / saved_ms) if saved_ms > 0 else None,
    }


def _plain(value: Any) -> Any:
    """Plain JSON data: no NaN, no infinity, no tuples, keys as text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)
