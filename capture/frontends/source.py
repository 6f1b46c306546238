"""From torch's records to the user's own code: module paths and source lines, the same on every machine."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "Frame",
    "Sources",
    "format_stack",
    "import_root_path",
    "innermost_user_frame",
    "is_user_file",
    "module_path",
    "parse_stack",
]

_TORCH = str(Path(torch.__file__).parent) + "/"
_OURS = tuple(
    str(Path(__file__).parents[2] / name) + "/" for name in ("capture", "passes", "codegen", "viz", "runtime")
)
_FRAME = re.compile(
    r'File "(?P<file>[^"]*)", line (?P<line>\d+), in [^\n]*(?:\n[ \t]+(?![ \t]*File ")(?P<code>[^\n]*))?'
)


@dataclass(frozen=True)
class Frame:
    """A line of code: the file as Python names it, the line's number, and its text."""

    file: str
    line: int
    code: str = ""


def is_user_file(file: str) -> bool:
    """Whether a file is neither torch's, nor generated, nor ours."""
    return not file.startswith(("<", "torch/", _TORCH, *_OURS)) and "/importlib/" not in file


def parse_stack(text: str) -> list[Frame]:
    """The frames of a printed stack, outermost first."""
    return [Frame(m["file"], int(m["line"]), (m["code"] or "").strip()) for m in _FRAME.finditer(text)]


def innermost_user_frame(frames: Iterable[Frame]) -> Frame | None:
    """The last frame that lies in the user's code."""
    return next((f for f in reversed(list(frames)) if is_user_file(f.file)), None)


def import_root_path(file: str) -> str:
    """A file's path from where Python found it: ``transformers/models/bert/modeling_bert.py``."""
    path = Path(file)
    for module in list(sys.modules.values()):
        if (
            getattr(module, "__file__", None) == file
            and getattr(module, "__name__", "__main__") != "__main__"
        ):
            parts = module.__name__.split(".")
            depth = len(parts) + (path.name == "__init__.py")
            return "/".join(path.parts[-depth:])
    for mark in ("site-packages", "dist-packages"):
        if mark in path.parts:
            return "/".join(path.parts[path.parts.index(mark) + 1 :])
    root = path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    return path.relative_to(root).as_posix()


def module_path(stack: Mapping[str, Any] | None) -> str:
    """The innermost module's path (``layer1.0.conv1``) from the ``nn_module_stack`` of an fx node."""
    if not stack:
        return ""
    return clean_path(str(next(reversed(stack.values()))[0]))


def clean_path(path: str) -> str:
    """Dynamo's and export's several ways to write a module's path, as ``named_modules`` writes it."""
    if "__closure__" in path or path.startswith("_empty_nn_module_stack"):
        return ""
    path = re.sub(r"@\d+", "", path)  # the n-th call of the same module
    path = re.sub(r"\.?_modules\[['\"](\w+)['\"]\]", r".\1", path)
    path = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path)
    return re.sub(r"^(L\.self|L__self__|self|L)(\.|$)", "", path).lstrip(".")


class Sources:
    """Finds a node's place in the user's code; remembers the files it has resolved."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}

    def path(self, file: str) -> str:
        if file not in self._paths:
            self._paths[file] = import_root_path(file)
        return self._paths[file]

    def frame(self, frame: Frame | None) -> Frame | None:
        """The frame, with its file as seen from the import root."""
        return None if frame is None else Frame(self.path(frame.file), frame.line, frame.code)

    def of(self, meta: Mapping[str, Any]) -> tuple[str, Frame | None]:
        """Module path and user frame of an fx node, from its ``meta``."""
        trace = meta.get("stack_trace") or ""
        frame = innermost_user_frame(parse_stack(trace))
        if frame is not None and not Path(frame.file).exists():
            frame = Frame(
                _path_by_class(frame.file, meta.get("nn_module_stack") or {}), frame.line, frame.code
            )
            return module_path(meta.get("nn_module_stack")), frame
        return module_path(meta.get("nn_module_stack")), self.frame(frame)


def _path_by_class(file: str, stack: Mapping[str, Any]) -> str:
    """A file of another machine, whose import root is known only from the names of the module classes."""
    for entry in reversed(stack.values()):
        name = entry[1] if isinstance(entry[1], str) else f"{entry[1].__module__}.{entry[1].__qualname__}"
        parts = name.split(".")
        for end in range(len(parts) - 1, 0, -1):
            candidate = "/".join(parts[:end]) + ".py"
            if file.endswith("/" + candidate):
                return candidate
    return import_root_path(file) if "-packages/" in file else Path(file).name


def format_stack(frame: Frame | None) -> str:
    """A frame as torch prints it: what `parse_stack` reads."""
    return (
        "" if frame is None else f'  File "{frame.file}", line {frame.line}, in forward\n    {frame.code}\n'
    )
