"""A cursor over one piece of text: what the readers of sizes and of graphs stand on."""

from __future__ import annotations

import json
import re

STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
INTEGER = re.compile(r"[0-9]+")
_SPACE = re.compile(r"[ \t]*")
_SHOWN = 24  # characters of the text that an error shows


class Scanner:
    """Reads text from left to right. Every failure is a ValueError that says what was expected, and where."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def skip(self) -> None:
        """Pass over blanks."""
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Take what matches here, if anything does."""
        self.skip()
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return found

    def take(self, literal: str) -> bool:
        """Take this literal, if it stands here."""
        self.skip()
        found = self.text.startswith(literal, self.at)
        self.at += len(literal) * found
        return found

    def sees(self, literal: str) -> bool:
        """Whether this literal stands here."""
        self.skip()
        return self.text.startswith(literal, self.at)

    def expect(self, literal: str) -> None:
        if not self.take(literal):
            raise self.error(f"`{literal}`")

    def need(self, pattern: re.Pattern[str], what: str) -> str:
        found = self.match(pattern)
        if found is None:
            raise self.error(what)
        return found[0]

    def string(self) -> str:
        """A string in double quotes, escaped as in JSON."""
        text: str = json.loads(self.need(STRING, "a string"))
        return text

    @property
    def at_end(self) -> bool:
        self.skip()
        return self.at >= len(self.text)

    def finish(self) -> None:
        if not self.at_end:
            raise self.error("nothing more")

    def error(self, expected: str) -> ValueError:
        rest = self.text[self.at : self.at + _SHOWN]
        more = "..." if len(self.text) > self.at + _SHOWN else ""
        return ValueError(
            f"column {self.at + 1}: expected {expected}, found {f'`{rest}{more}`' if rest else 'the end'}"
        )


def split(text: str, separator: str = ",") -> list[str]:
    """Pieces between separators that lie outside brackets and strings, without the blanks around them."""
    pieces, depth, start, at = [], 0, 0, 0
    while at < len(text):
        if quoted := STRING.match(text, at):
            at = quoted.end()
            continue
        if depth == 0 and text.startswith(separator, at):
            pieces.append(text[start:at].strip())
            at = start = at + len(separator)
            continue
        depth += (text[at] in "([{") - (text[at] in ")]}")
        at += 1
    last = text[start:].strip()
    return [*pieces, last] if last or pieces else []


__all__ = ["IDENTIFIER", "INTEGER", "STRING", "Scanner", "split"]
