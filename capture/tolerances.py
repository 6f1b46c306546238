"""The one table of tolerances, by dtype.

`floor` is the error that rounding alone may cause, relative to the scale of the reference: a result within it
is right however exact eager happened to be. Half-precision results are rounded once at the end (2 eps);
float32 sums are reordered by fast kernels (16 eps, as a sum of some hundred terms may be); float64 has no
wider reference to be held against, so that the reference's own rounding counts too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Tolerance", "tolerance"]


@dataclass(frozen=True)
class Tolerance:
    """`|a - b| <= atol + rtol * |b|` element by element; `floor` relative to the scale of a whole tensor."""

    atol: float
    rtol: float
    floor: float


def _row(dtype: torch.dtype, atol: float, rtol: float, floor_in_eps: int) -> Tolerance:
    return Tolerance(atol, rtol, floor_in_eps * torch.finfo(dtype).eps)


TABLE: dict[torch.dtype, Tolerance] = {
    torch.float64: _row(torch.float64, 1e-12, 1e-10, 4096),
    torch.float32: _row(torch.float32, 1e-5, 1e-4, 16),
    torch.float16: _row(torch.float16, 1e-3, 1e-2, 2),
    torch.bfloat16: _row(torch.bfloat16, 1e-2, 5e-2, 2),
    torch.float8_e4m3fn: _row(torch.float8_e4m3fn, 1e-1, 2.5e-1, 2),
    torch.float8_e5m2: _row(torch.float8_e5m2, 1e-1, 5e-1, 2),
}
TABLE[torch.complex64] = TABLE[torch.float32]
TABLE[torch.complex128] = TABLE[torch.float64]
EXACT = Tolerance(0.0, 0.0, 0.0)


def tolerance(dtype: torch.dtype) -> Tolerance:
    """The row of a dtype; integers and booleans are exact."""
    return TABLE.get(dtype, EXACT)
