"""`bench`: eager against the backends, each in a process of its own."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from rich.text import Text

from capture.errors import UsageError
from runtime.benchmark import Benchmark
from runtime.cli.account import milliseconds, took, verdict
from runtime.cli.options import ENGINES
from runtime.cli.steps import chosen_level, disabled, named_passes
from runtime.cli.terminal import Terminal
from runtime.processes import ProcessBenchmark, benchmark_processes


def command(terminal: Terminal, options: SimpleNamespace) -> int:
    """Time the engines and tell; 1 where a result is not right."""
    for name in options.backends:
        if name not in ENGINES:
            raise UsageError(f"there is no backend {name!r}", hint=", ".join(ENGINES))
    for flag in ("quantize", "prune"):
        if getattr(options, flag):
            raise UsageError(
                f"bench takes no --{flag}", hint=f"python -m capture run {options.model} --{flag} ..."
            )
    level = chosen_level(options, default=2)
    names = ["eager", *(name for name in options.backends if name != "eager")]
    common = {
        "model": options.model, "batch": options.batch, "weights": options.weights, "inputs": options.inputs,
        "inputs_file": options.inputs_file, "allow_pickle": options.allow_pickle, "seed": options.seed,
        "frontend": options.frontend, "dynamic": options.dynamic, "level": level,
        "disable": disabled(options), "passes": named_passes(options, level), "rules": options.rules,
    }  # fmt: skip
    found = benchmark_processes(
        {name: {**common, "engine": name} for name in names},
        warmup=options.warmup,
        iters=options.iters and math.ceil(options.iters / options.repeats),
        rounds=options.rounds,
        threads=options.threads,
        repeats=options.repeats,
        progress=terminal.say,
    )
    tell(terminal, options.model, found, options.repeats)
    terminal.json(as_json(options.model, found))
    return 0 if all(engine.get("ok", True) for engine in found.engines.values()) else 1


def tell(terminal: Terminal, model: str, found: ProcessBenchmark, repeats: int) -> None:
    timing = found.timing
    threads = f"{timing.threads} thread{'s' * (timing.threads != 1)}"
    terminal.line(Text(model, style="bold"), threads, f"{timing.rounds} rounds in {repeats} processes each")
    terminal.print()
    for name, row in timing.rows.items():
        engine = found.engines[name]
        parts: list[Any] = [f"median {milliseconds(row.median)}", f"min {milliseconds(row.min)}"]
        if name in timing.ratios:
            parts.append(verdict(timing, name))
            parts.append(
                Text("not right", "bold red")
                if not engine["ok"]
                else f"ready in {took(engine['seconds_to_start'])}"
            )
        terminal.line(*parts, label=name)
        if engine.get("reason") and not engine["ok"]:
            terminal.line(Text(engine["reason"], "red"), indent=11)
        if name in timing.ratios and (doubt := timing.doubt(name)):
            terminal.line(Text(doubt, "yellow"), indent=11)
    for name, why in found.failed.items():
        terminal.line(Text("cannot run", "yellow"), Text(why, "dim"), label=name)
    terminal.line(f"{timing.noise_floor:.1%}: an engine against itself", label="noise")


def as_json(model: str, found: ProcessBenchmark) -> dict[str, Any]:
    timing = found.timing
    return {
        "model": model,
        "threads": timing.threads,
        "rounds": timing.rounds,
        "noise_floor": timing.noise_floor,
        "engines": {
            name: {
                "latency_ms": {"median": row.median, "min": row.min, "samples": list(row.samples)},
                **speedup(timing, name),
                **found.engines[name],
            }
            for name, row in timing.rows.items()
        },
        "failed": found.failed,
    }


def speedup(timing: Benchmark, name: str) -> dict[str, Any]:
    """An engine's ratio and interval: null for the baseline, and where the machine was too busy to tell."""
    doubt = timing.doubt(name) if name in timing.ratios else ""
    told = name in timing.ratios and not doubt
    return {
        "speedup": timing.ratios[name] if told else None,
        "speedup_interval": list(timing.intervals[name]) if told else None,
        "noisy": bool(doubt),
        "noisy_reason": doubt or None,
    }
