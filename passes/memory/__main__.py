"""Place buffers from a CSV file.

    python -m passes.memory FILE.csv --capacity 1048576 --seconds 20 -o OUT.csv

FILE has the columns id, lower, upper, size: the buffer is alive in the steps lower <= step < upper. OUT is
the same with a column offset. Prints the peak, the lower bound and the gap between them. With a capacity, a
quarter of the time goes into a plan at the lower bound, and any that fits the capacity is good enough;
without, the peak is lowered until the time is over. Exit code 0: the plan is written and fits. 1: it is
written and does not fit. 2: the file cannot be read.
"""

from __future__ import annotations

import csv
import io
import sys
from math import isnan
from pathlib import Path

import click

from capture.errors import CaptureError, UsageError
from capture.files import write_aside
from passes.memory.planner import place
from passes.memory.search import Effort
from passes.memory_check import lower_bound

COLUMNS = ("lower", "upper", "size")


@click.command(
    name="python -m passes.memory", help="Place the buffers of FILE (CSV: id,lower,upper,size) in one arena."
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--capacity", type=click.IntRange(min=0), help="Bytes that the plan may take; exit 1 if it takes more."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Time to search; the best plan found by then is kept.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Where to write the rows with their offset."
)
def main(file: Path, capacity: int | None, seconds: float, output: Path | None) -> None:
    """Read, place, write, report."""
    try:
        if isnan(seconds):
            raise UsageError("--seconds must be a number", why="nan is none")
        header, rows = read(file)
        lower, upper, size = ([int(row[k]) for row in rows] for k in COLUMNS)
        bound = lower_bound(list(zip(lower, upper, size, strict=True)))
        packing = place(lower, upper, size, bound=bound, effort=Effort(seconds=seconds), capacity=capacity)
        if output is not None:
            write_aside(output, as_csv(header, rows, packing.offsets))
    except CaptureError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    gap = (packing.peak / bound - 1) * 100 if bound else 0.0
    print(f"{len(rows)} buffers: peak {packing.peak:,}  lower bound {bound:,}  gap {gap:.2f}%")
    if packing.least > bound:
        print(f"no plan takes less than {packing.least:,}")
    if capacity is not None:
        fits = packing.peak <= capacity
        print(f"{'fits' if fits else 'does not fit'} the capacity of {capacity:,}")
        sys.exit(0 if fits else 1)


def read(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The header and the rows, checked.

    Raises:
        UsageError: the file is missing or holds no such table; the message names the line.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:  # Excel's "CSV UTF-8" begins with a mark
            table = csv.DictReader(opened, skipinitialspace=True)
            header = list(table.fieldnames or ())
            rows = [(table.line_num, row) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {file}", why=str(error)) from error
    missing = {"id", *COLUMNS} - set(header)
    if missing:
        raise UsageError(
            f"{file} has no column {', '.join(sorted(missing))}", hint="a first line id,lower,upper,size"
        )
    if len(set(header)) < len(header):
        raise UsageError(f"{file} has two columns of one name", why=",".join(header))
    seen: set[str] = set()
    for number, row in rows:
        if wrong := _wrong(row, seen):
            raise UsageError(f"{file}, line {number}: {wrong}")
        seen.add(row["id"])
    return header, [row for _, row in rows]


def _wrong(row: dict[str, str], seen: set[str]) -> str | None:
    """Why the row is no buffer, or one too many."""
    if None in row:
        return "more fields than columns"
    if row["id"] in seen:
        return f"a second buffer with the id {row['id']!r}"
    try:
        lower, upper, size = (int(row[k]) for k in COLUMNS)
    except (TypeError, ValueError):
        return "lower, upper and size must be integers"
    if lower >= upper or size < 0:
        return f"needs lower < upper and size >= 0, has {lower}, {upper} and {size}"
    return None


def as_csv(header: list[str], rows: list[dict[str, str]], offsets: tuple[int, ...]) -> str:
    """The table with a column `offset`, at the end where the input has none."""
    columns = header if "offset" in header else [*header, "offset"]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    table.writeheader()
    for row, offset in zip(rows, offsets, strict=True):
        table.writerow({**row, "offset": offset})
    return text.getvalue()


if __name__ == "__main__":
    main()
