"""The command line in this process, and a folder with a user's models."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def cli(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Run a command as `python -m capture` does."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*args: str) -> Outcome:
        code = main([str(a) for a in args])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def model_file(folder: Path) -> Callable[..., str]:
    """Write a module of a user's model: the body of `forward`, and how the input is made."""

    def write(name: str, forward: str, inputs: str = "torch.randn(batch, 4)", init: str = "pass") -> str:
        lines = "\n        ".join(forward.strip().splitlines())
        (folder / f"{name}.py").write_text(
            "import torch\n\n\n"
            "class Net(torch.nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            f"        {init}\n\n"
            "    def forward(self, x):\n"
            f"        {lines}\n\n\n"
            "def build():\n    return Net()\n\n\n"
            f"def example_inputs(batch=1):\n    return ({inputs},)\n"
        )
        return name

    return write
