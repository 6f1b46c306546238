"""Latency: interleaved rounds, medians and minima, an interval for the ratio, and the noise of the machine.

A round calls each engine in turn and then again in the reverse order (A B B A), so that a drift of the
machine hits all alike. The ratio's interval is a bootstrap over rounds, as calls within one are not
independent (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; percentile method, 95 %). The
noise floor compares each engine's first legs with its second ones: the same function against itself, so that
any difference is noise. On a busy machine an engine whose threads wait for each other waits for a core in
each call, for milliseconds, while one that computes in a single thread seldom does. So the time that threads
wait for a core is counted, and minima cross-check the medians.
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from capture.errors import UsageError
from runtime.cores import Waiting
from runtime.reference import clone_inputs, runnable

__all__ = ["Benchmark", "Row", "benchmark", "no_garbage_collection", "num_threads", "summarize"]

SHORTEST_SAMPLE = (
    100e-6  # seconds; shorter calls are timed several at once, as the clock itself takes a while
)
MOST_ROUNDS, FEWEST_ROUNDS = 10, 3
LONGEST_LEG = 50  # calls; more of them tell nothing new
BUSY = 0.15  # a noise floor, or a share of time waited, above it says more of the machine than of the engines
MOST_APART = 1.5  # a ratio of medians that differs by more from that of the minima is no verdict
OVERTIME = 1.5  # of the time given, where a busy machine makes calls slower than they were at first
Leg = list[float]


@dataclass(frozen=True)
class Row:
    """Milliseconds a call of one engine: every sample, in the order taken."""

    samples: tuple[float, ...] = field(repr=False)
    median: float
    min: float


@dataclass(frozen=True)
class Benchmark:
    """What `benchmark` measured.

    Attributes:
        rows: by engine, in the order given; the first is the baseline.
        ratios: by engine, how many times faster than the baseline (ratio of medians).
        intervals: 95 % intervals of these.
        noise_floor: the largest difference seen of an engine from itself, as a fraction (0.02: two per cent).
        threads: threads of torch's pool.
        waited: the share of the time that threads waited for a core; 0 where that is not known.
    """

    rows: dict[str, Row]
    ratios: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    noise_floor: float
    rounds: int
    threads: int
    waited: float = 0.0

    @property
    def baseline(self) -> str:
        return next(iter(self.rows))

    @property
    def ratio(self) -> float:
        """Speed-up of the last engine over the first; 1 where there is but one."""
        return next(reversed(self.ratios.values()), 1.0)

    @property
    def ratio_interval(self) -> tuple[float, float]:
        return next(reversed(self.intervals.values()), (1.0, 1.0))

    def doubt(self, name: str = "") -> str:
        """Why the ratio of an engine (the last one unless named) is no verdict; empty where it is one."""
        if self.noise_floor > BUSY:
            return f"machine busy: an engine against itself differed by {self.noise_floor:.0%}"
        if self.waited > BUSY:
            return f"machine busy: threads waited for a core for {min(self.waited, 1.0):.0%} of the time"
        name = name or next(reversed(self.rows))
        if name not in self.ratios:
            return ""
        medians, minima = self.ratios[name], self.rows[self.baseline].min / self.rows[name].min
        if max(medians / minima, minima / medians) > MOST_APART:
            return f"machine busy: the medians say {medians:.2f}x, the minima {minima:.2f}x"
        return ""


def benchmark(
    engines: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    warmup: int = 3,
    iters: int | None = None,
    rounds: int | None = None,
    seconds: float = 5.0,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Benchmark:
    """Time engines against each other in this process, without gradients.

    Args:
        engines: name -> module or callable; the first is the baseline.
        args, kwargs: what each is called with (on a copy of its own, as it may write to them).
        warmup: calls of each before anything is timed.
        iters: timed calls of each engine in all, rounded up to legs of one length; by default as many as fill
            the time.
        rounds: rounds of A B B A; by default up to 10, as many as fit in the time, but 3 at least; with iters
            as many as there are pairs of calls.
        seconds: about how long the timed part may take.
        threads: threads of torch's pool; as it stands by default.
        progress: called after each round with (rounds done, rounds in all).

    Raises:
        UsageError: engines that have no names, no engine, or a count below one.
    """
    if not isinstance(engines, Mapping):
        raise UsageError(
            f"benchmark takes engines by name, not a {type(engines).__name__}",
            hint='runtime.benchmark({"eager": model, "ours": runtime.compile(model, args)}, args)',
        )
    if not engines or warmup < 0 or any(n is not None and n < 1 for n in (iters, rounds, threads)):
        raise UsageError("benchmark needs an engine, and rounds, iterations and threads of at least one")
    calls = {name: bound_call(f, args, kwargs or {}) for name, f in engines.items()}
    with num_threads(threads) as count, torch.no_grad(), no_garbage_collection():
        took = {name: warm_up(call, warmup) for name, call in calls.items()}
        planned, leg_calls = plan(took, seconds, iters, rounds)
        legs: dict[str, list[tuple[Leg, Leg]]] = {name: [] for name in calls}
        waiting = Waiting()
        latest = time.perf_counter() + OVERTIME * seconds if (rounds, iters) == (None, None) else math.inf
        for done in range(planned):
            first = {name: time_calls(calls[name], leg_calls[name]) for name in calls}
            second = {name: time_calls(calls[name], leg_calls[name]) for name in reversed(calls)}
            for name in calls:
                legs[name].append((first[name], second[name]))
            if progress is not None:
                progress(done + 1, planned)
            if done + 1 >= FEWEST_ROUNDS and time.perf_counter() > latest:
                break
    return summarize(legs, threads=count, waited=waiting.share())


def plan(
    took: Mapping[str, float], seconds: float, iters: int | None, rounds: int | None
) -> tuple[int, dict[str, int]]:
    """Rounds, and timed calls of each engine in a leg; `took` is seconds a call.

    They fill about `seconds`, or make `iters` calls of each engine over the two legs of all rounds. A leg
    begins with a call that is not timed, so the least that a round takes is four calls of each engine.
    """
    if iters is not None:
        rounds = rounds or max(1, min(MOST_ROUNDS, iters // 2))
        return rounds, dict.fromkeys(took, math.ceil(iters / (2 * rounds)))
    if rounds is None:
        least = 4 * sum(took.values())
        rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / least)))
    share = seconds / (2 * rounds * len(took))
    return rounds, {n: max(1, min(LONGEST_LEG, round(share / t) - 1)) for n, t in took.items()}


def bound_call(f: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[], Any]:
    """`f` with inputs of its own."""
    function = runnable(f)
    own_args, own_kwargs = clone_inputs((tuple(args), dict(kwargs)))
    return lambda: function(*own_args, **own_kwargs)


@contextlib.contextmanager
def num_threads(threads: int | None) -> Iterator[int]:
    """Set the size of torch's pool for a while; yields it."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect garbage now, and not again until the end."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def time_calls(call: Callable[[], Any], count: int) -> Leg:
    """Milliseconds of each of `count` calls, after one that is not counted; very short ones in groups."""
    clock = time.perf_counter
    start = clock()
    call()
    group = max(1, math.ceil(SHORTEST_SAMPLE / max(clock() - start, 1e-9)))
    samples = []
    for _ in range(count):
        start = clock()
        for _ in range(group):
            call()
        samples.append((clock() - start) * 1e3 / group)
    return samples


