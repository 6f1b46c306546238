"""Options, by groups. Imports nothing heavy: help is to come at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

__all__ = [
    "BENCH", "CACHE", "COMPILE", "EMIT", "EMITTABLE", "ENGINES", "EXPORT", "MODEL", "OPTIMIZE",
    "OPTIONAL_MODEL", "OUTPUT", "PARITY", "SPEECH", "TIMING", "TUNE", "VIZ",
]  # fmt: skip

BACKENDS = ("auto", "aten", "triton", "onnx", "eager")
FRONTENDS = ("auto", "export", "fx", "dispatch")
EMITTABLE = ("python", "onnx", "svg", "html")
ENGINES = ("aten", "onnx", "dynamo", "inductor", "eager")
Decorator = Callable[[Any], Any]


def _option(*names: str, **settings: Any) -> Decorator:
    return click.option(*names, **settings)


def _count(name: str, told: str, *, least: int = 1, default: int | None = None) -> Decorator:
    """A whole number; its default is shown where there is one."""
    shown = {} if default is None else {"default": default, "show_default": True}
    return _option(name, metavar="N", type=click.IntRange(min=least), help=told, **shown)


class _Commas(click.ParamType):
    """A list by commas; those inside {...} belong to an item."""

    name = "a,b"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[str]:
        from capture.ir.parse import split

        return value if isinstance(value, list) else [item.strip() for item in split(value) if item.strip()]


class _Size(click.ParamType):
    """Bytes: 65536, 64kB, 1.5MB, 2GiB."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:([kKMG])(i?))?B?", value.strip())
        if found is None:
            self.fail(f"{value!r} is no size; write 65536, 64kB, 1.5MB or 2GiB", param, ctx)
        number, unit, binary = found.groups()
        count = int(float(number) * (1024 if binary else 1000) ** " KMG".index((unit or " ").upper()))
        return count or self.fail(f"{value!r} is no memory at all", param, ctx)


class _Share(click.ParamType):
    """A part of a whole: 1% or 0.01."""

    name = "share"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *(%?)", value.strip())
        if found is None:
            self.fail(f"{value!r} is no share; write 1% or 0.01", param, ctx)
        return float(found[1]) / (100 if found[2] else 1)


class _Shares(_Commas):
    """Shares by commas, or the word none."""

    def convert(self, value: Any, param: Any, ctx: Any) -> list[Any]:
        if value == "none":
            return []
        return [_Share().convert(item, param, ctx) for item in super().convert(value, param, ctx)]


COMMAS = _Commas()

MODEL: tuple[Decorator, ...] = (
    click.argument("model", metavar="MODEL"),
    _count("--batch", "batch size of the example inputs", default=1),
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
    _option(
        "--frontend", type=click.Choice(FRONTENDS), default="auto", show_default=True, help="how to capture"
    ),
    _option("--device", type=click.Choice(["cpu"]), default="cpu", help="where to run"),
    _option(
        "--seed", metavar="N", type=int, default=0, show_default=True, help="of random inputs and weights"
    ),
    _count("--threads", "threads to run with; PyTorch's choice unless given"),
)
CALIBRATION: tuple[Decorator, ...] = (
    _option(
        "--calibration",
        metavar="FILE.npz",
        help="samples of each input, by name  [default: the module's calibration_data()]",
    ),
    _option("--quant-config", metavar="FILE.toml", help="how to quantise, and which layers stay float"),
)
OPTIMIZE: tuple[Decorator, ...] = (
    _option("--optimize", is_flag=True, help="optimise at level 2, as options that say how do too"),
    _option(
        "-O",
        "--level",
        metavar="N",
        type=click.IntRange(0, 3),
        help="0 nothing, 1 folding, 2 fusion, 3 also searches",
    ),
    _option("--passes", type=COMMAS, metavar="a,b{option=1}", help="run these passes in place of a level's"),
    _option("--disable-pass", "disable", type=COMMAS, multiple=True, metavar="a,b", help="leave passes out"),
    _option(
        "--rules",
        multiple=True,
        metavar="FILE.py",
        help="a file of yours that registers rewrite rules or passes; may be repeated",
    ),
    _option(
        "--check-rewrites",
        is_flag=True,
        help="run both sides of each rewrite on recorded and random operands; refuse those that differ",
    ),
    _option(
        "--max-memory",
        type=_Size(),
        metavar="SIZE",
        help="plan within 64MB, say: cheap values are computed again where keeping them would take more",
    ),
    _option(
        "--prune",
        metavar="METHOD:RATIO",
        help="remove weights first: channels:0.3 takes 30% of the channels out; magnitude, 2:4 and block put "
        "zeros, and nothing gets faster by them",
    ),
    _option("--quantize", metavar="SCHEME", help="quantise first: int8, with ranges from calibration data"),
    *CALIBRATION,
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
    _count("--warmup", "calls of each before any is timed", least=0, default=3),
    _count("--iters", "timed calls of each, in all; unless given, what fits into some seconds"),
)
OUTPUT: tuple[Decorator, ...] = (
    _option("-o", "--output", metavar="DIR", help="output folder  [default: capture-out/<model>]"),
)
SPEECH: tuple[Decorator, ...] = (
    _option("--json", "as_json", is_flag=True, help="print one JSON document and nothing else"),
    _option("-v", "--verbose", count=True, help="say more; show the trace of an error"),
    _option("-q", "--quiet", is_flag=True, help="print nothing but errors"),
)

