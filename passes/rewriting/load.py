"""Load a user's file of rules and passes: plain Python that calls `register_rule` and `@register_pass`."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path

from capture.errors import CaptureError, UsageError
from passes.base import registered
from passes.rewriting.rule import rules

__all__ = ["load_rules"]

_LOADED: dict[Path, tuple[str, ...]] = {}


def load_rules(path: str | Path) -> tuple[str, ...]:
    """Run the file, once in a process; returns the names of the rules and passes that it registered.

    Raises:
        UsageError: there is no such file, it fails, or it registers nothing; names the file's line.
    """
    file = Path(path).resolve()
    if file in _LOADED:
        return _LOADED[file]
    if not file.is_file():
        raise UsageError(f"there is no file {path} of rules", hint="--rules FILE.py")
    before = {*rules(), *registered()}
    name = f"capture_rules_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file", hint="--rules FILE.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(
            f"the file of rules {path} fails",
            where=_line(file, error),
            why=str(error) if isinstance(error, CaptureError) else f"{type(error).__name__}: {error}",
        ) from error
    made = tuple(sorted({*rules(), *registered()} - before))
    if not made:
        raise UsageError(
            f"the file {path} registers no rule and no pass",
            hint="passes.register_rule(...) or @passes.register_pass in it",
        )
    _LOADED[file] = made
    return made


def _line(file: Path, error: Exception) -> str:
    """The innermost line of the file that the error came through."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{file.name}:{error.lineno}   {(error.text or '').strip()}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return f"{file.name}:{frames[-1].lineno}   {frames[-1].line}" if frames else file.name
