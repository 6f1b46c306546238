"""What calibration remembers of a value, and the range that it chooses: one class for each step.

A range [lo, hi] is chosen from extremes, or from a histogram of BINS equal bins over them, which takes a
second look at the data. "mse" and "kl" try ranges that cut off ever more of the tails:

    mse   the range with the least sum of squared rounding and clipping errors
    kl    the range whose 256 levels keep most of the distribution (Migacz, "8-bit inference with TensorRT",
          GTC 2017); what lies outside counts at the edge
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 2048
LEVELS = 256
_STEPS = 64  # cuts that mse and kl try on each side, from none to three quarters
_EPSILON = 1e-6  # probability of a bin that no level stands for


@dataclass(frozen=True)
class QParams:
    """Scale and zero point of one tensor: real = (integer - zero_point) * scale."""

    scale: float
    zero_point: int


def affine(lo: float, hi: float) -> QParams:
    """uint8 over [lo, hi], which is widened so that 0 is exactly representable."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = (hi - lo) / (LEVELS - 1)
    if scale < torch.finfo(torch.float32).tiny:  # nothing but zeros
        return QParams(1.0, 0)
    return QParams(scale, min(max(round(-lo / scale), 0), LEVELS - 1))


@dataclass
class Extremes:
    """The least and the greatest value seen; with a momentum, averages over the samples.

    Attributes:
        momentum: the weight of a new sample; None keeps the outermost values.
    """

    momentum: float | None = None
    lo: float = math.inf
    hi: float = -math.inf

    def see(self, sample: Tensor) -> None:
        lo, hi = (float(v) for v in torch.aminmax(sample))
        if not self.seen:
            self.lo, self.hi = lo, hi
        elif self.momentum is None:
            self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)
        else:
            self.lo += self.momentum * (lo - self.lo)
            self.hi += self.momentum * (hi - self.hi)

    @property
    def seen(self) -> bool:
        return self.lo <= self.hi


class Histogram:
    """How often values fell into each of BINS equal bins over [lo, hi]; float64 counts."""

    def __init__(self, lo: float, hi: float) -> None:
        self.lo, self.hi = lo, hi
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def see(self, sample: Tensor) -> None:
        flat = sample.detach().flatten().float()
        self.counts += torch.histc(flat, bins=BINS, min=self.lo, max=self.hi).double()

    def range(self, method: str, percentile: float) -> tuple[float, float]:
        """The range that a method chooses."""
        if self.hi <= self.lo or not self.counts.sum():
            return self.lo, self.hi
        if method == "percentile":
            return self._percentile(percentile)
        loss = self._squared_error if method == "mse" else self._divergence
        kept = [1 - 0.75 * step / _STEPS for step in range(_STEPS)]
        lo, hi = self.lo, self.hi
        # One side after the other; of equals the first, which is the widest.
        hi = min((hi * k if hi > 0 else hi for k in kept), key=lambda cut: loss(lo, cut))
        lo = min((lo * k if lo < 0 else lo for k in kept), key=lambda cut: loss(cut, hi))
        return lo, hi

    @property
    def centres(self) -> Tensor:
        width = (self.hi - self.lo) / BINS
        return self.lo + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)

    def _percentile(self, percentile: float) -> tuple[float, float]:
        """Cuts off (100 - percentile) % of the values: all on one side where they have one sign."""
        share = self.counts.cumsum(0) / self.counts.sum()
        cut = 1 - percentile / 100
        below = 0.0 if self.lo >= 0 else cut if self.hi <= 0 else cut / 2
        above = cut - below
        width = (self.hi - self.lo) / BINS
        first = int((share <= below).sum()) if below else 0
        last = int((share < 1 - above).sum()) + 1 if above else BINS
        return self.lo + width * min(first, BINS - 1), self.lo + width * min(last, BINS)

    def _squared_error(self, lo: float, hi: float) -> float:
        return float((self.counts * (self._rounded(lo, hi) - self.centres) ** 2).sum())

    def _rounded(self, lo: float, hi: float) -> Tensor:
        made = affine(lo, hi)
        levels = torch.round(self.centres / made.scale) + made.zero_point
        return (levels.clamp(0, LEVELS - 1) - made.zero_point) * made.scale

    def _divergence(self, lo: float, hi: float) -> float:
        """Kullback-Leibler divergence of the values' distribution from that of their 256 levels."""
        made = affine(lo, hi)
        level = (torch.round(self.centres / made.scale) + made.zero_point).clamp(0, LEVELS - 1).long()
        inside = (self.centres >= lo) & (self.centres <= hi)
        kept = self.counts * inside
        occupied = (kept > 0).double()
        mass = torch.zeros(LEVELS, dtype=torch.float64).index_add(0, level, kept)
        width = torch.zeros(LEVELS, dtype=torch.float64).index_add(0, level, occupied)
        coarse = occupied * (mass / width.clamp(min=1))[level]
        # The reference has what was cut off at its edges; the levels know only what lies inside.
        at = inside.nonzero().flatten()
        if not len(at) or not kept.sum():
            return math.inf
        kept[at[0]] += self.counts[: at[0]].sum()
        kept[at[-1]] += self.counts[at[-1] + 1 :].sum()
        p, q = kept / kept.sum(), coarse / coarse.sum() + _EPSILON
        held = p > 0
        return float((p[held] * (p[held] / q[held]).log()).sum())


__all__ = ["BINS", "LEVELS", "Extremes", "Histogram", "QParams", "affine"]
