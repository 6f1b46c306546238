"""Names, literals and comments as Python text: nothing that a graph is called may become code."""

from __future__ import annotations

import json
import keyword
import math
import re
from typing import Any

import torch


def identifier(name: str) -> str:
    """A valid Python name that resembles `name`."""
    cleaned = re.sub(r"[^A-Za-z0-9_]", "_", name)
    if cleaned[:1].isdigit() or not cleaned:
        cleaned = f"_{cleaned}"
    if cleaned.startswith("__"):  # Python's own: __debug__ cannot be assigned
        cleaned = f"_{cleaned.lstrip('_')}"
    return f"{cleaned}_" if keyword.iskeyword(cleaned) else cleaned


def quoted(text: str) -> str:
    """A string in double quotes."""
    return json.dumps(text) if text.isascii() else repr(text)


def literal(value: Any) -> str:
    """An operand that is neither a value nor a size nor a list."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, complex) and not (math.isfinite(value.real) and math.isfinite(value.imag)):
        return f"complex({literal(value.real)}, {literal(value.imag)})"
    if isinstance(value, complex):  # (-0+1j) would be a sum, which loses the sign of the zero
        return f"complex({value.real!r}, {value.imag!r})"
    if isinstance(value, torch.device):
        return quoted(str(value))
    return quoted(value) if isinstance(value, str) else repr(value)


def comment(text: str) -> str:
    """Text that ends with its line, whatever is in it."""
    return "".join(c if c.isprintable() else " " for c in text)


def docstring(text: str) -> str:
    """Text for between triple quotes."""
    text = comment(text).replace("\\", "\\\\")
    return text.replace('"', '\\"') if '"""' in text or text.endswith('"') else text
