"""`cache status` and `cache clear`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import runtime


@pytest.fixture(autouse=True)
def _filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, with one graph and one kernel."""
    monkeypatch.setenv("CAPTURE_CACHE", "1")
    monkeypatch.setenv("CAPTURE_CACHE_DIR", str(tmp_path / "cache"))
    runtime.compile(torch.nn.Linear(3, 2), (torch.ones(1, 3),), backend="aten", frontend="dispatch")
    kernels = tmp_path / "cache" / "kernels"
    kernels.mkdir()
    (kernels / "softmax.py").write_text("x = 1\n")


def test_status_counts_what_is_there(cli, tmp_path: Path) -> None:
    done = cli("cache", "status")
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == [str(tmp_path / "cache")]
    assert lines[1][:3] == ["graphs", "1", "kept"]
    assert lines[2] == ["kernels", "1", "kept", "6", "B"]
    facts = json.loads(cli("cache", "status", "--json").out)
    files = (tmp_path / "cache" / "graphs").iterdir()
    assert facts["graphs"] == {
        "count": 1,
        "bytes": sum(file.stat().st_size for file in files),
        "limit": 4_000_000_000,
    }
    assert facts["on"]
    assert not facts["cleared"]


def test_clear_leaves_nothing(cli, tmp_path: Path) -> None:
    done = cli("cache", "clear")
    assert done.code == 0
    assert "1 removed" in done.out
    assert [f for f in (tmp_path / "cache").rglob("*") if f.is_file()] == []
    assert json.loads(cli("cache", "status", "--json").out)["graphs"]["count"] == 0
    assert cli("cache", "clear").code == 0


def test_it_says_that_it_is_off(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTURE_CACHE", "0")
    assert "(off: CAPTURE_CACHE=0)" in cli("cache", "status").out


def test_another_word_is_refused(cli) -> None:
    done = cli("cache", "burn")
    assert done.code == 2
    assert "burn" in done.err
    assert cli("cache").code == 2
