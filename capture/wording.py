"""How sizes are written, in every message, report and picture alike."""

from __future__ import annotations

__all__ = ["human_size"]

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def human_size(count: float) -> str:
    """Bytes as people read them: ``512 B``, ``9.2 MB`` (of a million bytes)."""
    for unit, scale in _UNITS:
        if abs(count) >= 0.99995 * scale:  # or 999 950 B would be 1000.0 kB
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"
