"""Save a compiled model to a folder and load it again. Loading executes nothing that it reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.ir import Graph
from capture.ir.serialize import write_aside
from passes import PIPELINES, Pass, make_pass, run_pass
from runtime.compile import BACKENDS, Compiled, Recipe, make_executable

FORMAT = "torch-capture compiled 1"


def save(compiled: Compiled, folder: Path) -> None:
    """Write ``settings.json``, ``captured.safetensors``, ``optimized.safetensors``, and ``model.py`` to read.

    Raises:
        CaptureError: the folder cannot be written to, or inputs or results are of a class that pytree knows
            no name for.
    """
    _check_structure("inputs", compiled.captured.in_spec)
    _check_structure("results", compiled.captured.out_spec)
    compiled.captured.save(folder / "captured.safetensors")
    compiled.graph.save(folder / "optimized.safetensors")
    if compiled.source is not None:
        write_aside(folder / "model.py", compiled.source)
    recipe = compiled.recipe
    settings = {
        "format": FORMAT,
        "backend": compiled.backend,
        "level": recipe.level,
        "disable": list(recipe.disable),
        "passes": None if recipe.passes is None else [_pass_text(p) for p in recipe.passes],
        "planned": compiled.graph.memory_plan is not None,
        "title": recipe.title,
        "threads": recipe.threads,
        "torch": torch.__version__,
    }
    write_aside(folder / "settings.json", json.dumps(settings, indent=2) + "\n")


def load(folder: str | Path) -> Compiled:
    """Load what `save` wrote; the module is generated anew from the graph, weights are packed anew.

    Raises:
        CaptureError: the folder or a file in it is missing or corrupt.
    """
    folder = Path(folder)
    backend, planned, recipe = _settings(folder / "settings.json")
    captured = Graph.load(folder / "captured.safetensors")
    graph = Graph.load(folder / "optimized.safetensors")
    if planned:
        run_pass(graph, make_pass("memory"))  # plans are analyses, made anew
        graph.history.pop()
    return Compiled(captured, graph, make_executable(backend, graph, captured, None, recipe), recipe)


def _settings(path: Path) -> tuple[str, bool, Recipe]:
    """The backend, whether there was a memory plan, and the recipe."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if found.get("format") != FORMAT:
            raise ValueError("its format is not ours")
        backend, level, threads = found["backend"], found["level"], found["threads"]
        if backend not in BACKENDS or backend == "auto" or level not in PIPELINES:
            raise ValueError(f"there is no backend {backend!r} with a level {level!r}")
        if not isinstance(threads, (int, type(None))):
            raise ValueError(f"threads is {threads!r}")
        names = found["passes"]
        passes = None if names is None else [make_pass(str(name)) for name in names]
        disable = tuple(make_pass(str(name)).name for name in found["disable"])
        return backend, bool(found["planned"]), Recipe(level, disable, passes, str(found["title"]), threads)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, CaptureError) as error:
        missing = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise CaptureError(
            f"cannot load the compiled model in {path.parent}",
            why=missing,
            hint="save it again with f.save(folder)",
        ) from error


def _pass_text(given: str | Pass) -> str:
    """A pass as `make_pass` reads it: ``fuse{max_ops=8}``."""
    step = make_pass(given)
    fields = [(f, getattr(step, f.name)) for f in dataclasses.fields(step) if f.repr]
    options = ",".join(f"{f.name}={value}" for f, value in fields if value != f.default)
    return f"{step.name}{{{options}}}" if options else step.name


def _check_structure(what: str, spec: Any) -> None:
    try:
        if spec is not None:
            pytree.treespec_dumps(spec)
    except NotImplementedError as error:
        raise CaptureError(
            f"the structure of the {what} cannot be saved",
            why=str(error),
            hint="use tuples, lists and dicts, or give the class a name in torch.utils._pytree",
        ) from error
