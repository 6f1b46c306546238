"""Latency of the model workloads on this CPU: eager, our backends, torch.compile.

    python -m benchmarks.cpu                    all models, written to benchmarks/results/cpu.md and cpu.json
    python -m benchmarks.cpu models.resnet      some

Each engine has a process of its own; see `benchmarks.tables.timed`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.tables import Table, about, timed, timed_parser, times
from capture.ir.serialize import write_aside
from runtime.machine import machine, versions
from runtime.processes import ProcessBenchmark

MODELS = ("models.resnet", "models.vit", "models.bert", "models.gpt2", "models.llama")
ENGINES = ("eager", "aten", "onnx", "inductor")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print each row as it is done, write the tables."""
    options = timed_parser("cpu", __doc__, MODELS).parse_args(arguments)
    told = f"{about(options, 'call')}; in brackets eager's median over its own."
    table = Table("cpu", "Latency on a CPU", told, ("model", *ENGINES))
    rows = [row for model in options.models if (row := measure(model, options, table))]
    table.not_asked(MODELS, options.models)
    table.write(options.output)
    data = {"machine": machine(), "versions": versions(), "threads": options.threads, "rows": rows}
    write_aside(options.output / "cpu.json", json.dumps(data, indent=2) + "\n")


def measure(model: str, options: argparse.Namespace, table: Table) -> dict[str, Any] | None:
    """A row of the table, and its data: medians and minima in ms by engine, ratios to eager."""
    found = timed({name: {"engine": name} for name in ENGINES}, model, options, table)
    if found is None:
        return None
    table.row(f"{model}, batch {options.batch}", *(cell(found, name) for name in ENGINES))
    return {"model": model, "batch": options.batch, "engines": engines(found), "not run": found.failed}


def cell(found: ProcessBenchmark, name: str) -> str:
    """Times of an engine, and in brackets how many times faster than eager it is."""
    if name not in found.timing.ratios:
        return times(found, name)
    faster = "too noisy" if found.timing.doubt(name) else f"{found.timing.ratios[name]:.2f}x"
    return f"{times(found, name)} ({faster})"


def engines(found: ProcessBenchmark) -> dict[str, Any]:
    """What was measured of each engine; times in ms, `ratio` is eager's median over its own."""
    timing = found.timing
    return {
        name: {
            "median": round(row.median, 3),
            "min": round(row.min, 3),
            "ratio": round(timing.ratios[name], 3) if name in timing.ratios else None,
            "noisy": timing.doubt(name) or None,
            "interval": [round(v, 3) for v in timing.intervals[name]] if name in timing.intervals else None,
            "seconds_to_start": round(found.engines[name]["seconds_to_start"], 2),
            "ok": found.engines[name].get("ok", True),
        }
        for name, row in timing.rows.items()
    }


if __name__ == "__main__":
    main()
