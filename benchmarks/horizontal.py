"""What merging the linear layers of one input is worth: the Transformer workloads with and without the pass.

    python -m benchmarks.horizontal                 written to benchmarks/results/horizontal.md
    python -m benchmarks.horizontal models.bert --seconds 5

Both are compiled for the aten backend, each in a process of its own; the processes take turns (see
benchmarks/cpu.py). The ratio is the median without over the median with `merge-linear`, its interval
bootstrapped over rounds: where it lies above 1, merging pays.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from capture.ir.serialize import write_aside
from runtime.processes import benchmark_processes

MODELS = ("models.bert", "models.vit", "models.gpt2", "models.llama")
RESULTS = Path(__file__).parent / "results"


def measure(model: str, options: argparse.Namespace) -> str:
    """A row of the table."""
    spec: dict[str, Any] = {"engine": "aten", "model": model, "batch": options.batch}
    found = benchmark_processes(
        {"apart": {**spec, "disable": ["merge-linear"]}, "merged": spec},
        threads=options.threads,
        repeats=options.repeats,
        seconds=options.seconds,
    )
    if found.failed:
        return f"| {model} | not run: {'; '.join(found.failed.values())} | | |"
    apart, merged = found.timing.rows["apart"], found.timing.rows["merged"]
    low, high = found.timing.intervals["merged"]
    right = "" if all(engine["ok"] for engine in found.engines.values()) else " **not right**"
    return (
        f"| {model}, batch {options.batch} | {apart.median:.2f} / {apart.min:.2f} "
        f"| {merged.median:.2f} / {merged.min:.2f}{right} "
        f"| {found.timing.ratios['merged']:.3f} [{low:.3f}, {high:.3f}] |"
    )


def main() -> None:
    """Measure, print each row as it is done, write the table."""
    parser = argparse.ArgumentParser(description="The Transformer workloads with and without merge-linear.")
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3, help="with fresh processes")
    parser.add_argument("--seconds", type=float, default=20.0, help="timed seconds per model and repetition")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args()
    lines = [
        "# Linear layers of one input, merged",
        "",
        "Milliseconds a call on a CPU, median / minimum, fp32, aten backend.",
        f"`python -m benchmarks.horizontal`: {options.threads} threads, torch {torch.__version__}.",
        "",
        "| model | apart | merged | ratio |",
        "|---|---|---|---|",
    ]
    for model in options.models:
        lines.append(measure(model, options))
        print(lines[-1], flush=True)
    write_aside(options.output / "horizontal.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
