"""What every test relies on: one thread a worker, fixed seeds, a cache of its own, hypothesis profiles."""

from __future__ import annotations

import os
import random

# Set before torch starts its thread pool; subprocesses inherit it. Workers of pytest-xdist share the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(autouse=True)
def _same_start(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same random numbers whatever ran before, and no cache shared with the user or other workers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    monkeypatch.setenv("CAPTURE_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("CAPTURE_CACHE", "0")  # tests of passes want to see them run
