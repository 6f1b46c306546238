"""The cache on disk: optimised graphs by the hash of all that they were made from.

    <key>.json                    what the graph file must be, and what it does not hold
    <key>.<digest>.safetensors    the graph, with the constants that passes have made

A file is written aside and renamed; one that is not whole, or not ours, is passed over and written anew.
Nothing that is read is executed: a graph is text and tensors, from which code is generated again. What is
over the limit goes, what was not used for longest first.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capture.errors import CaptureError, UsageError
from capture.files import write_aside
from capture.ir import Graph
from capture.logs import logger

__all__ = ["GraphStore", "cache_root", "is_on", "size_limit"]

FORMAT = "torch-capture cached graph 1"
FOLDER = "graphs"
LIMIT = 4_000_000_000
SWITCH, PLACE, SIZE = "CAPTURE_CACHE", "CAPTURE_CACHE_DIR", "CAPTURE_CACHE_SIZE"
log = logger("runtime")


def is_on() -> bool:
    """Whether the cache is used; ``CAPTURE_CACHE=0`` switches it off."""
    return os.environ.get(SWITCH, "1") != "0"


def cache_root() -> Path:
    """The folder of all caches: ``CAPTURE_CACHE_DIR``, else ``~/.cache/torch-capture``."""
    return Path(os.environ.get(PLACE) or Path.home() / ".cache" / "torch-capture")


def size_limit() -> int:
    """Most bytes of graphs that are kept: ``CAPTURE_CACHE_SIZE``, else four thousand million.

    Raises:
        UsageError: the variable is no number of bytes.
    """
    given = os.environ.get(SIZE) or str(LIMIT)
    if not given.isdecimal():
        raise UsageError(f"{SIZE} is {given!r}", hint="a number of bytes, as in 4000000000")
    return int(given)


@dataclass(frozen=True)
class Entry:
    """The files of one key, their bytes, and when the entry was used last (seconds since the epoch)."""

    files: tuple[Path, ...]
    bytes: int
    used: float


class GraphStore:
    """The graphs in a folder. Safe for threads and processes that share it.

    Args:
        folder, limit: by default those that the environment names.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = cache_root() / FOLDER if folder is None else folder
        self.limit = size_limit() if limit is None else limit

    def load(self, key: str) -> tuple[Graph, dict[str, Any]] | None:
        """The graph of a key, and what was kept beside it; None where there is none that can be used."""
        note = self.folder / f"{key}.json"
        try:
            kept = _checked(note.read_bytes())
            digest = str(kept["digest"])
            file = self._graph_file(key, digest)
            if _digest_of(file) != digest:
                raise ValueError("its graph is not the one that was written")
            graph = Graph.load(file)
            self._touch(note)
            return graph, dict(kept["beside"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, CaptureError) as error:
            log.info("the cache entry %s is passed over: %s", note, error)
            return None

    def save(self, key: str, graph: Graph, beside: dict[str, Any]) -> None:
        """Keep a graph. Where the folder cannot be written to, that is logged, and all."""
        aside = self.folder / f".{uuid.uuid4().hex}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            graph.save(aside)
            digest = _digest_of(aside)
            os.replace(aside, self._graph_file(key, digest))
            write_aside(self.folder / f"{key}.json", _sealed({"digest": digest, "beside": beside}))
        except (OSError, TypeError, ValueError, CaptureError) as error:
            log.info("nothing is written to the cache: %s", error)
        else:
            self._evict()
        finally:
            _remove([aside])

    def entries(self) -> list[Entry]:
        """What is kept, the least recently used first."""
        by_key: dict[str, list[tuple[Path, os.stat_result]]] = {}
        for file in self._files():
            try:
                row = (file, file.stat())
            except FileNotFoundError:  # another process has renamed or removed it
                continue
            by_key.setdefault(file.name.partition(".")[0] or file.name, []).append(row)
        found = []
        for rows in by_key.values():
            used = max(stat.st_mtime for _, stat in rows)
            found.append(Entry(tuple(f for f, _ in rows), sum(stat.st_size for _, stat in rows), used))
        return sorted(found, key=lambda entry: entry.used)

    def clear(self) -> int:
        """Remove everything; returns how many bytes that were."""
        entries = self.entries()
        _remove([file for entry in entries for file in entry.files])
        return sum(entry.bytes for entry in entries)

    def _evict(self) -> None:
        entries = self.entries()
        excess = sum(entry.bytes for entry in entries) - self.limit
        for entry in entries:
            if excess <= 0:
                return
            _remove(entry.files)
            excess -= entry.bytes

    def _files(self) -> Iterator[Path]:
        """Files that this class has written, also those that a process left when it was killed."""
        if self.folder.is_dir():
            yield from (f for f in self.folder.iterdir() if f.suffix in (".json", ".safetensors", ".part"))

    def _graph_file(self, key: str, digest: str) -> Path:
        return self.folder / f"{key}.{digest[:16]}.safetensors"

    def _touch(self, note: Path) -> None:
        try:
            os.utime(note)
        except OSError:  # a folder that is only read
            log.debug("cannot note that %s was used", note)


def _sealed(content: dict[str, Any]) -> str:
    """JSON that tells whether it is whole."""
    text = json.dumps(content, sort_keys=True)
    return json.dumps(
        {"format": FORMAT, "sha256": hashlib.sha256(text.encode()).hexdigest(), "content": text}
    )


def _checked(data: bytes) -> dict[str, Any]:
    """What `_sealed` was given.

    Raises:
        ValueError, LookupError, TypeError: it is not whole, or not ours.
    """
    outer = json.loads(data)
    if not isinstance(outer, dict) or outer.get("format") != FORMAT:
        raise ValueError("its format is not ours")
    text = str(outer["content"])
    if hashlib.sha256(text.encode()).hexdigest() != outer["sha256"]:
        raise ValueError("it is damaged")
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("its format is not ours")
    return content


def _digest_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove(files: Any) -> None:
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            log.info("cannot remove %s: %s", file, error)
