"""Benchmarks with each engine in a process of its own, the processes taking turns.

Engines that share a process disturb each other's thread pools. Here only one process is at work at a time,
and the whole is repeated with fresh processes, since luck in a process's memory layout lasts as long as it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from capture.errors import CaptureError
from runtime.benchmark import Benchmark, Leg, plan, summarize

__all__ = ["ProcessBenchmark", "benchmark_processes"]

SETTLE = 0.05  # seconds; the threads of the process before go to sleep
START = (
    "import sys; sys.path.insert(0, {root!r}); from capture._floors import bind; bind(); sys.path.pop(0); "
    "from runtime.worker import main; main()"
)


@dataclass(frozen=True)
class ProcessBenchmark:
    """The samples of all engines that could run, what each said of itself, and why the others could not."""

    timing: Benchmark
    engines: dict[str, dict[str, Any]]
    failed: dict[str, str] = field(default_factory=dict)


def benchmark_processes(
    engines: Mapping[str, Mapping[str, Any]],
    *,
    warmup: int = 3,
    iters: int | None = None,
    rounds: int | None = None,
    seconds: float = 5.0,
    threads: int | None = None,
    repeats: int = 2,
    progress: Callable[[str], None] | None = None,
) -> ProcessBenchmark:
    """Time engines in processes of their own.

    Args:
        engines: name -> what the worker is to load (see runtime/worker.py); the first is the baseline.
        warmup, iters, rounds: as in `benchmark`.
        seconds: about how long the timed part of a repetition may take.
        threads: threads of each process; torch's present number by default.
        repeats: how often the whole is done, with fresh processes.
        progress: called with the phase that begins.

    Raises:
        CaptureError: the baseline cannot run.
    """
    say = progress or (lambda phase: None)
    count = threads or torch.get_num_threads()
    legs: dict[str, list[tuple[Leg, Leg]]] = {}
    described: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    baseline = next(iter(engines))
    planned: list[tuple[int, dict[str, int]]] = []
    waited: list[float] = []
    for repeat in range(repeats):
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for name, spec in engines.items():
                if name in failed:
                    continue
                say(f"starting {name} ({repeat + 1} of {repeats})")
                worker = stack.enter_context(started({**spec, "threads": count, "warmup": warmup}, count))
                answer = worker.answer()
                if "error" in answer:
                    if name == baseline:
                        raise CaptureError(f"{name} cannot run", why=answer["error"])
                    failed[name] = answer["error"]
                    continue
                workers[name], described[name] = worker, answer
            if not planned:  # the same for each repetition, so that all rounds weigh the same
                took = {name: described[name]["seconds_a_call"] for name in workers}
                planned = [plan(took, seconds, iters, rounds)]
            for name, pairs in _rounds(workers, planned[0], say).items():
                legs.setdefault(name, []).extend(pairs)
            waited += [share for worker in workers.values() for share in worker.waited]
    for name in failed:  # perhaps at a second start only
        legs.pop(name, None)
        described.pop(name, None)
    return ProcessBenchmark(
        summarize(legs, threads=count, waited=statistics.fmean(waited)), described, failed
    )


def _rounds(
    workers: Mapping[str, Worker], planned: tuple[int, dict[str, int]], say: Callable[[str], None]
) -> dict[str, list[tuple[Leg, Leg]]]:
    """Rounds of A B B A over processes."""
    rounds, leg_calls = planned
    legs: dict[str, list[tuple[Leg, Leg]]] = {name: [] for name in workers}
    for done in range(rounds):
        say(f"measuring, round {done + 1} of {rounds}")
        first = {name: worker.leg(leg_calls[name]) for name, worker in workers.items()}
        second = {name: workers[name].leg(leg_calls[name]) for name in reversed(list(workers))}
        for name in workers:
            legs[name].append((first[name], second[name]))
    return legs


class Worker:
    """The parent's end of a worker process: a line of JSON each way."""

    def __init__(self, process: subprocess.Popen[str], errors: Any) -> None:
        self._process, self._errors = process, errors
        self.waited: list[float] = []  # the share of each leg that threads waited for a core

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:] or [
                "it died silently"
            ]
            return {"error": last[0]}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def leg(self, calls: int) -> Leg:
        """Milliseconds of that many calls in a row."""
        time.sleep(SETTLE)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"calls": calls}) + "\n")
        self._process.stdin.flush()
        answer = self.answer()
        if "error" in answer:
            raise CaptureError("an engine failed while it was timed", why=answer["error"])
        self.waited.append(answer["waited"])
        samples: Leg = answer["samples"]
        return samples


@contextmanager
def started(spec: Mapping[str, Any], threads: int) -> Iterator[Worker]:
    """A worker process, which ends with the block."""

    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", START.format(root=root), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        try:
            yield Worker(process, errors)
        finally:
            process.kill()
            process.communicate()
