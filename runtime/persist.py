"""Save a compiled model to a folder and load it again. Loading executes nothing that it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from capture.errors import CaptureError
from capture.ir import Graph
from capture.ir.serialize import write_aside
from passes.base import make_pass
from passes.manager import run_pass
from runtime.compile import Compiled, Recipe, make_executable

FORMAT = "torch-capture compiled 1"


def save(compiled: Compiled, folder: Path) -> None:
    """Write ``settings.json``, ``captured.safetensors``, ``optimized.safetensors``, and ``model.py`` to read.

    Raises:
        CaptureError: the folder cannot be written to.
    """
    compiled.captured.save(folder / "captured.safetensors")
    compiled.graph.save(folder / "optimized.safetensors")
    if compiled.source is not None:
        write_aside(folder / "model.py", compiled.source)
    settings = {
        "format": FORMAT,
        "backend": compiled.backend,
        "level": compiled.recipe.level,
        "disable": list(compiled.recipe.disable),
        "title": compiled.recipe.title,
        "torch": torch.__version__,
    }
    write_aside(folder / "settings.json", json.dumps(settings, indent=2) + "\n")


def load(folder: str | Path) -> Compiled:
    """Load what `save` wrote; the module is generated anew from the graph, weights are packed anew.

    Raises:
        CaptureError: the folder or a file in it is missing or corrupt.
    """
    folder = Path(folder)
    settings = _settings(folder / "settings.json")
    captured = Graph.load(folder / "captured.safetensors")
    graph = Graph.load(folder / "optimized.safetensors")
    if settings["level"] >= 2 and "memory" not in settings["disable"]:
        run_pass(graph, make_pass("memory"))  # plans are analyses, made anew
        graph.history.pop()
    recipe = Recipe(settings["level"], tuple(settings["disable"]), None, settings["title"])
    return Compiled(
        captured, graph, make_executable(settings["backend"], graph, captured, None, recipe), recipe
    )


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
        if settings.get("format") != FORMAT:
            raise ValueError("its format is not ours")
        return settings
    except (OSError, ValueError, AttributeError) as error:
        raise CaptureError(
            f"cannot load the compiled model in {path.parent}",
            why=str(error),
            hint="save it again with f.save(folder)",
        ) from error
