"""Where a node comes from: the captured ops it stands for, their module paths and source lines."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from capture.ir.scan import Scanner


@dataclass(frozen=True)
class CapturedOp:
    """One op as capture saw it: the row of the ledger that every rewrite must account for."""

    id: int
    op: str
    module: str = ""
    file: str = ""
    line: int = 0
    code: str = ""

    @property
    def location(self) -> str:
        return f"{self.file}:{self.line}" if self.file else ""


@dataclass(frozen=True)
class Origin:
    """Ids of the captured ops that a node stands for, with their module paths and source lines.

    Paths are relative to the import root, so that the text of a graph is the same on every machine.
    """

    ids: tuple[int, ...] = ()
    modules: tuple[str, ...] = ()
    locations: tuple[tuple[str, int], ...] = ()

    def __or__(self, other: Origin) -> Origin:
        """The union, in order, without repeats."""
        return Origin(
            tuple(dict.fromkeys(self.ids + other.ids)),
            tuple(dict.fromkeys(self.modules + other.modules)),
            tuple(dict.fromkeys(self.locations + other.locations)),
        )

    def __str__(self) -> str:
        """``conv1, bn1  models/resnet.py:98,99``: what the text prints behind a node."""
        files: dict[str, list[int]] = {}
        for file, line in self.locations:
            files.setdefault(file, []).append(line)
        places = ", ".join(f"{_quoted(file)}:{','.join(map(str, lines))}" for file, lines in files.items())
        modules = ", ".join(map(_quoted, self.modules))
        if modules and places:
            return f"{modules}  {places}"
        return modules or (f"-  {places}" if places else "")

    @staticmethod
    def of(captured: CapturedOp) -> Origin:
        location = ((captured.file, captured.line),) if captured.file else ()
        return Origin((captured.id,), (captured.module,) if captured.module else (), location)

    @staticmethod
    def parse(text: str) -> Origin:
        """Read back what `str` printed; ids are not in it.

        Raises:
            ValueError: the text is not an origin's.
        """
        scanner = Scanner(text)
        if scanner.at_end:
            return Origin()
        modules: list[str] = []
        if scanner.match(_NO_MODULES) is None:
            modules.append(_word(scanner, _MODULE))
            while scanner.take(","):
                modules.append(_word(scanner, _MODULE))
        locations: list[tuple[str, int]] = []
        more = not scanner.at_end
        while more:
            file = _word(scanner, _FILE)
            lines = scanner.need(_LINES, "`:` and line numbers")
            locations += [(file, int(line)) for line in lines[1:].split(",")]
            more = scanner.take(",")
        scanner.finish()
        return Origin((), tuple(modules), tuple(locations))


# Module paths and file names as they are, or in quotes if they hold a blank, a comma or a quotation mark.
_MODULE = re.compile(r'[^\s",\ud800-\udfff]+')
_FILE = re.compile(r'[^\s",\ud800-\udfff]+?(?=:[0-9]+(,|\s|$))')
_LINES = re.compile(r":[0-9]+(,[0-9]+)*")
_NO_MODULES = re.compile(r"-(?=\s)")


def _quoted(name: str) -> str:
    plain = _MODULE.fullmatch(name) is not None and name != "-"
    return name if plain else json.dumps(name)


def _word(scanner: Scanner, plain: re.Pattern[str]) -> str:
    return scanner.string() if scanner.sees('"') else scanner.need(plain, "a module path or file name")
