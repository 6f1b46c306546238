"""`backend="auto"`: measure the backends that can run here, keep the fastest that is right."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.frontends.state import Kept
from capture.logs import logger
from capture.wording import first_line
from runtime.compare import judge
from runtime.compile import Candidate, Compiled
from runtime.executables import Executable
from runtime.reference import Reference, clone_inputs, module_of, reference

log = logger("runtime")
ROUNDS = 5  # each backend is timed in every round, the order turning, so that a busy moment meets all alike
SECONDS = 0.1  # per backend and round, and never less than one call
_SETTLE = 0.02  # seconds; lets the threads of the backend before stop spinning
WORTH_IT = 1.02  # a backend must beat eager by this much: below it is noise


@dataclass(frozen=True)
class Choice:
    """The executable to use, a row for each backend considered (the best first), and what judged them."""

    executable: Executable
    candidates: list[Candidate]
    reference: Reference | None


def choose(
    trial: Callable[[Executable], Compiled],
    build: Callable[[str], Executable],
    model: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    say: Callable[[str], None],
) -> Choice:
    """Build, judge and time the backends.

    A backend is out when it cannot run the graph, or when its results are not right (see runtime/compare.py).

    Args:
        trial: wraps an executable so that it takes the model's own arguments.
        build: makes the executable of a backend.
    """
    eager = build("eager")
    captured = trial(eager).captured
    if not args and not kwargs and captured.inputs:
        return _without_inputs(build, eager)
    made = reference(model, args, kwargs, graph=captured)
    built: dict[str, Executable] = {"eager": eager}
    out: list[Candidate] = []
    for backend in ("aten", "onnx"):
        say(f"compile: {backend}")
        try:
            executable = build(backend)
            verdict = judge(made, trial(executable))
            if not verdict:
                raise CaptureError(f"not right: {verdict.reason}")
            built[backend] = executable
        except Exception as error:  # whatever a backend dies of, eager is left
            out.append(Candidate(backend, None, first_line(error)))
            log.info("%s is left out: %s", backend, first_line(error))
    say("compile: measure backends")
    given, given_kw = clone_inputs((tuple(args), dict(kwargs)))
    # Timed as users call them, guards included: on small models these decide.
    calls = {name: partial(trial(executable), *given, **given_kw) for name, executable in built.items()}
    tensors = [*pytree.tree_leaves((given, given_kw)), *made.buffers.values()]
    kept = Kept(module_of(model), [t for t in tensors if isinstance(t, torch.Tensor)])
    writes = bool(made.eager.written or captured.writebacks)
    medians = _medians(calls, kept.restore if writes else lambda: None)
    kept.restore()
    ranked = sorted(medians, key=lambda name: medians[name])
    log.info("median ms a call: %s", ", ".join(f"{name} {medians[name]:.3f}" for name in ranked))
    best = ranked[0] if medians[ranked[0]] * WORTH_IT < medians["eager"] else "eager"
    order = [best, *(name for name in ranked if name != best)]
    return Choice(built[best], [Candidate(name, medians[name]) for name in order] + out, made)


def _without_inputs(build: Callable[[str], Executable], eager: Executable) -> Choice:
    """Nothing to measure or judge with: generated code where there is some, else eager."""
    try:
        return Choice(build("aten"), [Candidate("aten", None, "no example inputs to measure with")], None)
    except Exception as error:
        rows = [Candidate("eager", None, ""), Candidate("aten", None, first_line(error))]
        return Choice(eager, rows, None)


def _medians(calls: Mapping[str, Callable[[], Any]], restore: Callable[[], None]) -> dict[str, float]:
    """Median ms a call of each, in rounds that interleave them. The random state is put back.

    Args:
        restore: called after each call, so that the next one is given the same.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    gc.collect()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for turn in range(ROUNDS):
            for name in names if turn % 2 == 0 else reversed(names):
                samples[name] += _time_block(calls[name], restore)
    return {name: statistics.median(times) for name, times in samples.items()}


def _time_block(call: Callable[[], Any], restore: Callable[[], None]) -> list[float]:
    """Times of calls in a row, in ms: as many as fit into SECONDS, at least one, after a warm-up."""
    time.sleep(_SETTLE)
    call()
    restore()
    times: list[float] = []
    started = time.perf_counter()
    while not times or time.perf_counter() - started < SECONDS:
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
        restore()
    return times


__all__ = ["Choice", "choose"]
