"""`doctor`: versions, devices, and what is missing."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from rich.text import Text

from runtime.cli.terminal import Terminal
from runtime.machine import installed_version, machine

NEEDED = {
    "torch": ("torch", "everything"),
    "numpy": ("numpy", "--inputs, statistics"),
    "safetensors": ("safetensors", "weights, saved graphs"),
    "onnx": ("onnx", "ONNX export"),
    "onnxscript": ("onnxscript", "ONNX export"),
    "onnxruntime": ("onnxruntime", "the onnx backend"),
    "pydot": ("pydot", "pictures"),
    "pygraphviz": ("pygraphviz", "pictures"),
}
OPTIONAL = {
    "triton": ("triton", "kernels for GPUs"),
    "transformers": ("transformers", "models of that package"),
}
HOW_TO_INSTALL = {"onnxruntime": "onnxruntime-gpu" if sys.platform == "linux" else "onnxruntime"}


def command(terminal: Terminal, options: SimpleNamespace) -> int:
    """Look and tell; 1 where something is missing."""
    terminal.say("looking at packages and devices")
    facts = examine()
    terminal.json(facts)
    terminal.line(
        f"torch-capture {facts['versions']['torch-capture'] or 'from source'}",
        f"Python {facts['versions']['python']}",
    )
    terminal.print()
    wide = max(map(len, facts["packages"])) + 2
    for name, package in facts["packages"].items():
        terminal.line(
            state(package), Text(package["problem"] or package["use"], "dim"), label=name.ljust(wide)
        )
    terminal.print()
    for key, value in facts["devices"].items():
        terminal.line(str(value), label=key.ljust(wide))
    for advice in facts["advice"]:
        terminal.line(advice, label="try".ljust(wide))
    return 0 if facts["ok"] else 1


def state(package: Mapping[str, Any]) -> Text:
    """The version of a package, or that it is missing, in a column of its own."""
    if package["ok"]:
        return Text(f"{package['version'] or 'ok':<12}")
    return Text(f"{'missing':<12}", "bold red") if package["needed"] else Text(f"{'none':<12}", "yellow")


def examine() -> dict[str, Any]:
    """What is installed and works, and which devices there are."""
    packages = {
        name: _package(name, module, use, needed)
        for table, needed in ((NEEDED, True), (OPTIONAL, False))
        for name, (module, use) in table.items()
    }
    missing = [name for name, package in packages.items() if package["needed"] and not package["ok"]]
    advice = (
        [f"pip install {' '.join(HOW_TO_INSTALL.get(name, name) for name in missing)}"] if missing else []
    )
    return {
        "ok": not missing,
        "versions": {
            "torch-capture": installed_version("torch-capture"),
            "python": sys.version.split()[0],
            **{name: package["version"] for name, package in packages.items()},
        },
        "packages": packages,
        "devices": _devices(),
        "advice": advice,
    }


def _package(name: str, module: str, use: str, needed: bool) -> dict[str, Any]:
    """Whether a package is installed and can be imported."""
    problem = ""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        problem = f"not installed; it serves {use}" if error.name == module else str(error)
    except Exception as error:  # a broken installation may raise anything
        problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    return {
        "ok": not problem,
        "version": installed_version(name),
        "use": use,
        "needed": needed,
        "problem": problem,
    }


def usable_cores() -> int | None:
    """Cores that this process may use, which a container may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _devices() -> dict[str, Any]:
    found = machine()
    devices: dict[str, Any] = {
        "cpu": f"{found['cpu']}, {usable_cores()} cores",
        "threads": torch.get_num_threads(),
        "features": found["capability"],
        "oneDNN": "yes"
        if torch.backends.mkldnn.is_available()
        else "no: linear layers and convolutions stay as they are",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none that PyTorch can use",
    }
    try:
        import onnxruntime

        devices["providers"] = ", ".join(onnxruntime.get_available_providers())
    except Exception:
        devices["providers"] = "onnxruntime cannot be imported"
    return devices
