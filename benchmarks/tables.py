"""What the benchmarks share: options, engines in processes of their own, tables that tell where they hold."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from capture.errors import CaptureError
from capture.ir.serialize import write_aside
from capture.wording import first_line
from runtime.machine import machine, versions
from runtime.processes import ProcessBenchmark, benchmark_processes
from viz.style import counted

__all__ = ["Table", "about", "parser", "ratio", "side_by_side", "timed", "timed_parser", "times"]

RESULTS = Path(__file__).parent / "results"


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser that the first line of a benchmark's docstring describes, with the folder of its table."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=(doc or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="folder of the table")
    return made


def timed_parser(
    name: str, doc: str | None, models: Sequence[str], *, repeats: int = 2
) -> argparse.ArgumentParser:
    """`parser` with the models and the options that `timed` reads."""
    made = parser(name, doc)
    made.add_argument("models", nargs="*", default=list(models), help="module:factory or file.py:factory")
    made.add_argument("--batch", type=int, default=1, metavar="N", help="of the example inputs")
    made.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of each process"
    )
    made.add_argument("--repeats", type=int, default=repeats, metavar="N", help="with fresh processes")
    made.add_argument(
        "--seconds", type=float, default=20.0, metavar="S", help="timed, a model and repetition"
    )
    return made


def timed(
    engines: Mapping[str, Mapping[str, Any]], model: str, options: argparse.Namespace, table: Table
) -> ProcessBenchmark | None:
    """Time engines on a model, each in a process of its own; the processes take turns in rounds of A B B A.

    Medians are over all calls; the interval of a ratio is bootstrapped over rounds. The table notes what
    could not run, and what a busy machine makes doubtful.

    Args:
        engines: name -> what the worker is to load beside model and batch; the first is the baseline.

    Returns:
        None where the baseline could not run.
    """
    specs = {name: {"model": model, "batch": options.batch, **spec} for name, spec in engines.items()}
    try:
        found = benchmark_processes(
            specs, threads=options.threads, repeats=options.repeats, seconds=options.seconds
        )
    except CaptureError as error:
        table.not_run(model, f"{first_line(error)}: {error.why}" if error.why else first_line(error))
        return None
    for name, why in found.failed.items():
        table.not_run(f"{model}, {name}", why)
    doubts: dict[str, list[str]] = {}
    for name in found.timing.ratios:
        doubts.setdefault(found.timing.doubt(name), []).append(name)
    for doubt, names in doubts.items():
        if doubt:
            table.note(f"{model}, {', '.join(names)}: {doubt}.")
    return found


def side_by_side(
    engines: Mapping[str, Mapping[str, Any]], options: argparse.Namespace, table: Table, models: Sequence[str]
) -> None:
    """`timed` for each model asked for: a row of times, and the last engine's ratio with its interval.

    Args:
        models: the usual ones; the table names those of them that were not asked for.
    """
    last = list(engines)[-1]
    for model in options.models:
        if found := timed(engines, model, options, table):
            cells = [times(found, name) for name in engines]
            table.row(f"{model}, batch {options.batch}", *cells, ratio(found, last))
    table.not_asked(models, options.models)
    table.write(options.output)


def about(options: argparse.Namespace, what: str) -> str:
    """What the times are: ``Milliseconds a call, median / minimum, fp32, 2 threads``."""
    return f"Milliseconds a {what}, median / minimum, fp32, {counted(options.threads, 'thread')}"


def times(found: ProcessBenchmark, name: str) -> str:
    """Median and minimum of an engine, in ms; it says so where the engine could not run, or was not right."""
    row = found.timing.rows.get(name)
    if row is None:
        return "not run"
    wrong = "" if found.engines[name].get("ok", True) else " **not right**"
    return f"{digits(row.median)} / {digits(row.min)}{wrong}"


def digits(milliseconds: float) -> str:
    return f"{milliseconds:.{1 if milliseconds >= 10 else 3}f}"


def ratio(found: ProcessBenchmark, name: str) -> str:
    """The baseline's median over an engine's, with its interval, if it can be told."""
    if name not in found.timing.ratios:
        return "not run"
    if found.timing.doubt(name):
        return "too noisy"
    low, high = found.timing.intervals[name]
    return f"{found.timing.ratios[name]:.3f} [{low:.3f}, {high:.3f}]"


class Table:
    """A Markdown table that is printed row by row, and written with the machine and the versions.

    Args:
        name: of the benchmark.
        about: what the numbers are.
        file: the name of the file without its ending; the benchmark's by default.
    """

    def __init__(self, name: str, title: str, about: str, columns: Sequence[str], file: str = "") -> None:
        self.name, self.title, self.about, self.file = name, title, about, file or name
        self._header = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        self._rows: list[str] = []
        self._notes: list[str] = []
        self._not_run: list[str] = []

    def row(self, *cells: object) -> None:
        if not self._rows:
            print("\n".join(self._header))
        self._rows.append(f"| {' | '.join(map(str, cells))} |")
        print(self._rows[-1], flush=True)

    def note(self, text: str) -> None:
        """A line below the table."""
        self._notes.append(text)
        print(text, flush=True)

    def not_run(self, what: str, why: str) -> None:
        """Say what is missing from the table."""
        self._not_run.append(f"- {what}: {' '.join(why.split())}")
        print(f"not run: {self._not_run[-1][2:]}", flush=True)

    def not_asked(self, everything: Sequence[str], asked: Sequence[str]) -> None:
        """Say which of the usual rows were left out."""
        for what in everything:
            if what not in asked:
                self.not_run(what, "not asked for")

    def text(self) -> str:
        """All of it as Markdown."""
        missing = ["Not run:", "", *self._not_run] if self._not_run else []
        parts = [
            [f"# {self.title}"],
            [self.about],
            [f"Measured by `python -m benchmarks.{self.name}`: {setting()}."],
            [*self._header, *self._rows],
            *([note] for note in self._notes),
            missing,
        ]
        return "\n\n".join("\n".join(part) for part in parts if part) + "\n"

    def write(self, folder: Path) -> None:
        write_aside(folder / f"{self.file}.md", self.text())


def setting() -> str:
    """The machine, and the versions of what is installed."""
    cpu = machine()
    installed = [f"{name} {version}" for name, version in versions().items() if version]
    return ", ".join([str(cpu["cpu"]), f"{cpu['cores']} cores", str(cpu["capability"]), *installed])
