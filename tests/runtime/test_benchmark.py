"""The order of the calls, what is left as it was, and the statistics; never how long anything takes."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from capture.errors import CaptureError, UsageError
from runtime.benchmark import benchmark, num_threads, plan, summarize
from runtime.processes import benchmark_processes
from runtime.worker import prepare


def recorder(log: list[str], name: str):
    def engine(x: Tensor) -> Tensor:
        log.append(name)
        return torch.mm(x, x)

    return engine


def collapse(log: Sequence[str]) -> str:
    """Names without their repeats in a row."""
    return "".join(a for i, a in enumerate(log) if i == 0 or log[i - 1] != a)


def test_rounds_go_there_and_back() -> None:
    log: list[str] = []
    engines = {name: recorder(log, name) for name in "ABC"}
    result = benchmark(engines, (torch.randn(2, 2),), warmup=2, iters=22, rounds=4)
    assert collapse(log) == "ABC" + "ABCB" * 4 + "A"
    assert result.rounds == 4
    assert {name: len(row.samples) for name, row in result.rows.items()} == dict.fromkeys("ABC", 2 * 4 * 3)
    assert result.baseline == "A"
    assert set(result.ratios) == set(result.intervals) == {"B", "C"}


def test_progress_tells_the_rounds() -> None:
    told: list[tuple[int, int]] = []
    x = torch.randn(2)
    benchmark(
        {"a": torch.relu}, (x,), iters=1, rounds=3, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_timing_runs_without_gradients_and_without_the_collector() -> None:
    states: list[tuple[bool, bool]] = []

    def engine(x: Tensor) -> Tensor:
        states.append((gc.isenabled(), torch.is_grad_enabled()))
        return x

    benchmark({"a": engine}, (torch.randn(2),), iters=1, rounds=1)
    assert set(states) == {(False, False)}
    assert gc.isenabled()
    assert torch.is_grad_enabled()


def test_the_collector_comes_back_after_an_error() -> None:
    def engine(x: Tensor) -> Tensor:
        raise RuntimeError("broken engine")

    with pytest.raises(RuntimeError, match="broken engine"):
        benchmark({"a": engine}, (torch.randn(2),))
    assert gc.isenabled()


def test_inputs_are_the_engines_own() -> None:
    x = torch.zeros(3)
    benchmark({"a": lambda x: x.add_(1), "b": lambda x: x.add_(1)}, (x,), iters=2, rounds=2)
    assert torch.equal(x, torch.zeros(3))


def test_keyword_arguments_reach_the_engine() -> None:
    seen = set()
    benchmark({"a": lambda x, *, scale: seen.add(scale)}, (torch.zeros(1),), {"scale": 3}, iters=1, rounds=1)
    assert seen == {3}


def test_threads_are_set_for_a_while() -> None:
    before = torch.get_num_threads()
    seen = []
    result = benchmark(
        {"a": lambda x: seen.append(torch.get_num_threads())}, (torch.zeros(1),), threads=2, iters=1, rounds=1
    )
    assert set(seen) == {2} == {result.threads}
    assert torch.get_num_threads() == before
    with num_threads(None) as count:
        assert count == before


@pytest.mark.parametrize("settings", [{"iters": 0}, {"rounds": 0}, {"warmup": -1}, {"threads": 0}])
def test_wrong_counts_are_usage_errors(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        benchmark({"a": nn.ReLU()}, (torch.zeros(1),), **settings)
    with pytest.raises(UsageError):
        benchmark({}, ())


def test_an_engine_without_a_name_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="takes engines by name, not a ReLU"):
        benchmark(nn.ReLU(), (torch.zeros(1),))


@pytest.mark.parametrize(
    ("took", "seconds", "rounds", "calls"),
    [
        ({"a": 0.010, "b": 0.005}, 6.0, 10, {"a": 14, "b": 29}),
        ({"a": 1e-5, "b": 1e-5}, 6.0, 10, {"a": 50, "b": 50}),
        ({"a": 0.5, "b": 0.3}, 6.0, 3, {"a": 1, "b": 1}),
        ({"a": 60.0}, 6.0, 3, {"a": 1}),
    ],
)
def test_a_plan_fills_the_time(took, seconds, rounds, calls) -> None:
    assert plan(took, seconds, None, None) == (rounds, calls)


@pytest.mark.parametrize(
    ("iters", "rounds", "planned"),
    [
        (70, 5, (5, 7)),
        (71, 5, (5, 8)),
        (1, 2, (2, 1)),
        (1, None, (1, 1)),
        (6, None, (3, 1)),
        (1000, None, (10, 50)),
    ],
)
def test_iterations_are_the_calls_in_all(iters: int, rounds: int | None, planned: tuple[int, int]) -> None:
    assert plan({"a": 0.01}, 1.0, iters, rounds) == (planned[0], {"a": planned[1]})


def test_a_machine_that_gets_slower_ends_the_rounds_early(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    cost = 0.01

    def engine(x: Tensor) -> None:
        nonlocal now
        now += cost

    def progress(done: int, rounds: int) -> None:
        nonlocal cost
        cost = 1.0

    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert benchmark({"a": engine}, (torch.zeros(1),), seconds=2.0, progress=progress).rounds == 3
    cost = 0.01
    assert benchmark({"a": engine}, (torch.zeros(1),), seconds=2.0).rounds == 10
    assert benchmark({"a": engine}, (torch.zeros(1),), seconds=2.0, rounds=5, progress=progress).rounds == 5


def synthetic(median: float, rounds: int = 20, spread: float = 0.05, seed: int = 0):
    generator = np.random.default_rng(seed)
    legs = median * generator.lognormal(0, spread, size=(rounds, 2, 5))
    return [(list(map(float, a)), list(map(float, b))) for a, b in legs]


def test_statistics_of_known_samples() -> None:
    result = summarize({"slow": synthetic(30.0), "fast": synthetic(20.0, seed=1)}, threads=1)
    assert result.rows["slow"].median == pytest.approx(30.0, rel=0.02)
    assert result.rows["slow"].min == min(result.rows["slow"].samples)
    low, high = result.ratio_interval
    assert low < 1.5 < high
    assert low < result.ratio < high
    assert high - low < 0.1
    assert 0 < result.noise_floor < 0.03


def test_the_interval_is_wide_where_rounds_differ_and_the_same_every_time() -> None:
    calm = summarize({"a": synthetic(30.0), "b": synthetic(20.0, seed=1)}, threads=1)
    wild = summarize({"a": synthetic(30.0, spread=0.6), "b": synthetic(20.0, spread=0.6, seed=1)}, threads=1)
    assert np.ptp(wild.ratio_interval) > 3 * np.ptp(calm.ratio_interval)
    assert wild.noise_floor > calm.noise_floor
    again = summarize({"a": synthetic(30.0), "b": synthetic(20.0, seed=1)}, threads=1)
    assert again.ratio_interval == calm.ratio_interval


def test_a_drift_between_the_legs_is_noise() -> None:
    legs = [([10.0, 10.0], [11.0, 11.0])] * 6
    result = summarize({"a": legs}, threads=1)
    assert result.noise_floor == pytest.approx(1 / 11)
    assert (result.ratio, result.ratio_interval) == (1.0, (1.0, 1.0))


def test_a_busy_machine_gives_no_verdict() -> None:
    calm = summarize({"eager": synthetic(30.0), "ours": synthetic(20.0, seed=1)}, threads=1)
    assert calm.doubt() == calm.doubt("ours") == calm.doubt("eager") == ""
    drifting = [([10.0] * 5, [12.0] * 5)] * 6
    busy = summarize({"eager": drifting, "ours": synthetic(2.0)}, threads=1)
    assert busy.doubt() == "machine busy: an engine against itself differed by 17%"


def test_threads_that_wait_for_a_core_give_no_verdict() -> None:
    """As where a thread of the baseline's pool waits in every call: medians and minima agree."""
    legs = {"eager": [([110.0] * 4, [111.0] * 4)] * 4, "ours": [([0.1] * 4, [0.1] * 4)] * 4}
    assert summarize(legs, threads=2, waited=0.02).doubt() == ""
    found = summarize(legs, threads=2, waited=0.42)
    assert found.doubt() == "machine busy: threads waited for a core for 42% of the time"


