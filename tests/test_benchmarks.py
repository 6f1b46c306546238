"""The benchmarks' options, and tables that say what they hold for and what is missing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from benchmarks import decode, memory, schedule, tables
from benchmarks.tables import Table

NAMES = sorted(
    file.stem for file in Path(tables.__file__).parent.glob("*.py") if file.stem not in ("__init__", "tables")
)


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_is_measured_and_where_it_goes(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit) as done:
        module.main(["--help"])
    assert done.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith(f"usage: python -m benchmarks.{name} ")
    assert module.__doc__.partition("\n")[0] in out
    assert "folder of the table" in out


def test_a_table_is_written_with_machine_versions_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table("cpu", "Latency", "Milliseconds a call.", ("model", "eager"))
    table.row("mlp", 1.5)
    table.not_run("resnet", "no such\n  module")
    table.not_asked(["mlp", "bert"], ["mlp"])
    table.note("Take care.")
    table.write(tmp_path)
    head, about, measured, rows, note, missing, listed = (tmp_path / "cpu.md").read_text().split("\n\n")
    assert (head, about, note) == ("# Latency", "Milliseconds a call.", "Take care.")
    assert measured.startswith("Measured by `python -m benchmarks.cpu`: ")
    assert f"torch {torch.__version__}" in measured
    assert rows == "| model | eager |\n|---|---|\n| mlp | 1.5 |"
    assert (missing, listed) == ("Not run:", "- resnet: no such module\n- bert: not asked for\n")
    assert rows in capsys.readouterr().out


def test_planner_and_schedules_in_short(tmp_path: Path) -> None:
    memory.main(["--seconds", "0.05", "--synthetic", "1", "--output", str(tmp_path)])
    assert "| cut 0 | " in (tmp_path / "memory.md").read_text()
    schedule.main(["--graphs", "1", "--large", "50", "--output", str(tmp_path)])
    assert "| training chain, n=98, updates last | 1 of 1 | " in (tmp_path / "schedule.md").read_text()
    assert "- 5000: not asked for" in (tmp_path / "schedule_large.md").read_text()


@pytest.mark.slow
def test_engines_are_timed_and_a_model_that_is_missing_is_named(tmp_path: Path) -> None:
    decode.main(
        ["models.gpt2:small_with_cache", "models.nothing", "--repeats", "1", "--seconds", "0.1"]
        + ["--output", str(tmp_path)]
    )
    text = (tmp_path / "decode.md").read_text()
    assert "| models.gpt2:small_with_cache, batch 1 | " in text
    assert "not right" not in text
    assert "- models.nothing: eager cannot run: there is no module 'models.nothing'" in text
    assert "- models.gpt2:with_cache: not asked for" in text
