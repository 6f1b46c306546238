"""What results depend on: the versions of packages, and the processor. Imports nothing heavy by itself."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["installed_version", "machine", "versions"]

PACKAGES = ("torch-capture", "torch", "onnx", "onnxruntime", "triton")


def versions() -> dict[str, str | None]:
    """Versions of what results depend on; None where a package is not installed."""
    return {"python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}}


def installed_version(name: str) -> str | None:
    """The version of an installed distribution; `onnxruntime` is also found in its GPU build."""
    loaded = sys.modules.get(name)
    if name == "torch" and loaded is not None:  # a build of one's own may have no metadata
        return str(loaded.__version__)
    for candidate in (name, f"{name}-gpu"):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return None


def machine() -> dict[str, Any]:
    """The processor and its cores, as the system names them, and the vector instructions that torch uses."""
    import torch

    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        except (OSError, StopIteration):
            pass
    return {"cpu": name, "cores": os.cpu_count(), "capability": torch.backends.cpu.get_cpu_capability()}
