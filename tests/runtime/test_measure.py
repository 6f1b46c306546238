"""`measure`: the library's way to a whole report."""

from __future__ import annotations

import importlib

import pytest
import torch

import runtime
from models import mlp
from runtime.measure import measure_steps


def test_a_measured_report_is_the_callables_own() -> None:
    model, args = mlp.small(), mlp.example_inputs(2, "small")
    f = runtime.compile(model, args, backend="aten")
    report = runtime.measure(model, f, args, name="mlp", seconds=0.1)
    assert report is f.report
    assert report["model"] == "mlp"
    assert report["parity"]["ok"] is True
    assert report["latency_ms"]["optimized"]["median"] > 0
    assert {row["side"] for row in report["ops"]} == {"eager", "optimized"}


def test_a_report_is_there_at_once() -> None:
    f = runtime.compile(mlp.small(), mlp.example_inputs(2, "small"), backend="aten")
    report = f.report
    assert (report["backend"], report["device"]) == ("aten", "cpu")
    assert report["nodes"] == {"captured": 7, "optimized": 3}
    assert report["memory"]["arena_bytes"] is not None
    assert (report["parity"], report["latency_ms"], report["speedup"]) == (None, None, None)
    assert repr(report) == "<Report of MLP: backend aten, 7 -> 3 nodes, not measured yet>"


def test_steps_are_told_in_order() -> None:
    model, args = mlp.small(), mlp.example_inputs(2, "small")
    f = runtime.compile(model, args, backend="aten")
    said: list[str] = []
    told: list[str] = []
    measure_steps(
        model,
        f,
        args,
        seconds=0.1,
        iters=1,
        say=lambda step, *_: said.append(step),
        tell=lambda step, _: told.append(step),
    )
    assert list(dict.fromkeys(said)) == [
        "measuring memory",
        "comparing with fp64",
        "measuring latency",
        "profiling",
    ]
    assert told == ["memory", "parity", "latency"]


def test_eager_is_measured_once_where_it_is_kept() -> None:
    model, args = mlp.small(), mlp.example_inputs(2, "small")
    f = runtime.compile(model, args, backend="eager")
    report = runtime.measure(model, f, args, seconds=0.1)
    assert report["latency_ms"]["optimized"] == report["latency_ms"]["eager"]
    assert (report["speedup"], report["speedup_interval"]) == (1.0, [1.0, 1.0])
    assert report["breakeven_calls"] is None


def test_parity_is_that_of_the_inputs_given() -> None:
    """A reference that `auto` made serves the inputs it was made with, and no others."""
    model = mlp.small()
    args = mlp.example_inputs(2, "small")
    f = runtime.compile(model, args)
    kept = measure_steps(model, f, args, seconds=0.1, iters=1).parity
    assert kept.ok
    other = (torch.full_like(args[0], float("nan")),)
    assert "NaN" in measure_steps(model, f, other, seconds=0.1, iters=1).parity.reason


def test_a_side_that_cannot_be_profiled_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model, args = mlp.small(), mlp.example_inputs(2, "small")
    f = runtime.compile(model, args, backend="aten")

    def broken(*_: object) -> None:
        raise ValueError("no lines here")

    monkeypatch.setattr(importlib.import_module("runtime.profile"), "line_recorder", broken)
    found = measure_steps(model, f, args, seconds=0.1, iters=1)
    assert list(found.profiles) == ["eager"]
    assert found.unprofiled == {"optimized": "ValueError: no lines here"}
    assert found.parity
