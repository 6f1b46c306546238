"""The output folder: tried before the long work, written at its end, each file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capture.errors import UsageError
from runtime.cli.terminal import Terminal

__all__ = ["OutputFolder", "default_folder", "writable_file"]


def default_folder(model: str) -> Path:
    """``capture-out/resnet`` for models.resnet, ``capture-out/resnet-small`` for models.resnet:small."""
    place, _, factory = model.partition(":")
    name = Path(place).stem if place.endswith((".pt2", ".py")) else place.rpartition(".")[2]
    return Path("capture-out") / (f"{name}-{factory}" if factory not in ("", "build") else name)


class OutputFolder:
    """A folder that is known to take files.

    Raises:
        UsageError: it cannot be made or written to.
    """

    def __init__(self, path: str | os.PathLike[str], terminal: Terminal) -> None:
        self.path = Path(path)
        self._terminal = terminal
        self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.path, prefix=".try."):
                pass
        except OSError as error:
            self.withdraw()
            raise UsageError(
                f"cannot write to the folder {self.path}", why=error.strerror or str(error), hint="-o DIR"
            ) from error

    def write(self, name: str, writer: Callable[[Path], Any]) -> None:
        """Let `writer` make the file of that name; note it as written."""
        self._terminal.say(f"writing {name}")
        writer(self.path / name)
        self._terminal.written.append(name)

    def withdraw(self) -> None:
        """Take away what was made, as far as it is still empty."""
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:
                return


def writable_file(path: str | os.PathLike[str]) -> Path:
    """A file's path, once its folder has been found to take files.

    Raises:
        UsageError: it does not.
    """
    target = Path(path)
    if target.is_dir():
        raise UsageError(f"{target} is a folder", hint=f"the name of a file, such as {target / 'model'}")
    folder = target.parent
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    place = missing[-1].parent if missing else folder
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".try."):
            pass
    except OSError as error:
        raise UsageError(f"cannot write {target}", why=f"{place}: {error.strerror or error}") from error
    return target
