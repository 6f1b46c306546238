"""backend="triton": refused on a CPU, right in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import runtime
from capture.errors import CaptureError

CASES = Path(__file__).with_name("interpreted_cases.py")


def test_is_refused_on_a_cpu_without_the_interpreter() -> None:
    with pytest.raises(CaptureError, match=r"runs on a GPU[\s\S]*TRITON_INTERPRET=1"):
        runtime.compile(torch.nn.Linear(3, 3), (torch.randn(2, 3),), backend="triton")


def test_models_and_random_graphs_agree_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CASES)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=CASES.parents[3],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-4000:]
