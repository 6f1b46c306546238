"""Ranges from what calibration saw: extremes, averages, percentiles, least loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from passes.quantize.observers import Extremes, Histogram, affine

NUMBERS = st.floats(-1e6, 1e6, width=32)


@given(NUMBERS, NUMBERS)
def test_zero_is_exact_and_the_range_is_covered(a: float, b: float) -> None:
    lo, hi = min(a, b), max(a, b)
    made = affine(lo, hi)
    assert 0 <= made.zero_point <= 255
    assert made.scale > 0
    least, most = -made.zero_point * made.scale, (255 - made.zero_point) * made.scale
    assert least <= min(lo, 0) + 0.51 * made.scale
    assert most >= max(hi, 0) - 0.51 * made.scale


def test_nothing_but_zeros() -> None:
    assert affine(0.0, 0.0).scale == 1.0


def test_extremes_keep_the_outermost() -> None:
    seen = Extremes()
    assert not seen.seen
    for sample in ([1.0, 2.0], [-3.0, 0.0], [0.5, 0.5]):
        seen.see(torch.tensor(sample))
    assert (seen.lo, seen.hi) == (-3.0, 2.0)


def test_moving_averages_start_at_the_first_sample() -> None:
    seen = Extremes(momentum=0.5)
    seen.see(torch.tensor([-2.0, 4.0]))
    assert (seen.lo, seen.hi) == (-2.0, 4.0)
    seen.see(torch.tensor([-4.0, 8.0]))
    assert (seen.lo, seen.hi) == (-3.0, 6.0)


def histogram(values: torch.Tensor) -> Histogram:
    made = Histogram(float(values.min()), float(values.max()))
    made.see(values)
    return made


def test_percentiles_cut_both_tails_of_what_has_two() -> None:
    lo, hi = histogram(torch.linspace(-1, 1, 100_000)).range("percentile", 90.0)
    assert (lo, hi) == pytest.approx((-0.9, 0.9), abs=0.01)


def test_percentiles_cut_one_tail_of_what_has_one_sign() -> None:
    lo, hi = histogram(torch.linspace(0, 1, 100_000)).range("percentile", 90.0)
    assert (lo, hi) == pytest.approx((0.0, 0.9), abs=0.01)


def test_all_percent_is_everything() -> None:
    assert histogram(torch.linspace(-1, 3, 1000)).range("percentile", 100.0) == (-1.0, 3.0)


@pytest.mark.parametrize("method", ["mse", "kl"])
def test_a_lone_outlier_is_cut_off(method: str) -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    values[0] = 12.0
    _, hi = histogram(values).range(method, 99.99)
    assert hi < 9.0


def test_least_squares_is_no_worse_than_any_other_cut() -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) ** 3
    made = histogram(values)

    def loss(lo: float, hi: float) -> float:
        p = affine(lo, hi)
        q = (torch.round(values / p.scale) + p.zero_point).clamp(0, 255)
        return float(((q - p.zero_point) * p.scale - values).square().sum())

    chosen = loss(*made.range("mse", 99.99))
    kept = [1.0, 0.9, 0.7, 0.5, 0.3]
    assert chosen <= 1.05 * min(loss(made.lo * k, made.hi * k) for k in kept)


@pytest.mark.parametrize("method", ["percentile", "mse", "kl"])
def test_one_value_only(method: str) -> None:
    lo, hi = histogram(torch.full((10,), 2.0)).range(method, 99.99)
    assert math.isfinite(lo)
    assert hi == 2.0
