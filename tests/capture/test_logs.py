"""CAPTURE_LOGS: which names log, how much, and what a wrong setting says."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from capture.errors import UsageError
from capture.ir import Graph
from capture.logs import configure, logger
from passes import optimize

NEGATED_TWICE = "graph(%x: f32[2])\n  %0: f32[2] = aten.neg(%x)\n  %1: f32[2] = aten.neg(%0)\n  return %1\n"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    names = ["all", "passes", "fuse", "simplify", "eliminate-dead-code"]
    before = {name: logger(name).level for name in names}
    handlers = list(logging.getLogger("capture").handlers)
    yield
    logging.getLogger("capture").handlers[:] = handlers
    for name, level in before.items():
        logger(name).setLevel(level)


def logged(setting: str, capsys: pytest.CaptureFixture[str]) -> str:
    configure(setting)
    optimize(Graph.parse(NEGATED_TWICE), passes=["simplify", "eliminate-dead-code"])
    return capsys.readouterr().err


def test_one_pass(capsys: pytest.CaptureFixture[str]) -> None:
    text = logged("simplify", capsys)
    assert text.startswith("[capture.passes.simplify] 2 -> ")
    assert "dead-code" not in text


def test_an_area_but_for_one_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    text = logged(" passes, -simplify,", capsys)
    assert "[capture.passes.eliminate-dead-code]" in text
    assert "[capture.passes.simplify]" not in text


def test_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure("simplify")
    assert logged("simplify", capsys).count("simplify]") == 1


def test_plus_is_for_reasons_too() -> None:
    configure("+fuse")
    assert logger("fuse").isEnabledFor(logging.DEBUG)
    assert not logger("simplify").isEnabledFor(logging.DEBUG)


def test_a_wrong_setting() -> None:
    with pytest.raises(UsageError, match="'Fuse!' is not a name"):
        configure("fuse,Fuse!")


def test_the_variable_is_read_when_imported() -> None:
    code = "import logging, capture; print(logging.getLogger('capture.passes.fuse').level)"
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, env={"CAPTURE_LOGS": "+fuse"}, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "10"
    found = subprocess.run(run, env={"CAPTURE_LOGS": "9"}, capture_output=True, text=True, check=True)
    assert "CAPTURE_LOGS: '9' is not a name" in found.stderr
