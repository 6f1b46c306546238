"""`run`: capture, optimise, execute, compare, profile, and write the output folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.text import Text

from capture.errors import UsageError
from capture.loading import Loaded
from runtime.cli import account
from runtime.cli.files import Files
from runtime.cli.folder import OutputFolder, default_folder
from runtime.cli.kernels import prove_kernels
from runtime.cli.options import EMITTABLE
from runtime.cli.quantizing import measure_noise
from runtime.cli.steps import (
    chosen_level,
    compile_model,
    load_model,
    machine_settings,
    optimize_model,
    takes_triton,
    title_of,
)
from runtime.cli.terminal import Terminal
from runtime.cli.verdict import check
from runtime.compile import Compiled
from runtime.describe import count_parameters, describe_inputs, main_dtype
from runtime.measure import Measured, measure_steps
from runtime.report import build_report


def command(terminal: Terminal, options: SimpleNamespace) -> int:
    """The whole way, or as far as --dry-run goes."""
    wanted = emitted(options.emit)
    with machine_settings(options):
        if options.dry_run:
            return dry_run(terminal, options)
        folder = OutputFolder(options.output or default_folder(options.model), terminal)
        try:
            return run(terminal, options, folder, wanted)
        finally:
            folder.withdraw()


def emitted(given: Sequence[str] | None) -> list[str]:
    """--emit, checked."""
    for name in given or ():
        if name not in EMITTABLE:
            raise UsageError(f"--emit {name}: there is no such thing to write", hint=", ".join(EMITTABLE))
    return list(EMITTABLE) if given is None else list(given)


def level_name(options: SimpleNamespace) -> str:
    return "own passes" if options.passes else f"O{chosen_level(options)}"


def dry_run(terminal: Terminal, options: SimpleNamespace) -> int:
    """Capture and optimise; tell what a run would start from."""
    loaded = load_model(terminal, options)
    tell_header(terminal, options, loaded)
    made = optimize_model(terminal, options, loaded, chosen_level(options))
    account.tell_capture(terminal, made.captured, made.seconds["capture"])
    account.tell_optimize(terminal, made.captured, made.graph, level_name(options), made.seconds["optimize"])
    account.tell_memory(terminal, made.graph, None)
    folder = options.output or default_folder(options.model)
    told = {
        "model": full_name(options.model, loaded),
        "frontend": made.captured.frontend,
        "nodes": {"captured": len(made.captured.nodes), "optimized": len(made.graph.nodes)},
        "seconds": made.seconds,
    }
    right = True
    if takes_triton(options):
        place = OutputFolder(Path(folder) / "kernels", terminal)
        try:
            right, told["kernels"] = prove_kernels(terminal, made.graph, place.path)
        finally:
            place.withdraw()
    terminal.print()
    terminal.line(
        f"dry run: the model was not run, no dtype or value checked; a run would write to {folder}/"
    )
    terminal.json(told)
    return 0 if right else 1


def run(terminal: Terminal, options: SimpleNamespace, folder: OutputFolder, wanted: Sequence[str]) -> int:
    """The whole way, telling of each step when it is done."""
    loaded = load_model(terminal, options)
    tell_header(terminal, options, loaded)
    compiled = compile_model(terminal, options, loaded, chosen_level(options))
    account.tell_capture(terminal, compiled.captured, compiled.seconds["capture"])
    account.tell_optimize(
        terminal, compiled.captured, compiled.graph, level_name(options), compiled.seconds["optimize"]
    )
    found = measured(terminal, options, loaded, compiled)
    noise = measure_noise(terminal, options, loaded, compiled)
    report = build_report(
        compiled,
        model=full_name(options.model, loaded),
        title=title_of(loaded, options.model),
        parity=found.parity,
        timing=found.timing,
        profiles=found.profiles,
        measured_peak=found.peak,
    )
    if noise is not None:
        report = report.with_(quantization=noise)
    files = Files(terminal, folder, compiled, found.profiles, found.parity)
    files.write(report, wanted, asked=options.emit is not None)
    compiled.report = files.report
    terminal.print()
    terminal.files(f"{folder.path}/", terminal.written)
    unprofiled = [f"no per-op times of {side}: {reason}" for side, reason in found.unprofiled.items()]
    for warning in (*unprofiled, *files.warnings):
        terminal.line(Text(warning, style="dim"))
    terminal.json(files.report.to_dict())
    check(found.parity, compiled, loaded.args, loaded.kwargs)
    if files.refused is not None:
        raise files.refused
    return 0


def measured(terminal: Terminal, options: SimpleNamespace, loaded: Loaded, compiled: Compiled) -> Measured:
    """Memory, parity, latency and per-op times, each told when it is known."""
    graph, backend, failure = compiled.graph, compiled.backend, ""
    told: dict[str, Callable[[Any], None]] = {
        "memory": lambda peak: account.tell_memory(terminal, graph, peak, backend),
        "parity": lambda parity: account.tell_parity(terminal, parity),
        "latency": lambda timing: account.tell_latency(terminal, compiled, timing, failure),
    }

    def tell(step: str, found: Any) -> None:
        nonlocal failure
        told[step](found)
        if step == "parity" and not found.ok:
            failure = found.reason

    return measure_steps(
        loaded.module,
        compiled,
        loaded.args,
        loaded.kwargs,
        atol=options.atol,
        rtol=options.rtol,
        warmup=options.warmup,
        iters=options.iters,
        say=terminal.say,
        tell=tell,
    )


def tell_header(terminal: Terminal, options: SimpleNamespace, loaded: Loaded) -> None:
    account.header(
        terminal,
        full_name(options.model, loaded),
        title_of(loaded, options.model),
        count_parameters(loaded.module),
        main_dtype(loaded.module, loaded.args),
        describe_inputs(loaded.module, loaded.args, loaded.kwargs),
        options.dynamic,
        "it was in training mode: switched to eval" if loaded.was_training else "",
    )


def full_name(model: str, loaded: Loaded) -> str:
    """The model with its factory: models.resnet:build."""
    return (
        model if ":" in model or model.endswith(".pt2") or not loaded.factory else f"{model}:{loaded.factory}"
    )
