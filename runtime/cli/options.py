"""Options that commands share, by groups, and the decorator that makes a command of a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import click

from runtime.cli.terminal import Terminal

__all__ = ["COMPILE", "MODEL", "OPTIMIZE", "OUTPUT", "PARITY", "SPEECH", "TIMING", "make_command"]

BACKENDS = ("auto", "aten", "onnx", "eager")
FRONTENDS = ("auto", "export", "fx", "dispatch")
Decorator = Callable[[Any], Any]


def _option(*names: str, **settings: Any) -> Decorator:
    return click.option(*names, **settings)


class _Commas(click.ParamType):
    """A list by commas; those inside {...} belong to an item."""

    name = "a,b"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[str]:
        from capture.ir.parse import split

        return value if isinstance(value, list) else [item.strip() for item in split(value) if item.strip()]


COMMAS = _Commas()

MODEL: tuple[Decorator, ...] = (
    click.argument("model", metavar="MODEL"),
    _option(
        "--batch", metavar="N", type=click.IntRange(min=1), default=1, help="batch size of the example inputs"
    ),
    _option(
        "--input",
        "inputs",
        multiple=True,
        metavar="x=1x3x224x224:float32",
        help="an input of that name, shape and dtype, filled with random numbers; may be repeated",
    ),
    _option("--inputs", "inputs_file", metavar="FILE.npz", help="example inputs by name"),
    _option("--weights", metavar="FILE.safetensors", help="a state dict to load into the model"),
    _option("--allow-pickle", is_flag=True, help="let a .pt2 file unpickle: this runs code that it holds"),
    _option(
        "--dynamic",
        multiple=True,
        metavar="x:0=batch[1..64]",
        help="a dimension that varies: input, axis, name and range; may be repeated",
    ),
    _option("--frontend", type=click.Choice(FRONTENDS), default="auto", help="how to capture"),
    _option("--device", type=click.Choice(["cpu"]), default="cpu", help="where to run"),
    _option(
        "--seed", metavar="N", type=int, default=0, show_default=True, help="of random inputs and weights"
    ),
    _option(
        "--threads",
        metavar="N",
        type=click.IntRange(min=1),
        help="threads to run with; PyTorch's choice by default",
    ),
)
OPTIMIZE: tuple[Decorator, ...] = (
    _option("--optimize", is_flag=True, help="optimise at level 2"),
    _option(
        "-O",
        "--level",
        metavar="N",
        type=click.IntRange(0, 3),
        help="0 nothing, 1 folding, 2 fusion, 3 also searches",
    ),
    _option("--passes", type=COMMAS, metavar="a,b{option=1}", help="run these passes in place of a level's"),
    _option("--disable-pass", "disable", type=COMMAS, multiple=True, metavar="a,b", help="leave passes out"),
    _option("--verify", is_flag=True, help="check every invariant of the graph after each pass"),
    _option("--dump-dir", metavar="DIR", help="write the graph's text after each pass there"),
)
COMPILE: tuple[Decorator, ...] = (
    _option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="auto",
        show_default=True,
        help="what runs the graph; auto keeps the fastest that is right",
    ),
)
PARITY: tuple[Decorator, ...] = (
    _option(
        "--atol",
        metavar="X",
        type=click.FloatRange(min=0),
        help="absolute tolerance, in place of twice eager's error",
    ),
    _option("--rtol", metavar="X", type=click.FloatRange(min=0), help="relative tolerance, likewise"),
)
TIMING: tuple[Decorator, ...] = (
    _option(
        "--warmup",
        metavar="N",
        type=click.IntRange(min=0),
        default=3,
        show_default=True,
        help="calls before timing",
    ),
    _option(
        "--iters",
        metavar="N",
        type=click.IntRange(min=1),
        help="timed calls in a row; by default what fits the time",
    ),
)
OUTPUT: tuple[Decorator, ...] = (
    _option("-o", "--output", metavar="DIR", help="output folder  [default: capture-out/<model>]"),
)
SPEECH: tuple[Decorator, ...] = (
    _option("--json", "as_json", is_flag=True, help="print one JSON document and nothing else"),
    _option("-v", "--verbose", count=True, help="say more; show the trace of an error"),
    _option("-q", "--quiet", is_flag=True, help="print nothing but errors"),
)

Body = Callable[[Terminal, SimpleNamespace], int]


def make_command(name: str, groups: Sequence[Sequence[Decorator]]) -> Callable[[Body], click.Command]:
    """Make a click command of a function `(terminal, options) -> exit status`; its docstring is the help."""

    def decorate(body: Body) -> click.Command:
        @click.pass_obj
        def callback(state: dict[str, Any], /, **given: Any) -> int:
            options = SimpleNamespace(**given)
            terminal = Terminal(as_json=options.as_json, quiet=options.quiet, verbose=options.verbose)
            state["terminal"] = terminal
            return body(terminal, options)

        function: Any = callback
        for option in reversed([option for group in (*groups, SPEECH) for option in group]):
            function = option(function)
        return click.command(name, help=body.__doc__)(function)

    return decorate
