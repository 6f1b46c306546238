"""Check a memory plan by brute force; shares no code with the planner.

    python -m passes.memory_check PLAN.csv --capacity 1048576

A plan is a CSV file with the columns id, lower, upper, size, offset: the buffer is alive in the steps
lower <= step < upper and takes the bytes offset <= byte < offset + size. It is valid if no two buffers that
are alive at one step share a byte and no buffer reaches past the capacity. Exit code 0: valid. 1: not. 2:
cannot be read.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """A buffer and its place. `offset` None: not placed."""

    id: str
    lower: int
    upper: int
    size: int
    offset: int | None


def problems(rows: Sequence[Row], capacity: int | None = None) -> Iterator[str]:
    """What is wrong with a plan, one line each. Looks at every pair of buffers that are alive together."""
    by_start = sorted(rows, key=lambda r: r.lower)
    for i, a in enumerate(by_start):
        if a.offset is None:
            yield f"{a.id} has no offset"
            continue
        if a.offset < 0:
            yield f"{a.id} has the negative offset {a.offset}"
        if capacity is not None and a.offset + a.size > capacity:
            yield f"{a.id} ends at {a.offset + a.size}, past the capacity of {capacity}"
        for b in by_start[i + 1 :]:
            if b.lower >= a.upper:
                break
            if b.offset is not None and _overlap(a, b):
                yield f"{a.id} {_span(a)} and {b.id} {_span(b)} overlap, both alive at step {b.lower}"


def _overlap(a: Row, b: Row) -> bool:
    """Whether two placed buffers, the later starting in the earlier's lifetime, share a step and a byte."""
    assert a.offset is not None
    assert b.offset is not None
    if not (a.lower < b.upper and b.lower < a.upper):
        return False
    return a.offset < b.offset + b.size and b.offset < a.offset + a.size and a.size > 0 and b.size > 0


def _span(row: Row) -> str:
    assert row.offset is not None
    return f"[{row.offset}, {row.offset + row.size})"


def lower_bound(buffers: Sequence[tuple[int, int, int]]) -> int:
    """The most bytes alive at one step, of buffers (lower, upper, size): no plan can take less."""
    change: dict[int, int] = defaultdict(int)
    for lower, upper, size in buffers:
        change[lower] += size
        change[upper] -= size
    alive = most = 0
    for step in sorted(change):
        alive += change[step]
        most = max(most, alive)
    return most


def peak(rows: Sequence[Row]) -> int:
    """Bytes that the plan takes."""
    return max((r.offset + r.size for r in rows if r.offset is not None), default=0)


def read(path: Path) -> list[Row]:
    """Rows of a plan's file.

    Raises:
        OSError: it cannot be opened.
        csv.Error, ValueError: it is not such a file; the message names the line.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file, skipinitialspace=True)
        missing = {"id", "lower", "upper", "size", "offset"} - set(table.fieldnames or ())
        if missing:
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        rows: dict[str, Row] = {}
        for line in table:
            try:
                lower, upper, size, offset = (int(line[k]) for k in ("lower", "upper", "size", "offset"))
            except (TypeError, ValueError):
                raise ValueError(f"line {table.line_num}: not a buffer: {line}") from None
            if None in line or lower >= upper or size < 0:
                raise ValueError(f"line {table.line_num}: not a buffer: {line}")
            if line["id"] in rows:
                raise ValueError(f"line {table.line_num}: a second buffer with the id {line['id']}")
            rows[line["id"]] = Row(line["id"], lower, upper, size, offset)
    return list(rows.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m passes.memory_check", description="Check a memory plan.")
    parser.add_argument("plan", type=Path, metavar="PLAN.csv", help="columns id, lower, upper, size, offset")
    parser.add_argument("--capacity", type=int, help="bytes that the plan may take (default: any number)")
    options = parser.parse_args(arguments)
    try:
        rows = read(options.plan)
    except (OSError, ValueError, csv.Error) as error:
        print(f"error: cannot read {options.plan}: {error}", file=sys.stderr)
        return 2
    wrong = list(problems(rows, options.capacity))
    for line in wrong[:10]:
        print(line)
    if len(wrong) > 10:
        print(f"... and {len(wrong) - 10} more")
    bound = lower_bound([(r.lower, r.upper, r.size) for r in rows])
    verdict = "invalid" if wrong else "valid"
    print(f"{verdict}: {len(rows)} buffers, peak {peak(rows)}, lower bound {bound}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
