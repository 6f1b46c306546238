"""What the toolkit logs, and how much: CAPTURE_LOGS="+rewrite,-memory", in the grammar of TORCH_LOGS.

A comma-separated list of names, each an area (frontends, passes, runtime, backend), a pass by its name, or
`all`: `name` for what it does, `+name` also for why it does not, `-name` for errors only. Of a pass and its
area the nearer word counts. Python's own logging configuration works as well; the loggers are `capture.AREA`
and `capture.passes.PASS`.
"""

from __future__ import annotations

import logging
import os
import re
import warnings

from capture.errors import UsageError

__all__ = ["AREAS", "VARIABLE", "configure"]

VARIABLE = "CAPTURE_LOGS"
AREAS = ("frontends", "passes", "runtime", "backend")
_LEVELS = {"": logging.INFO, "+": logging.DEBUG, "-": logging.ERROR}


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Ours, so that a second call replaces it."""


def configure(setting: str | None = None) -> None:
    """Log to standard error as `setting` says; by default what the environment variable says.

    Raises:
        UsageError: the setting is not a list of names; a variable that is none is told as a warning.
    """
    if setting is None:
        try:
            return configure(os.environ.get(VARIABLE, ""))
        except UsageError as error:
            return warnings.warn(str(error), stacklevel=2)
    for word in filter(None, map(str.strip, setting.split(","))):
        found = re.fullmatch(r"([+-]?)([a-z][a-z0-9-]*)", word)
        if found is None:
            raise UsageError(
                f"{VARIABLE}: {word!r} is not a name",
                hint=f'{VARIABLE}="+rewrite,-memory": {", ".join(AREAS)}, a pass or all, after + or -',
            )
        logger(found[2]).setLevel(_LEVELS[found[1]])
        _attach(logging.getLogger("capture"))


def logger(name: str) -> logging.Logger:
    """The logger of an area, of a pass, or of all."""
    if name == "all":
        return logging.getLogger("capture")
    return logging.getLogger(f"capture.{name}" if name in AREAS else f"capture.passes.{name}")


def _attach(root: logging.Logger) -> None:
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    handler = _Handler()
    handler.setFormatter(logging.Formatter("[%(name)s] %(message)s"))
    root.addHandler(handler)
