"""How sizes, errors and places in a model are written, in every message, report and picture alike."""

from __future__ import annotations

import re

from capture.errors import CaptureError

__all__ = ["dotted", "first_line", "human_size"]

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_LONGEST = 200  # characters of a foreign error's line


def human_size(count: float) -> str:
    """Bytes as people read them: ``512 B``, ``9.2 MB`` (of a million bytes)."""
    for unit, scale in _UNITS:
        if abs(count) >= 0.99995 * scale:  # or 999 950 B would be 1000.0 kB
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def dotted(path: str, name: object) -> str:
    """The path of what a module holds: ``layer1.0`` and ``weight`` make ``layer1.0.weight``."""
    return f"{path}.{name}" if path else str(name)


def first_line(error: BaseException) -> str:
    """What an error says in one line, its kind before it where it is not ours.

    Torch's advice to its own developers is left out, and what goes beyond 200 characters.
    """
    if isinstance(error, CaptureError):
        return error.what
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    explained = next((line for line in lines if line.startswith("Explanation:")), None)
    text = explained.removeprefix("Explanation: ") if explained else (lines[0] if lines else "")
    text = re.sub(r" For more information, run with TORCH_LOGS=\S+", "", text)
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
