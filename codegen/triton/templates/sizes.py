"""Sizes that a kernel file is captured with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from capture.ir import Range
from capture.ir.dims import Dim, evaluate, free_names

TYPICAL = 128  # what a size that varies is captured with, within its range


def captured_shape(shape: Sequence[Dim], dims: Mapping[str, Range]) -> tuple[int, ...]:
    """The shape in numbers, sizes that vary at a typical value of their range."""
    env = {}
    for name in free_names(shape):
        range_ = dims.get(name, Range())
        upper = math.inf if range_.upper is None else range_.upper
        env[name] = int(max(range_.lower, min(TYPICAL, upper)))
    return tuple(evaluate(size, env) for size in shape)


__all__ = ["captured_shape"]
