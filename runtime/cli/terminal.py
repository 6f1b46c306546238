"""What the user sees: the account on stdout; progress and errors on stderr.

Lines are made of phrases and broken between them, so that they read well at 60 columns and at 120. Colour
goes to terminals only and honours NO_COLOR; progress shows on terminals only. Nothing but JSON goes to stdout
with `--json`, and nothing at all with `--quiet`.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from capture.errors import CaptureError

__all__ = ["LABEL_WIDTH", "Terminal"]

LABEL_WIDTH = 11
PIPE_WIDTH = 110
GAP = "    "


class Terminal:
    """One command's way to speak."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, verbose: int = 0) -> None:
        self.as_json, self.verbose = as_json, verbose
        self.phase = ""
        self.written: list[str] = []
        self._silent = as_json or quiet
        self._json_written = False
        self._out = _console(sys.stdout)
        self._err = _console(sys.stderr)
        self._progress: Progress | None = None
        self._task: Any = None

    # -- stdout --------------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        return max(40, self._out.width)

    def line(self, *phrases: str | Text, indent: int = 0, label: str = "") -> None:
        """Print phrases with gaps between, broken where they do not fit; `label` stands before the first."""
        for text in self.layout(phrases, indent=indent, label=label):
            self.print(text)

    def layout(self, phrases: Sequence[str | Text], *, indent: int = 0, label: str = "") -> list[Text]:
        """The lines that `line` prints."""
        start = " " * indent + (label.ljust(LABEL_WIDTH) if label else "")
        margin = len(start) if label else indent + 4
        lines, current = [], Text().append(start, style="bold")
        empty = True
        for phrase in phrases:
            text = phrase.copy() if isinstance(phrase, Text) else Text(phrase)
            if not text.plain:
                continue
            needed = len(current) + (0 if empty else len(GAP)) + text.cell_len
            if not empty and needed > self.width:
                lines.append(current)
                current, empty = Text(" " * margin), True
            if not empty:
                current.append(GAP)
            pieces = list(text.wrap(self._out, max(20, self.width - len(current)))) or [text]
            for piece in pieces[:-1]:
                piece.rstrip()
                lines.append(current.append_text(piece))
                current = Text(" " * margin)
            current.append_text(pieces[-1])
            empty = False
        return [*lines, current]

    def print(self, text: str | Text = "") -> None:
        """Print as it is: no wrapping, no markup."""
        if self._silent:
            return
        self._pause()
        shown = text.copy() if isinstance(text, Text) else Text(text)
        shown.rstrip()
        self._out.print(shown, soft_wrap=True)

    def table(self, made: Any) -> None:
        """Print a table of rich's."""
        if not self._silent:
            self._pause()
            self._out.print(made)

    def json(self, data: Any) -> None:
        """The one JSON document of a command with `--json`; an error after it goes to stderr alone."""
        self._pause()
        if self.as_json and not self._json_written:
            self._json_written = True
            sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")
            sys.stdout.flush()

    def files(self, folder: str, names: Sequence[str]) -> None:
        """The files that a command has written."""
        self.line(Text(folder, style="bold"), *names) if folder else self.line(*names)

    # -- stderr --------------------------------------------------------------------------------------------

    def say(self, phase: str, done: int | None = None, total: int | None = None) -> None:
        """Name the phase that begins (an interrupt reports it) and show it while it lasts."""
        self.phase = phase
        if not self._err.is_terminal or self._err.is_dumb_terminal:
            return
        still = "measur" in phase  # a thread that draws would disturb what is measured
        if self._progress is not None and self._progress.live.auto_refresh == still:
            self._pause()
        if self._progress is None:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TimeElapsedColumn(),
                console=self._err,
                transient=True,
                auto_refresh=not still,
                refresh_per_second=5,
            )
            self._task = self._progress.add_task(phase, total=None)
            self._progress.start()
        self._progress.update(self._task, description=phase, completed=done or 0, total=total)
        self._progress.refresh()

    def _pause(self) -> None:
        """Take the progress line away: what is printed next may go to the same terminal."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def close(self) -> None:
        self._pause()

    def warn(self, text: str) -> None:
        """A line on stderr that does not end the command."""
        self._pause()
        self._err.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)

    def error(self, error: CaptureError) -> None:
        """What, where, why, what to try; with `--json` the same as a document on stdout."""
        self._pause()
        if self.as_json:
            parts: Mapping[str, Any] = {k: getattr(error, k) for k in ("what", "where", "why", "hint")}
            self.json({"error": parts, "exit_code": error.exit_code})
        shown = Text.assemble(("error: ", "bold red"), error.what)
        if error.where:
            shown.append("\n" + self._indented(error.where, "  ", wrap=False))
        if error.why:
            shown.append("\n" + self._indented(error.why, "  "))
        if error.hint:
            hint = self._indented(error.hint, "     ")
            shown.append("\ntry: ", style="green").append(hint.removeprefix("     "))
        self._err.print(shown, soft_wrap=True)

    def _indented(self, text: str, indent: str, *, wrap: bool = True) -> str:
        """Every line indented; on a terminal also broken between words."""
        lines = text.strip("\n").splitlines()
        if wrap and self._err.is_terminal:
            width = max(40, self._err.width) - len(indent)
            lines = [
                part for line in lines for part in textwrap.wrap(line, width, break_on_hyphens=False) or [""]
            ]
        return "\n".join(indent + line for line in lines)

    def note(self, text: str) -> None:
        """A plain line on stderr."""
        self._pause()
        self._err.print(Text(text), soft_wrap=True)


def _console(file: Any) -> Console:
    """A console for a stream: as wide as the terminal or COLUMNS says, else wide enough for whole lines."""
    width = None if file.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=file, width=width, highlight=False, emoji=False, markup=False)
