"""Packages that only ONNX needs."""

from __future__ import annotations

import importlib.util

from capture.errors import CaptureError

_PACKAGES = {"onnx_ir": "onnx-ir", "onnxruntime": "onnxruntime"}


def require(*modules: str) -> None:
    """Raise a CaptureError that names the package of the first module that is not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            package = _PACKAGES.get(module, module)
            raise CaptureError(f"ONNX needs the package {package}", hint=f"pip install {package}")
