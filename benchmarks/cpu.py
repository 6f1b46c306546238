"""Latency of the model workloads on this CPU: eager, our backends, torch.compile.

    python -m benchmarks.cpu                    all models, written to benchmarks/results/cpu.md and cpu.json
    python -m benchmarks.cpu models.resnet      some

Each engine has a process of its own; the processes take turns in rounds of A B B A, and the whole is repeated
with fresh ones. Medians are over all calls; the interval of a ratio is bootstrapped over rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from capture.ir.serialize import write_aside
from runtime.processes import ProcessBenchmark, benchmark_processes

MODELS = ("models.resnet", "models.vit", "models.bert", "models.gpt2", "models.llama")
ENGINES = ("eager", "aten", "onnx", "inductor")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure, print each row as it is done, write the tables."""
    parser = argparse.ArgumentParser(description="Latency of the model workloads on this CPU.")
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2, help="with fresh processes")
    parser.add_argument("--seconds", type=float, default=20.0, help="timed seconds per model and repetition")
    options = parser.parse_args()
    rows = [measure(model, options) for model in options.models]
    write_aside(
        RESULTS / "cpu.json", json.dumps({"machine": machine(options), "rows": rows}, indent=2) + "\n"
    )
    write_aside(RESULTS / "cpu.md", table(rows, options))


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row: medians and minima in ms by engine, ratios to eager."""
    specs = {name: {"engine": name, "model": model, "batch": options.batch} for name in ENGINES}
    found = benchmark_processes(
        specs, threads=options.threads, repeats=options.repeats, seconds=options.seconds
    )
    row = {"model": model, "batch": options.batch, "engines": engines(found), "not run": found.failed}
    print(line(row), flush=True)
    return row


def engines(found: ProcessBenchmark) -> dict[str, Any]:
    """What was measured of each engine; times in ms, `ratio` is eager's median over its own."""
    timing = found.timing
    return {
        name: {
            "median": round(row.median, 3),
            "min": round(row.min, 3),
            "ratio": round(timing.ratios[name], 3) if name in timing.ratios else None,
            "interval": [round(v, 3) for v in timing.intervals[name]] if name in timing.intervals else None,
            "seconds_to_start": round(found.engines[name]["seconds_to_start"], 2),
            "ok": found.engines[name].get("ok", True),
        }
        for name, row in timing.rows.items()
    }


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers hold for."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "architecture": platform.machine(),
        "vector_instructions": capability,
        "threads": options.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The rows as Markdown."""
    about = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine(options).items())
    head = [
        "# Latency on a CPU",
        "",
        "Milliseconds a call, median / minimum, fp32; in brackets eager's median over its own.",
        f"Measured by `python -m benchmarks.cpu`: {about}.",
        "",
        f"| model | {' | '.join(ENGINES)} |",
        "|---" * (len(ENGINES) + 1) + "|",
    ]
    return "\n".join([*head, *(line(row) for row in rows)]) + "\n"


def line(row: dict[str, Any]) -> str:
    """A row of the table; an engine that could not run says so."""
    cells = []
    for name in ENGINES:
        engine = row["engines"].get(name)
        if engine is None:
            cells.append("not run")
            continue
        ratio = f" ({engine['ratio']:.2f}x)" if engine["ratio"] else ""
        wrong = "" if engine["ok"] else " **not right**"
        cells.append(f"{engine['median']:.1f} / {engine['min']:.1f}{ratio}{wrong}")
    return f"| {row['model']}, batch {row['batch']} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
