"""Write files so that no reader ever sees half of one. Imports nothing heavy."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capture.errors import CaptureError

__all__ = ["write_aside", "written_aside"]


@contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path of a new file beside `path`, which takes its place at the end: no reader ever sees half of it.

    Raises:
        CaptureError: the place cannot be written to.
    """
    target = Path(path)
    aside = target.parent / f".{uuid.uuid4().hex}.part"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # honours the umask
        try:
            yield aside
            os.replace(aside, target)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CaptureError(
            f"cannot write {target}", why=error.strerror or str(error), hint="another place: -o DIR"
        ) from error


def write_aside(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file under another name beside its place, then rename: no reader ever sees half of it.

    Raises:
        CaptureError: the place cannot be written to.
    """
    with written_aside(path) as aside:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)
