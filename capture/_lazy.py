"""What is imported only when it is asked for: names of a package of ours, and packages that few need."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from capture.errors import CaptureError

__all__ = ["lazy_names", "needed"]


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package whose names are at home in modules that take long.

    With them `python -m capture --help` answers at once, and can be stopped: torch is imported when it is
    needed. A name may be that of its file (`runtime.compile`): the package's attribute is the function.
    """
    module = sys.modules[package]
    own = vars(module)

    class Package(ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            if not (name in homes and isinstance(value, ModuleType)):  # an import sets the file itself
                super().__setattr__(name, value)

    module.__class__ = Package

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        own[name] = found = getattr(import_module(homes[name]), name)
        return found

    return get, lambda: sorted({*own, *homes})


def needed(name: str, purpose: str, install: str = "") -> Any:
    """Import a package where it is used.

    Args:
        purpose: what needs it, at the start of a sentence: "writing a report".
        install: what to tell pip; the name by default.

    Raises:
        CaptureError: it cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise CaptureError(
            f"{purpose} needs {name}, which cannot be imported",
            why=str(error),
            hint=f"pip install {install or name}",
        ) from error
