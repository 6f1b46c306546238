"""Symbolic sizes as Python: how they are read off values, and computed from each other."""

from __future__ import annotations

import re
from collections.abc import Iterator

import sympy

from capture.ir import ScalarType, TensorType, Value, dims


def expression(expr: dims.Dim, names: dict[str, str]) -> str:
    """A size as a Python expression over local names."""
    text = dims.format_dim(expr)
    return re.sub(r"[A-Za-z_]\w*(?!\w*\()", lambda m: names.get(m[0], m[0]), text)


def factor(expr: dims.Dim, names: dict[str, str]) -> str:
    text = expression(expr, names)
    return text if re.fullmatch(r"-?\w+", text) else f"({text})"


def solution(size: str, slope: str, rest: str) -> str:
    """The n of ``size == slope*n + rest``."""
    if rest == "0":
        moved = size
    else:
        moved = f"{size} + {rest[1:]}" if rest.startswith("-") else f"{size} - {rest}"
    if slope == "1":
        return moved
    return f"{moved if rest == '0' else f'({moved})'} // {slope}"


def sizes_of(value: Value, text: str) -> Iterator[tuple[dims.Dim, str]]:
    """The symbolic sizes that a value tells, each with the expression that reads it."""
    if isinstance(value.type, ScalarType) and isinstance(value.type.expr, sympy.Expr):
        yield value.type.expr, text
    if isinstance(value.type, TensorType):
        for axis, dim in enumerate(value.type.shape):
            if isinstance(dim, sympy.Expr):
                yield dim, f"{text}.shape[{axis}]"