def test_medians_that_the_minima_deny_are_no_verdict() -> None:
    """Threads that wait a scheduler's turn for each other in all calls but a few."""
    waiting = [([10.0, 10.0, 10.0, 0.02], [10.0, 10.0, 10.0, 10.0])] * 8
    single = [([0.01] * 4, [0.01] * 4)] * 8
    found = summarize({"eager": waiting, "ours": single, "twice": waiting}, threads=2)
    assert found.ratios["ours"] == pytest.approx(1000)
    assert found.doubt("ours") == "machine busy: the medians say 1000.00x, the minima 2.00x"
    assert found.doubt("twice") == found.doubt() == ""


def test_processes_take_turns_and_an_engine_that_fails_is_named() -> None:
    phases: list[str] = []
    engines = {
        "eager": {"model": "models.mlp:small", "engine": "eager"},
        "broken": {"model": "models.mlp:small", "engine": "aten", "disable": ["no-such-pass"]},
    }
    found = benchmark_processes(engines, rounds=2, repeats=2, seconds=0.1, threads=1, progress=phases.append)
    assert list(found.timing.rows) == list(found.engines) == ["eager"]
    assert found.timing.rounds == 4
    assert len(found.timing.rows["eager"].samples) % 8 == 0
    assert "no-such-pass" in found.failed["broken"]
    assert [p for p in phases if "broken" in p] == ["starting broken (1 of 2)"]


