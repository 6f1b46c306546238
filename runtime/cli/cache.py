"""`cache`: what the cache on disk holds, or empty it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from capture.errors import CaptureError
from capture.wording import human_size
from runtime.cache import GraphStore, cache_root, is_on
from runtime.cli.terminal import Terminal


def command(terminal: Terminal, options: SimpleNamespace) -> int:
    """Tell what is there; after `clear`, what was."""
    kernels = cache_root() / "kernels"
    facts = examine(kernels)
    if options.action == "clear":
        GraphStore().clear()
        _remove(kernels)
    facts["cleared"] = options.action == "clear"
    terminal.json(facts)
    done = "removed" if facts["cleared"] else "kept"
    terminal.line(facts["folder"] if facts["on"] else f"{facts['folder']} (off: CAPTURE_CACHE=0)")
    for kind in ("graphs", "kernels"):
        found = facts[kind]
        limit = f"of {human_size(found['limit'])}" if found["limit"] and not facts["cleared"] else ""
        size = " ".join(filter(None, [human_size(found["bytes"]), limit]))
        terminal.line(f"{found['count']} {done}", size, label=kind)
    return 0


def examine(kernels: Path) -> dict[str, Any]:
    """How much of what the cache holds."""
    store = GraphStore()
    entries = store.entries()
    files = [file for file in kernels.rglob("*") if file.is_file()]
    return {
        "folder": str(cache_root()),
        "on": is_on(),
        "graphs": {
            "count": len(entries),
            "bytes": sum(entry.bytes for entry in entries),
            "limit": store.limit,
        },
        "kernels": {"count": len(files), "bytes": sum(file.stat().st_size for file in files), "limit": None},
    }


def _remove(folder: Path) -> None:
    """Take out a folder of ours.

    Raises:
        CaptureError: that is not allowed.
    """
    try:
        if folder.is_dir():
            shutil.rmtree(folder)
    except OSError as error:
        raise CaptureError(f"cannot remove {folder}", why=error.strerror or str(error)) from error
