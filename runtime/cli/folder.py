"""The output folder: tried before the long work, written at its end, each file whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capture.errors import UsageError
from runtime.cli.terminal import Terminal

__all__ = ["OutputFolder", "chosen_file", "default_folder", "model_and_file", "writable_file"]


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
            raise cannot_write(f"cannot write to the folder {self.path}", self.path, error) from error

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


def model_and_file(model: str | None, file: str | None, suffix: str) -> tuple[str | None, str | None]:
    """MODEL and the FILE of an option such as --svg [FILE], which may have swallowed the MODEL."""
    if model is None and file and not file.endswith(suffix):
        return file, ""
    return model, file


def chosen_file(model: str | None, file: str | None, output: str | None, name: str) -> Path:
    """Where one file goes: what its own option says, else -o FILE or -o DIR, else the default folder.

    Raises:
        UsageError: no file can be written there.
    """
    if file or not output:
        return writable_file(file or (default_folder(model) / name if model else Path(name)))
    is_folder = output.endswith(("/", os.sep)) or Path(output).is_dir() or not Path(output).suffix
    return writable_file(Path(output) / name if is_folder else output)


def writable_file(path: str | os.PathLike[str]) -> Path:
    """A file's path, once its folder has been found to take files.

    Raises:
        UsageError: it does not.
    """
    target = Path(path)
    if target.is_dir():
        raise UsageError(
            f"cannot write {target}", why=f"{target} is a folder", hint=f"a file in it: {target / 'model'}"
        )
    folder = target.parent
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    place = missing[-1].parent if missing else folder
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".try."):
            pass
    except OSError as error:
        raise cannot_write(f"cannot write {target}", folder, error) from error
    return target


def cannot_write(what: str, folder: Path, error: OSError) -> UsageError:
    """Why a folder takes no files, in words, and what to do about it."""
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    if not nearest.is_dir():
        return UsageError(
            what,
            why=f"{nearest} is a file, not a folder",
            hint=f"another place with -o, or move {nearest} away",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(nearest).free
        why = f"the disk that holds {nearest} is full ({free / 1e6:.0f} MB free), or your quota of it is"
        return UsageError(what, why=why, hint="make room there, or another disk with -o")
    if error.errno == errno.EROFS:
        why = f"{nearest} is on a disk that can only be read"
    elif error.errno in (errno.EACCES, errno.EPERM):
        why = f"you may not write in {nearest} (its owner is {owner(nearest)})"
    else:
        why = f"{nearest} takes no new files: {error.strerror or error}"
    return UsageError(what, why=why, hint="a folder of your own: -o ~/capture-out")


def owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError, NotImplementedError):
        return "another user"