def warm_up(call: Callable[[], Any], count: int) -> float:
    """Call `count` times, once at least; returns the fastest call's seconds."""
    fastest = math.inf
    for _ in range(max(1, count)):
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
    return max(fastest, 1e-7)


def summarize(
    legs: Mapping[str, Sequence[tuple[Leg, Leg]]], *, threads: int, waited: float = 0.0, seed: int = 0
) -> Benchmark:
    """Statistics of the samples (milliseconds) of each engine: one pair of legs per round."""
    flat = {name: [t for pair in rounds for leg in pair for t in leg] for name, rounds in legs.items()}
    rows = {n: Row(tuple(s), statistics.median(s), min(s)) for n, s in flat.items()}
    baseline = next(iter(rows))
    others = [name for name in rows if name != baseline]
    ratios = {name: rows[baseline].median / rows[name].median for name in others}
    generator = np.random.default_rng(seed)
    intervals = {name: _interval(legs[baseline], legs[name], generator) for name in others}
    noise = max(abs(_median(r, 0) / _median(r, 1) - 1) for r in legs.values())
    return Benchmark(rows, ratios, intervals, noise, len(legs[baseline]), threads, waited)


def _median(rounds: Sequence[tuple[Leg, Leg]], leg: int) -> float:
    return statistics.median(t for pair in rounds for t in pair[leg])


def _interval(
    base: Sequence[tuple[Leg, Leg]], other: Sequence[tuple[Leg, Leg]], generator: np.random.Generator
) -> tuple[float, float]:
    """95 % interval of the ratio of medians: resample whole rounds, the same ones for both engines."""
    a = np.array([first + second for first, second in base])
    b = np.array([first + second for first, second in other])
    picked = generator.integers(len(a), size=(1000, len(a)))
    ratios = np.median(a[picked].reshape(1000, -1), axis=1) / np.median(b[picked].reshape(1000, -1), axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)