def test_a_cache_is_compared_as_it_was_before_the_first_call() -> None:
    """Written once more, it would hold already what eager writes, up to rounding."""
    spec = {"model": "models.gpt2:small_with_cache", "engine": "aten", "threads": torch.get_num_threads()}
    call, described = prepare(spec)
    assert described["ok"], described["reason"]
    assert call()[0].isfinite().all()


class FakeWorker:
    """Says at each start that a call takes longer than it did before."""

    starts = 0

    def __init__(self, engine: str) -> None:
        FakeWorker.starts += 1
        self.engine, self.start = engine, FakeWorker.starts
        self.waited = [0.5, 0.3]

    def answer(self) -> dict[str, object]:
        if self.engine == "late" and self.start > 3:
            return {"error": "out of memory"}
        return {"ok": True, "seconds_to_start": 1.0, "seconds_a_call": 0.01 * self.start}

    def leg(self, calls: int) -> list[float]:
        return [1.0] * calls


def test_repetitions_weigh_the_same_and_an_engine_that_fails_later_is_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeWorker, "starts", 0)
    monkeypatch.setattr(
        "runtime.processes.started", lambda spec, threads: contextlib.nullcontext(FakeWorker(spec["engine"]))
    )
    engines = {name: {"engine": name} for name in ("eager", "ours", "late")}
    found = benchmark_processes(engines, repeats=3, threads=1)
    assert list(found.timing.rows) == list(found.engines) == ["eager", "ours"]
    assert found.failed == {"late": "out of memory"}
    assert found.timing.ratio_interval == (1.0, 1.0)
    assert found.timing.waited == pytest.approx(0.4)


def test_a_baseline_that_fails_is_an_error() -> None:
    with pytest.raises(CaptureError, match="eager cannot run"):
        benchmark_processes(
            {"eager": {"model": "models.mlp:nothing", "engine": "eager"}}, repeats=1, threads=1
        )
