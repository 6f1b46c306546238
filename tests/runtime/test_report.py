"""The report: keys that users rely on, the same text for the same data, clear errors for a broken file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import runtime
from capture.errors import CaptureError
from models import resnet
from runtime.benchmark import summarize
from runtime.compare import compare
from runtime.peak import measured_peak
from runtime.profile import profile
from runtime.report import REQUIRED, Report, build_report


@pytest.fixture(scope="module")
def report() -> Report:
    model, args = resnet.small(), resnet.example_inputs(1, "small")
    f = runtime.compile(model, args, backend="aten")
    return build_report(
        f,
        model="models.resnet:small",
        title="ResNet",
        parity=compare(model, f, args),
        timing=summarize(
            {"eager": [([30.0, 31.0], [31.0, 30.0])], "ours": [([20.0, 21.0], [21.0, 20.0])]}, threads=1
        ),
        profiles={"eager": profile(model, args, runs=1), "optimized": profile(f, args, runs=1)},
        measured_peak=measured_peak(f, args),
        files=["report.json"],
    )


def test_keys_of_the_report(report: Report) -> None:
    data = report.to_dict()
    assert data["model"] == "models.resnet:small"
    assert set(data["versions"]) >= {"python", "torch", "torch-capture", "onnxruntime"}
    assert data["device"] == "cpu"
    assert data["frontend"].startswith("torch.export")
    assert data["nodes"]["captured"] > data["nodes"]["optimized"] > 0
    assert {"fold-batch-norm", "fuse", "memory"} <= {row["name"] for row in data["passes"]}
    assert set(data["passes"][0]) >= {"name", "seconds", "changed", "nodes_before", "nodes_after"}
    memory = data["memory"]
    assert memory["naive_bytes"] > memory["arena_bytes"] >= memory["lower_bound_bytes"] > 0
    assert memory["measured_peak_bytes"] > 0
    assert memory["callee_allocated_bytes"] is not None
    assert {"steps", "live_bytes", "buffers"} == set(memory["timeline"])
    assert set(memory["timeline"]["buffers"][0]) == {
        "name", "op", "location", "first", "end", "offset", "size", "callee",
    }  # fmt: skip
    assert data["parity"]["ok"] is True
    assert {"max_abs_error", "relative_error", "eager_error_vs_fp64", "error_vs_fp64"} <= set(data["parity"])
    for side in ("eager", "optimized"):
        assert data["latency_ms"][side]["median"] >= data["latency_ms"][side]["min"] > 0
        assert len(data["latency_ms"][side]["samples"]) == 4
    assert data["speedup"] == pytest.approx(
        data["latency_ms"]["eager"]["median"] / data["latency_ms"]["optimized"]["median"]
    )
    assert len(data["speedup_interval"]) == 2
    assert data["backend"] == "aten"
    assert set(data["seconds"]) == {"capture", "optimize", "compile"}
    assert data["dtype"] == "float32"
    assert data["inputs"] == ["x [1, 3, 64, 64]"]
    assert data["parameters"] == sum(p.numel() for p in resnet.small().parameters())


def test_every_captured_op_has_a_fate(report: Report) -> None:
    rows = report["captured_ops"]
    assert len(rows) == report["nodes"]["captured"]
    assert {row["fate"] for row in rows} <= {"kept", "fused", "folded", "removed", "replaced"}
    assert {row["file"] for row in rows} == {"models/resnet.py"}
    folded = [row for row in rows if row["fate"] == "folded"]
    assert folded
    assert {row["pass"] for row in folded} == {"fold-batch-norm"}


def test_ops_of_both_sides(report: Report) -> None:
    assert {row["side"] for row in report["ops"]} == {"eager", "optimized"}
    keys = {"side", "name", "op", "module", "file", "line", "calls", "microseconds", "share"}
    assert all(set(row) == keys for row in report["ops"])


def test_a_report_survives_json(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    again = Report.load(tmp_path / "report.json")
    assert again == report
    assert again.to_json() == report.to_json() == (tmp_path / "report.json").read_text()
    assert again.with_(title="other")["title"] == "other"
    assert again["title"] == "ResNet"


def test_numbers_that_cannot_be_had_are_null() -> None:
    report = Report({"a": math.nan, "b": [math.inf, (1, 2.5)], "c": {1: None}, "d": True})
    assert json.loads(report.to_json()) == {
        "format": report["format"],
        "a": None,
        "b": [None, [1, 2.5]],
        "c": {"1": None},
        "d": True,
    }


def test_unmeasured_parts_are_null() -> None:
    f = runtime.compile(resnet.small(), resnet.example_inputs(1, "small"), level=0, backend="aten")
    data = build_report(f, model="m").to_dict()
    assert data["latency_ms"] is data["parity"] is data["speedup"] is None
    assert data["memory"]["arena_bytes"] is None
    assert data["ops"] == data["passes"] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is corrupt"),
        ('{"format": "torch-capture report 1", "model"', "is corrupt"),
        ("[" * 100_000, "is corrupt"),
        ("[1]", "is not a report"),
        ('{"model": "x"}', "is not a report"),
        ('{"format": "torch-capture report 1", "model": "x"}', "is incomplete"),
    ],
)
def test_a_broken_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(text)
    with pytest.raises(CaptureError, match=message) as caught:
        Report.load(file)
    assert str(file) in caught.value.what
    assert caught.value.hint


def test_a_file_that_is_no_text_or_missing(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    for name in ("report.json", "missing.json"):
        with pytest.raises(CaptureError, match="cannot read the report"):
            Report.load(tmp_path / name)


def test_required_keys_are_what_is_written(report: Report) -> None:
    complete: dict[str, Any] = report.to_dict()
    for key in REQUIRED:
        partial = {k: v for k, v in complete.items() if k != key}
        with pytest.raises(CaptureError, match="is incomplete"):
            Report.from_json(json.dumps(partial))


def test_a_busy_machine_is_flagged_in_place_of_a_speedup() -> None:
    f = runtime.compile(nn.ReLU(), (torch.zeros(4),), backend="aten")
    legs = {"eager": [([9.0] * 3, [12.0] * 3)] * 4, "ours": [([1.0] * 3, [1.0] * 3)] * 4}
    report = build_report(f, model="relu", timing=summarize(legs, threads=2))
    assert report["noisy"] is True
    assert report["noisy_reason"] == "machine busy: an engine against itself differed by 25%"
    assert report["speedup"] is report["speedup_interval"] is report["breakeven_calls"] is None
    assert report["latency_ms"]["eager"]["min"] == 9.0
    assert "too noisy for a verdict" in repr(report)
