"""Where a node comes from: the captured ops it stands for, their module paths and source lines."""

from __future__ import annotations

from dataclasses import dataclass


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
        places = ", ".join(f"{file}:{','.join(map(str, lines))}" for file, lines in files.items())
        modules = ", ".join(self.modules)
        if modules and places:
            return f"{modules}  {places}"
        return modules or (f"-  {places}" if places else "")

    @staticmethod
    def of(captured: CapturedOp) -> Origin:
        location = ((captured.file, captured.line),) if captured.file else ()
        return Origin((captured.id,), (captured.module,) if captured.module else (), location)

    @staticmethod
    def parse(text: str) -> Origin:
        """Read back what `str` printed; ids are not in it."""
        if not text.strip():
            return Origin()
        modules_text, _, places_text = text.strip().partition("  ")
        modules = () if modules_text == "-" else tuple(m.strip() for m in modules_text.split(", "))
        locations: list[tuple[str, int]] = []
        for place in filter(None, places_text.strip().split(", ")):
            file, _, lines = place.rpartition(":")
            locations += [(file, int(line)) for line in lines.split(",")]
        return Origin((), modules, tuple(locations))
