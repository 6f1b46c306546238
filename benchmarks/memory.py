"""The exact memory planner: hard instances from a folder, and synthetic ones whose optimum is known.

    python -m benchmarks.memory FOLDER                 FOLDER holds NAME.CAPACITY.csv: id,lower,upper,size
    python -m benchmarks.memory FOLDER --seconds 20    written to benchmarks/results/memory.md

MiniMalloc's instances have this form (github.com/google/minimalloc, benchmarks/challenging). A synthetic one
is a capacity x time rectangle cut in two again and again, at random. Seconds are CPU seconds of this process.
"""

from __future__ import annotations

import csv
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.tables import Table, parser
from passes.memory.greedy import pack
from passes.memory.planner import place
from passes.memory.search import Effort
from passes.memory_check import Row, lower_bound, problems

CAPACITY = 1 << 20
SYNTHETIC = 12
COLUMNS = (
    "instance", "buffers", "lower bound / capacity", "greedy / bound", "found / bound", "fits", "CPU s",
    "nodes",
)  # fmt: skip

Spans = list[tuple[int, int, int]]  # lower, upper, size


class Instance(NamedTuple):
    name: str
    spans: Spans
    capacity: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan each instance, print each row as it is done, write the table."""
    made = parser("memory", __doc__)
    made.add_argument("folder", nargs="?", type=Path, help="of files NAME.CAPACITY.csv")
    made.add_argument("--seconds", type=float, default=20.0, metavar="S", help="to search, per instance")
    made.add_argument("--synthetic", type=int, default=SYNTHETIC, metavar="N", help="synthetic instances")
    options = made.parse_args(arguments)
    about = f"At most {options.seconds:g} s an instance, one core."
    table = Table("memory", "The exact memory planner", about, COLUMNS)
    for instance in [*read(options.folder), *synthetic(options.synthetic)]:
        table.row(*row(instance, options.seconds))
    if options.folder is None:
        table.not_run("instances of a folder", "none was given")
    table.write(options.output)


def read(folder: Path | None) -> Iterator[Instance]:
    """Instances from the folder's files; the capacity is in the name."""
    for path in sorted(folder.glob("*.csv")) if folder else ():
        name, capacity = path.stem.split(".")
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            spans = [(int(r["lower"]), int(r["upper"]), int(r["size"])) for r in table]
        yield Instance(name, spans, int(capacity))


def synthetic(count: int) -> Iterator[Instance]:
    """Cut rectangles: the capacity is the optimum, as all of the rectangle is taken."""
    for seed in range(count):
        rng = random.Random(seed)
        pieces, steps, unit = rng.randint(120, 460), rng.choice((80, 200, 1000)), rng.choice((64, 1024, 8192))
        spans = cut(rng, steps, CAPACITY, pieces, rng.uniform(0.3, 0.7), unit)
        rng.shuffle(spans)
        yield Instance(f"cut {seed}", spans, CAPACITY)


def cut(rng: random.Random, steps: int, capacity: int, pieces: int, across: float, unit: int) -> Spans:
    """A rectangle in about so many pieces.

    Args:
        across: how often a cut is across time.
        unit: sizes are multiples of it.
    """
    done: Spans = []
    todo = [(0, steps, capacity, pieces)]
    while todo:
        lower, upper, size, count = todo.pop()
        in_time, in_size = upper - lower >= 2, size >= 2 * unit
        if count == 1 or not (in_time or in_size):
            done.append((lower, upper, size))
            continue
        part = rng.randint(1, count - 1)
        if in_time and (rng.random() < across or not in_size):
            at = rng.randint(lower + 1, upper - 1)
            todo += [(lower, at, size, part), (at, upper, size, count - part)]
        else:
            below = rng.randint(1, size // unit - 1) * unit
            todo += [(lower, upper, below, part), (lower, upper, size - below, count - part)]
    return done


def row(instance: Instance, seconds: float) -> tuple[str, ...]:
    """The cells of a row.

    Raises:
        AssertionError: the plan is not valid.
    """
    spans, bound = instance.spans, lower_bound(instance.spans)
    columns = [list(column) for column in zip(*spans, strict=True)]
    greedy = pack(*columns, bound=bound)
    effort = Effort(seconds=seconds)
    start = time.process_time()
    found = place(*columns, bound=bound, effort=effort, capacity=instance.capacity)
    taken = time.process_time() - start
    placed = [
        Row(str(i), *span, offset) for i, (span, offset) in enumerate(zip(spans, found.offsets, strict=True))
    ]
    assert not list(problems(placed, found.peak)), f"{instance.name}: the plan is not valid"
    fits = "yes" if found.peak <= instance.capacity else "**no**"
    return (
        instance.name,
        str(len(spans)),
        f"{bound / instance.capacity:.4f}",
        f"{greedy.peak / bound:.4f}",
        f"{found.peak / bound:.4f}",
        fits,
        f"{taken:.2f}",
        str(found.nodes),
    )


if __name__ == "__main__":
    main()
