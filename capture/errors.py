"""Errors that a user can act on: what went wrong, where in their code, why, and what to try.

Imports nothing heavy, so that the command line can report an error before torch is loaded.
"""

from __future__ import annotations

import textwrap

__all__ = [
    "CaptureError",
    "GuardError",
    "ModelError",
    "UnsupportedOpError",
    "UsageError",
    "VerificationError",
]


class CaptureError(Exception):
    """Something that a user can put right.

    Args:
        what: one line, lower case, without a full stop: "control flow depends on the data".
        where: the user's own code as "file:line   code", or None.
        why: the cause; may have several lines.
        hint: what to try instead; may have several lines.

    `str(error)` is the plain text of the four parts; the command line puts "error: " before it and leaves
    with `exit_code`.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: str | None = None, why: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.what]
        lines += [textwrap.indent(part.strip("\n"), "  ") for part in (self.where, self.why) if part]
        if self.hint:
            lines.append("try: " + self.hint.strip("\n").replace("\n", "\n     "))
        return "\n".join(lines)


class UsageError(CaptureError):
    """The command or call itself is wrong: an unknown module, a malformed option, a missing file."""

    exit_code = 2


class UnsupportedOpError(CaptureError):
    """An operator has no lowering, or no meaning, where one is needed."""


class VerificationError(CaptureError):
    """A graph breaks a rule of the IR, or a result differs from its reference."""


class ModelError(CaptureError):
    """The model's own failure: its module, its factory or its forward raised."""


class GuardError(CaptureError):
    """A compiled callable was given what it was not compiled for: dtype, shape, device, number of inputs."""
