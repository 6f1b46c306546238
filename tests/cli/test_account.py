"""What the account says of latency: a verdict where there is one, and none where there is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import runtime
from passes import optimize
from runtime.benchmark import summarize
from runtime.cli import account
from runtime.cli.terminal import Terminal
from runtime.compile import Candidate
from tests.handmade import parse

CALM = [([30.0, 31.0], [31.0, 30.0])] * 4
FAST = [([10.0, 10.5], [10.5, 10.0])] * 4
BUSY = [([10.0] * 4, [12.0] * 4)] * 4
WAITING = [([10.0, 10.0, 10.0, 0.02], [10.0] * 4)] * 4
SINGLE = [([0.01] * 4, [0.01] * 4)] * 4


@pytest.fixture
def latency(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")

    def tell(backend: str = "aten", candidates: list[Candidate] | None = None, **legs: object) -> str:
        compiled = runtime.compile(nn.ReLU(), (torch.zeros(4),), backend=backend)
        compiled.candidates = candidates or compiled.candidates
        account.tell_latency(Terminal(), compiled, summarize(legs, threads=2))  # type: ignore[arg-type]
        return capsys.readouterr().out

    return tell


def test_a_verdict(latency) -> None:
    out = latency(eager=CALM, ours=FAST)
    assert "eager 30.5 ms    ours 10.2 ms    2.98x [" in out
    assert "pays for itself after" in out
    assert "busy" not in out


@pytest.mark.parametrize(
    ("eager", "ours", "why", "minima"),
    [
        (BUSY, FAST, "an engine against itself differed by 17%", ("10.0 ms", "10.0 ms")),
        (WAITING, SINGLE, "the medians say 1000.00x, the minima 2.00x", ("20 µs", "10 µs")),
    ],
)
def test_no_verdict(latency, eager, ours, why: str, minima: tuple[str, str]) -> None:
    out = latency(eager=eager, ours=ours)
    assert f"machine busy: {why}" in out
    assert "too noisy for a verdict" in out
    assert all(f"(min {least})" in out for least in minima)
    assert "x [" not in out
    assert "pays for itself" not in out


def test_eager_that_is_kept_is_one_figure(latency) -> None:
    measured = [Candidate("eager", 30.0), Candidate("aten", 31.0)]
    out = latency("eager", measured, eager=CALM)
    assert "eager 30.5 ms    1.00x    eager, 2 threads" in out
    assert "eager is kept: nothing that is right was faster" in out
    assert "ours" not in out
    assert "eager was asked for" in latency("eager", eager=CALM)


@pytest.mark.parametrize(
    ("backend", "line"),
    [
        ("aten", "memory     64 B naive    64 B planned    32 B measured"),
        ("eager", "memory     64 B naive    64 B planned"),
    ],
)
def test_memory_tells_what_means_something(
    capsys: pytest.CaptureFixture[str], backend: str, line: str
) -> None:
    graph = parse("""
        graph(%x: f32[16])
          %0: f32[16] = aten.exp(%x)
          %1: f32[16] = aten.relu(%0)
          return %1
    """)
    account.tell_memory(Terminal(), optimize(graph, passes=["memory"]), 32, backend)
    assert capsys.readouterr().out.splitlines()[0] == line