EMIT: tuple[Decorator, ...] = (
    _option(
        "--emit",
        type=COMMAS,
        metavar="a,b",
        help="what to write beside report and text: python, onnx, svg, html  [default: all; onnx only where "
        "weights are under 100 MB]",
    ),
    _option("--dry-run", is_flag=True, help="capture and optimise only: run and write nothing"),
)
OPTIONAL_MODEL: tuple[Decorator, ...] = (
    click.argument("model", metavar="[MODEL]", required=False),
    *MODEL[1:],
)


def _file(name: str, help: str, *more: str) -> Decorator:
    """An option that may be followed by a file's name, or stand alone."""
    return _option(name, *more, metavar="[FILE]", is_flag=False, flag_value="", help=help)


EXPORT: tuple[Decorator, ...] = (
    _file("--onnx", "write an ONNX model", "onnx_file"),
    _count("--opset", "of the ONNX model", default=23),
    _file("--python", "write a Python module that needs PyTorch alone", "python_file"),
    _option(
        "--triton",
        "triton_folder",
        metavar="[DIR]",
        is_flag=False,
        flag_value="",
        help="write the Triton kernels of its regions, each a file that stands alone",
    ),
    _option(
        "-o",
        "--output",
        metavar="FILE|DIR",
        help="where to: m.onnx or m.py says what to write, too  [default: capture-out/<model>]",
    ),
)
VIZ: tuple[Decorator, ...] = (
    _file("--svg", "the graph (the default): as captured, or with --optimize as optimised"),
    _file("--memory", "the memory timeline of the optimised graph"),
    _option("--diff", nargs=2, metavar="A B", help="what differs between two graph files; takes no MODEL"),
    _option(
        "-o",
        "--output",
        metavar="FILE|DIR",
        help="where to draw it; the same as --svg FILE  [default: capture-out/<model>]",
    ),
)
CACHE: tuple[Decorator, ...] = (
    click.argument("action", metavar="status|clear", type=click.Choice(["status", "clear"])),
)
TUNE: tuple[Decorator, ...] = (
    _option(
        "--max-drop",
        type=_Share(),
        default="1%",
        show_default=True,
        metavar="SHARE",
        help="how much lower the score may be: 1% is 0.01 of it",
    ),
    *CALIBRATION,
    _option(
        "--ratios",
        type=_Shares(),
        default="10%,20%,30%,50%",
        show_default=True,
        metavar="a,b",
        help="shares of channels that pruning is tried at; none for no pruning",
    ),
    *OUTPUT,
)
BENCH: tuple[Decorator, ...] = (
    _option(
        "--backend",
        "backends",
        type=COMMAS,
        default="aten,onnx",
        show_default=True,
        metavar="a,b",
        help="what to time beside eager: aten, onnx, dynamo (aten by torch.compile), inductor (g++ needed)",
    ),
    _count("--rounds", "rounds that these are spread over, in each repetition; up to 10 unless given"),
    _count("--repeats", "repetitions, each with fresh processes", default=2),
)
