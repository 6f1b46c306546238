"""The commands: what each is for, its help and its options. What each does is in the file of its name.

Imports nothing heavy: a command's own file, and torch with it, is imported when the command runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import click

from runtime.cli import options
from runtime.cli.terminal import Terminal

__all__ = ["COMMANDS", "Spec", "make_command"]


@dataclass(frozen=True)
class Spec:
    """A line for the list of commands, the whole help, and the groups of options."""

    summary: str
    help: str
    groups: Sequence[Sequence[options.Decorator]] = ()


COMMANDS = {
    "run": Spec(
        "capture (and --optimize), execute, compare, profile, write the output folder",
        """Capture MODEL, optimise it, run it beside eager PyTorch; say what changed and whether it is right.

        MODEL is package.module (its build()), package.module:factory, file.py, or a .pt2 file. The output
        folder gets a report (report.html, report.json), pictures, the graphs as text, and the generated code.

        Exit status: 0 done, 1 not right or failed, 2 wrong usage, 130 interrupted.
        """,
        (
            options.MODEL,
            options.OPTIMIZE,
            options.COMPILE,
            options.PARITY,
            options.TIMING,
            options.OUTPUT,
            options.EMIT,
        ),
    ),
    "explain": Spec(
        "the fate of every captured op, with reason and source line",
        """Say what became of every captured op of MODEL: kept, fused, folded, removed or replaced, by which
        pass.

        The model is captured and optimised (level 2 unless -O says otherwise), not run.
        """,
        (options.MODEL, options.OPTIMIZE),
    ),
    "export": Spec(
        "write the model as ONNX, as a Python module, or its Triton kernels",
        """Write MODEL as ONNX or as a Python module: as captured, or with --optimize as optimised; or the
        Triton kernels of its regions.

        Without a FILE it is written to capture-out/<model>.
        """,
        (options.OPTIONAL_MODEL, options.OPTIMIZE, options.EXPORT),
    ),
    "viz": Spec(
        "draw the graph, its memory, or the difference of two graphs",
        """Draw MODEL's graph, its memory, or the difference of two graphs, as SVG.

        MODEL may also be a graph that was saved: a graph.txt or a .safetensors file, as A and B of --diff
        are.
        """,
        (options.OPTIONAL_MODEL, options.OPTIMIZE, options.VIZ),
    ),
    "bench": Spec(
        "time eager against the backends, each in a process of its own",
        """Time MODEL in eager PyTorch and on each backend, each in a process of its own.

        The level is 2 unless -O says otherwise. The processes take turns, and the whole is repeated with
        fresh ones. Exit status 1 where a result is not right.
        """,
        (options.MODEL, options.OPTIMIZE, options.TIMING, options.BENCH),
    ),
    "cache": Spec(
        "what the cache on disk holds, or empty it",
        """Say what the cache on disk holds, or empty it: the optimised graphs, and the Triton kernels.

        CAPTURE_CACHE_DIR says where it is, CAPTURE_CACHE_SIZE how many bytes of graphs are kept, and
        CAPTURE_CACHE=0 switches it off.
        """,
        (options.CACHE,),
    ),
    "tune": Spec(
        "search int8 and pruning for the fastest that keeps --max-drop",
        """Search int8 by layer and pruning of channels for the fastest MODEL whose score falls by no more
        than --max-drop.

        The score is the module's evaluate(fn) -> float, else agreement with the float model on the
        calibration data. What is not measured to be faster is taken back, and listed.

        Exit status: 0 done, 1 nothing keeps --max-drop, 2 wrong usage.
        """,
        (options.MODEL, options.TUNE),
    ),
    "doctor": Spec(
        "versions, devices, and what is missing",
        "Versions, devices, and what is missing and how to install it. Exit status 1 where something is.",
    ),
}


def make_command(name: str) -> click.Command:
    """The click command, which imports `runtime.cli.<name>` and calls its `command(terminal, options)`."""
    spec = COMMANDS[name]

    @click.pass_obj
    def callback(state: dict[str, Any], /, **given: Any) -> int:
        chosen = SimpleNamespace(**given)
        terminal = Terminal(as_json=chosen.as_json, quiet=chosen.quiet, verbose=chosen.verbose)
        state["terminal"] = terminal
        terminal.say("starting")  # importing torch takes seconds
        status: int = importlib.import_module(f"runtime.cli.{name}").command(terminal, chosen)
        return status

    function: Any = callback
    for option in reversed([option for group in (*spec.groups, options.SPEECH) for option in group]):
        function = option(function)
    return click.command(name, help=spec.help)(function)
