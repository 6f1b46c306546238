"""The command line as a process of its own: exit codes, interrupts, pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from capture.__main__ import main
from capture._floors import ROOT

SLOW = """
import torch, sys, threading

class Net(torch.nn.Module):
    def forward(self, x):
        print("begun", flush=True)
        threading.Event().wait(60)
        return x

def build():
    return Net()

def example_inputs(batch=1):
    return (torch.randn(batch, 4),)
"""


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "capture", *args]


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def test_exit_codes_and_streams(tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command("models.mlp:small", "--optimize", "--iters", "1"),
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "parity" in done.stdout
    assert "\x1b" not in done.stdout
    done = subprocess.run(
        command("models.nothing"),
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no module 'models.nothing'")


def test_an_interrupt_says_what_was_going_on_and_leaves_nothing(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    process = subprocess.Popen(
        command("slow", "--optimize"),
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell starts what it runs in the background with interrupts ignored, and the tests with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert "begun\n" in iter(process.stdout.readline, "")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert err.strip() == "interrupted while capturing; nothing was written"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["slow.py"]


def test_an_interrupt_while_starting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Starting(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "runtime.cli", Starting("runtime.cli"))
    assert main([]) == 130
    assert capsys.readouterr().err == "interrupted while starting; nothing was written\n"


def test_importing_capture_waits_with_torch(environment: dict[str, str]) -> None:
    code = "import sys, capture; assert 'torch' not in sys.modules; from capture import Graph; print(Graph)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout == "<class 'capture.ir.graph.Graph'>\n"


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["viz", "--help"], ["--version"]])
def test_help_waits_for_nothing_heavy(environment: dict[str, str], args: list[str]) -> None:
    code = f"import sys; from capture.__main__ import main; main({args}); assert not " + (
        "{'torch', 'sympy', 'numpy', 'onnx', 'jinja2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=True)


def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        command("explain", "models.resnet:small"),
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=240)
    assert "Traceback" not in err
    assert "Exception" not in err
