"""`run`: capture, optimise, execute, compare, profile, and write the output folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import click
from rich.text import Text

from capture.errors import UsageError
from capture.loading import Loaded
from runtime.benchmark import Benchmark, benchmark
from runtime.cli import account
from runtime.cli.files import EMITTABLE, Files
from runtime.cli.folder import OutputFolder, default_folder
from runtime.cli.options import COMMAS, COMPILE, MODEL, OPTIMIZE, OUTPUT, PARITY, TIMING, make_command
from runtime.cli.steps import (
    chosen_level,
    compile_model,
    load_model,
    machine_settings,
    optimize_model,
    title_of,
)
from runtime.cli.terminal import Terminal
from runtime.cli.verdict import check
from runtime.compare import Parity, judge
from runtime.compile import Compiled
from runtime.describe import count_parameters, describe_inputs, main_dtype
from runtime.peak import measured_peak
from runtime.profile import Profile, profile
from runtime.reference import reference, runnable
from runtime.report import build_report

TIMING_SECONDS = 6.0
PROFILE_RUNS = 3

EXTRA = (
    click.option(
        "--emit",
        type=COMMAS,
        metavar="a,b",
        help="what to write beside report and text: python, onnx, svg, html  [default: all; onnx only where "
        "weights are under 100 MB]",
    ),
    click.option("--dry-run", is_flag=True, help="capture and optimise only: run and write nothing"),
)


@make_command("run", (MODEL, OPTIMIZE, COMPILE, PARITY, TIMING, OUTPUT, EXTRA))
def command(terminal: Terminal, options: SimpleNamespace) -> int:
    """Capture MODEL, optimise it, run it beside eager PyTorch, and say what changed and whether it is right.

    MODEL is package.module (its build()), package.module:factory, or a .pt2 file. The output folder gets a
    report (report.html, report.json), pictures, the graphs as text, and the generated code.

    Exit status: 0 done, 1 not right or failed, 2 wrong usage, 130 interrupted.
    """
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
    terminal.print()
    folder = options.output or default_folder(options.model)
    terminal.line(f"dry run: nothing was executed; a run would write to {folder}/")
    terminal.json(
        {
            "model": full_name(options.model, loaded),
            "frontend": made.captured.frontend,
            "nodes": {"captured": len(made.captured.nodes), "optimized": len(made.graph.nodes)},
            "seconds": made.seconds,
        }
    )
    return 0


def run(terminal: Terminal, options: SimpleNamespace, folder: OutputFolder, wanted: Sequence[str]) -> int:
    """The whole way, telling of each step when it is done."""
    loaded = load_model(terminal, options)
    tell_header(terminal, options, loaded)
    compiled = compile_model(terminal, options, loaded, chosen_level(options))
    account.tell_capture(terminal, compiled.captured, compiled.seconds["capture"])
    account.tell_optimize(
        terminal, compiled.captured, compiled.graph, level_name(options), compiled.seconds["optimize"]
    )
    measured = measure(terminal, options, loaded, compiled)
    report = build_report(
        compiled,
        model=full_name(options.model, loaded),
        title=title_of(loaded, options.model),
        parity=measured.parity,
        timing=measured.timing,
        profiles=measured.profiles,
        measured_peak=measured.peak,
    )
    files = Files(terminal, folder, compiled, measured.profiles)
    files.write(report, wanted, asked=options.emit is not None)
    compiled.report = files.report
    terminal.print()
    terminal.files(f"{folder.path}/", terminal.written)
    for warning in files.warnings:
        terminal.line(Text(warning, style="dim"))
    terminal.json(files.report.to_dict())
    check(measured.parity, compiled, loaded.args, loaded.kwargs)
    if files.refused is not None:
        raise files.refused
    return 0


@dataclass(frozen=True)
class Measured:
    """What a run found out by running."""

    peak: int | None
    parity: Parity
    timing: Benchmark
    profiles: dict[str, Profile]


def measure(terminal: Terminal, options: SimpleNamespace, loaded: Loaded, compiled: Compiled) -> Measured:
    """Memory, parity, latency and per-op times, each told when it is known."""
    args, kwargs = loaded.args, loaded.kwargs
    model = runnable(loaded.module)
    terminal.say("measuring memory")
    # ONNX Runtime allocates by itself, where PyTorch's profiler does not see it.
    peak = None if compiled.backend == "onnx" else measured_peak(compiled, args, kwargs)
    account.tell_memory(terminal, compiled.graph, peak, compiled.backend)
    terminal.say("comparing with fp64")
    made = compiled.reference or reference(loaded.module, args, kwargs, graph=compiled.captured)
    parity = judge(made, compiled, atol=options.atol, rtol=options.rtol)
    account.tell_parity(terminal, parity)
    terminal.say("measuring latency")
    timing = benchmark(
        {"eager": model, "ours": compiled},
        args,
        kwargs,
        warmup=options.warmup,
        iters=options.iters,
        seconds=TIMING_SECONDS,
        progress=lambda done, rounds: terminal.say("measuring latency", done, rounds),
    )
    account.tell_latency(terminal, compiled, timing)
    terminal.say("profiling")
    sides = {"eager": model, "optimized": compiled}
    profiles = {side: profile(f, args, kwargs, runs=PROFILE_RUNS) for side, f in sides.items()}
    return Measured(peak, parity, timing, profiles)


def tell_header(terminal: Terminal, options: SimpleNamespace, loaded: Loaded) -> None:
    account.header(
        terminal,
        full_name(options.model, loaded),
        title_of(loaded, options.model),
        count_parameters(loaded.module),
        main_dtype(loaded.module, loaded.args),
        describe_inputs(loaded.module, loaded.args, loaded.kwargs),
        options.dynamic,
    )


def full_name(model: str, loaded: Loaded) -> str:
    """The model with its factory: models.resnet:build."""
    return (
        model if ":" in model or model.endswith(".pt2") or not loaded.factory else f"{model}:{loaded.factory}"
    )
