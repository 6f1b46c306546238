"""Triton kernels on the command line of a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Cli

FORWARD = "return torch.softmax(x * 0.5, -1)"


def test_export_writes_the_kernels(cli: Cli, model_file: Path, folder: Path) -> None:
    outcome = cli("export", model_file("mine", FORWARD), "--triton", "out")
    assert outcome.code == 0, outcome.err
    (file,) = (folder / "out").iterdir()
    assert "Stands for:\n    -  mine.py:" in file.read_text()
    assert cli("export", "--triton", "mine").code == 0
    assert [p.name for p in (folder / "capture-out" / "mine" / "kernels").iterdir()] == [file.name]
    assert cli("export", "mine", "--triton", "-O2", "-o", "there").code == 0
    assert [p.name for p in (folder / "there").iterdir()] == [file.name]
    assert cli("export", "mine", "--triton", "--python", "-o", "both").code == 0
    assert {p.name for p in (folder / "both").rglob("*.py")} == {"model.py", file.name}


def test_a_dry_run_checks_and_compiles_the_kernels(cli: Cli, model_file: Path, folder: Path) -> None:
    outcome = cli(model_file("mine", FORWARD), "--backend", "triton", "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)["kernels"]
    (name,) = told["files"]
    assert (folder / "capture-out" / "mine" / "kernels" / name).exists()
    assert told["checked"] == 1
    assert {row["target"] for row in told["compiled"]} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert all(row["registers"] and not row["spills"] for row in told["compiled"])
    assert told["timed"] is False


def test_a_run_on_a_cpu_says_what_to_do(cli: Cli, model_file: Path) -> None:
    outcome = cli(model_file("mine", FORWARD), "--backend", "triton")
    assert outcome.code == 1
    assert "runs on a GPU, and the model is on the CPU" in outcome.err
