"""The torch.compile backend against `runtime.compile` and Inductor: latency, and seconds to the first result.

    python -m benchmarks.backend                 written to benchmarks/results/backend.md
    python -m benchmarks.backend models.resnet   one model

Each engine has a process of its own; see `benchmarks.tables.timed`. The seconds are from the loaded model to
the result of the first call, with every cache (ours, Inductor's, Triton's) in a new, empty folder; the
engines take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from benchmarks.tables import Table, about, ratio, timed, timed_parser, times
from runtime.processes import started

MODELS = ("models.resnet", "models.bert")
ENGINES = {
    "runtime.compile": {"engine": "aten"},
    "backend capture": {"engine": "dynamo"},
    "backend inductor": {"engine": "inductor"},
}
COLD = ("backend capture", "backend inductor")
CACHES = ("CAPTURE_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print each row as it is done, write the table."""
    options = timed_parser("backend", __doc__, MODELS).parse_args(arguments)
    told = (
        f"{about(options, 'call')}, no gradients. The ratio is that of runtime.compile's median to the"
        " backend's. Seconds to the first result: medians, caches empty."
    )
    columns = ("model", *ENGINES, "ratio", *(f"first result, {name}" for name in COLD))
    table = Table("backend", "The torch.compile backend", told, columns)
    for model in options.models:
        if found := timed(ENGINES, model, options, table):
            seconds = first_results(model, options, table)
            cells = [times(found, name) for name in ENGINES]
            table.row(f"{model}, batch {options.batch}", *cells, ratio(found, COLD[0]), *seconds)
    table.not_asked(MODELS, options.models)
    table.write(options.output)


def first_results(model: str, options: argparse.Namespace, table: Table) -> list[str]:
    """Of each engine the median of the seconds to the first result, in processes that are started for it."""
    seconds: dict[str, list[float]] = {name: [] for name in COLD}
    for _ in range(max(3, options.repeats)):
        for name in COLD:
            spec = {**ENGINES[name], "model": model, "batch": options.batch, "warmup": 0}
            with empty_caches(), started({**spec, "threads": options.threads}, options.threads) as worker:
                answer = worker.answer()
            if "error" in answer:
                table.not_run(f"{model}, first result, {name}", answer["error"])
                break
            seconds[name].append(answer["seconds_to_start"])
    return [f"{statistics.median(taken):.2f} s" if taken else "not run" for taken in seconds.values()]


@contextmanager
def empty_caches() -> Iterator[None]:
    """Caches in a new folder, for the processes that are started meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        places = {name: os.path.join(folder, name.lower()) for name in CACHES}
        with mock.patch.dict(os.environ, places):
            yield


if __name__ == "__main__":
    main()
