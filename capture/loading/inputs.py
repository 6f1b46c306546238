"""Example inputs and dynamic sizes as the command line writes them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

import torch
from torch.export import Dim

from capture.errors import UsageError
from capture.ir.parse import split
from capture.ir.types import DTYPES

__all__ = ["inputs_from_file", "parse_dynamic", "parse_input"]

_INPUT = re.compile(
    r"(?P<name>[A-Za-z_]\w*)=(?P<shape>(?:\d+(?:x\d+)*)?)"
    r"(?::(?P<dtype>\w+))?(?:\[(?P<low>-?\d+)\.\.(?P<high>-?\d+)\])?"
)
_DYNAMIC = re.compile(
    r"(?P<input>[A-Za-z_]\w*):(?P<axis>-?\d+)=(?P<dim>[A-Za-z_]\w*)"
    r"(?:\[(?P<lower>\d*)\.\.(?P<upper>\d*)\])?"
)
_INPUT_HINT = "x=1x3x224x224:float32, or ids=1x128:int64[0..30521] for whole numbers from 0 to 30521"
_DYNAMIC_HINT = "x:0=batch[1..64] (input, axis, name, range), or x:0=batch"


def parse_input(text: str) -> tuple[str, torch.Tensor]:
    """Read ``x=1x3x224x224:float32``: an input's name, and random numbers of that shape and dtype.

    Floating ones are normally distributed; whole ones lie between the given bounds, inclusive, or are 0 or 1.
    The dtype is float32 unless given; ``x=:float32`` has no axes.

    Raises:
        UsageError: the text reads otherwise.
    """
    match = _INPUT.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"cannot read the input {text!r}", hint=_INPUT_HINT)
    dtype = _dtype(match["dtype"] or "float32", text)
    shape = [int(n) for n in match["shape"].split("x")] if match["shape"] else []
    low, high = int(match["low"] or 0), int(match["high"] or 1)
    if high < low:
        raise UsageError(f"the input {text!r} has an empty range", hint=_INPUT_HINT)
    return match["name"], _random(shape, dtype, low, high)


def _dtype(name: str, text: str) -> torch.dtype:
    known = {str(d).removeprefix("torch."): d for d in DTYPES.values()} | DTYPES
    if name not in known:
        raise UsageError(
            f"the input {text!r} has the unknown dtype {name!r}",
            hint="float32, bfloat16, int64, bool and so on",
        )
    return known[name]


def _random(shape: list[int], dtype: torch.dtype, low: int, high: int) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        exact = dtype if dtype.is_complex else torch.float32
        return torch.randn(shape, dtype=exact).to(dtype)
    return torch.randint(low, high + 1, shape).to(dtype)


def inputs_from_file(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The arrays of an .npz file by name, as tensors. Arrays of Python objects are refused.

    Raises:
        UsageError: there is no such file, or it is not an .npz file of numbers.
    """
    import zipfile

    import numpy as np

    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            if not hasattr(arrays, "files"):
                raise UsageError(f"{path} holds one array without a name", hint="np.savez(path, x=array)")
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        why = f"{type(error).__name__}: {error}"
        raise UsageError(f"cannot read {path}", why=why, hint="np.savez(path, x=array)") from error


def parse_dynamic(texts: str | Iterable[str]) -> dict[str, dict[int, Dim]]:
    """Read ``x:0=batch[1..64]``, or several of these: torch.export's `dynamic_shapes`, by input and axis.

    A dim that two inputs share is written with its range once, or with the same range each time. Without a
    range it is unbounded.

    Raises:
        UsageError: a text reads otherwise, or two ranges of one dim differ.
    """
    rows = [item for text in ([texts] if isinstance(texts, str) else texts) for item in split(text)]
    matches = []
    for row in rows:
        match = _DYNAMIC.fullmatch(row)
        if match is None:
            raise UsageError(f"cannot read the dynamic size {row!r}", hint=_DYNAMIC_HINT)
        matches.append(match)
    made = _dims(matches)
    shapes: dict[str, dict[int, Dim]] = {}
    for match in matches:
        axes = shapes.setdefault(match["input"], {})
        if int(match["axis"]) in axes:
            raise UsageError(
                f"the axis {match['axis']} of {match['input']} is named twice", hint=_DYNAMIC_HINT
            )
        axes[int(match["axis"])] = made[match["dim"]]
    return shapes


def _dims(matches: Iterable[re.Match[str]]) -> Mapping[str, Dim]:
    ranges: dict[str, tuple[int, int | None] | None] = {}
    for match in matches:
        given = match["lower"] is not None
        bounds = (
            (int(match["lower"] or 1), int(match["upper"]) if match["upper"] else None) if given else None
        )
        if bounds and ranges.get(match["dim"]) not in (None, bounds):
            raise UsageError(f"the size {match['dim']} has two ranges", hint=_DYNAMIC_HINT)
        ranges[match["dim"]] = bounds or ranges.get(match["dim"])
    made: dict[str, Dim] = {}
    for name, bounds in ranges.items():
        lower, upper = bounds or (1, None)
        if upper is not None and upper <= lower:
            raise UsageError(f"the range of {name} is empty, or a single size", hint=_DYNAMIC_HINT)
        made[name] = Dim(name, min=lower, max=upper)
    return made
