"""Save a compiled model to a folder and load it again. Loading executes nothing that it reads."""

from __future__ import annotations

import dataclasses
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.ir import Graph
from passes import PIPELINES, Pass, make_pass, registered, run_pass
from runtime.compile import BACKENDS, Compiled, Recipe, make_executable

FORMAT = "torch-capture compiled 1"
_FILES = ("settings.json", "captured.safetensors", "optimized.safetensors", "model.py")


def save(compiled: Compiled, folder: Path) -> None:
    """Write ``settings.json``, ``captured.safetensors``, ``optimized.safetensors``, and ``model.py`` to read.

    The folder appears whole or not at all; it takes the place of an empty one, or of one that this wrote.

    Raises:
        CaptureError: the folder cannot be written to or holds other files, or inputs or results are of a
            class that pytree knows no name for.
    """
    _check_structure("inputs", compiled.captured.in_spec)
    _check_structure("results", compiled.captured.out_spec)
    with _written_aside(folder.resolve()) as aside:
        _write(compiled, aside)


@contextmanager
def _written_aside(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place at the end."""
    aside, old = (folder.with_name(f".{uuid.uuid4().hex}.{end}") for end in ("part", "old"))
    try:
        _check_ours(folder)
        aside.mkdir(parents=True)
        try:
            yield aside
            if folder.exists():
                folder.rename(old)
            aside.rename(folder)
        finally:
            if old.exists() and not folder.exists():
                old.rename(folder)
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise CaptureError(
            f"cannot write {folder}", why=error.strerror or str(error), hint="another folder"
        ) from error


def _check_ours(folder: Path) -> None:
    """Make sure that nothing is lost when the folder is replaced.

    Raises:
        CaptureError: it holds files that `save` has not written.
    """
    if not folder.exists():
        return
    foreign = sorted({file.name for file in folder.iterdir()} - set(_FILES))
    if not foreign and any(folder.iterdir()):
        try:
            ours = json.loads((folder / _FILES[0]).read_text())["format"] == FORMAT
        except (OSError, ValueError, TypeError, KeyError):
            ours = False
        foreign = [] if ours else sorted(file.name for file in folder.iterdir())
    if foreign:
        raise CaptureError(
            f"cannot write {folder}", why=f"it holds other files: {', '.join(foreign)}", hint="a new folder"
        )


def _write(compiled: Compiled, folder: Path) -> None:
    compiled.captured.save(folder / "captured.safetensors")
    compiled.graph.save(folder / "optimized.safetensors")
    if compiled.source is not None:
        (folder / "model.py").write_text(compiled.source)
    recipe = compiled.recipe
    settings = {
        "format": FORMAT,
        "backend": compiled.backend,
        "level": recipe.level,
        "disable": list(recipe.disable),
        "passes": None if recipe.passes is None else [_pass_text(p) for p in recipe.passes],
        "check_rewrites": recipe.check_rewrites,
        "planned": compiled.graph.memory_plan is not None,
        "title": recipe.title,
        "threads": recipe.threads,
        "torch": torch.__version__,
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")


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
        check = bool(found.get("check_rewrites"))
        recipe = Recipe(level, disable, passes, str(found["title"]), threads, check)
        return backend, bool(found["planned"]), recipe
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
    if step.name not in registered():
        raise CaptureError(
            f"the pass {step.name} cannot be saved",
            why="its options are data, such as calibration samples",
            hint="compile the graph that passes.quantize returns, and save that",
        )
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
