"""Everything that is to be known of a compiled model by running it: memory, parity, latency, per-op times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree

from capture.wording import first_line
from runtime.benchmark import Benchmark, benchmark
from runtime.compare import Parity, judge
from runtime.peak import measured_peak
from runtime.profile import Profile, profile
from runtime.reference import Reference, reference, runnable, undone
from runtime.report import Report, build_report

__all__ = ["Measured", "measure", "measure_steps"]

PROFILE_RUNS = 3
Tell = Callable[[str, Any], None]
Say = Callable[..., None]


@dataclass(frozen=True)
class Measured:
    """What running a model told; `peak` in bytes, None for ONNX Runtime's own memory, which is not seen.

    `unprofiled` says why there is no profile of a side.
    """

    peak: int | None
    parity: Parity
    timing: Benchmark
    profiles: dict[str, Profile]
    unprofiled: dict[str, str]


def measure(
    model: Any,
    f: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    seconds: float = 6.0,
) -> Report:
    """Measure what `runtime.compile` returned against the model it was made of; also sets `f.report`.

    Args:
        name: what the report calls the model.
        seconds: about how long timing may take.
    """
    found = measure_steps(model, f, args, kwargs, seconds=seconds)
    report = build_report(
        f,
        model=name or f.captured.name,
        parity=found.parity,
        timing=found.timing,
        profiles=found.profiles,
        measured_peak=found.peak,
    )
    f.report = report
    return report


def measure_steps(
    model: Any,
    f: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    warmup: int = 3,
    iters: int | None = None,
    seconds: float = 6.0,
    say: Say = lambda *_: None,
    tell: Tell = lambda *_: None,
) -> Measured:
    """`measure`, step by step.

    Args:
        say: called with the name of the step that begins; while timing also with rounds done and in all.
        tell: called with "memory", "parity" or "latency" and what was found, once it is.
    """
    eager = runnable(model)
    say("measuring memory")
    peak = None if f.backend == "onnx" else measured_peak(f, args, kwargs)
    tell("memory", peak)
    say("comparing with fp64")
    made = f.reference
    if made is None or not same_inputs(made, args, kwargs or {}):
        made = reference(model, args, kwargs, graph=f.captured)
    parity = judge(made, f, atol=atol, rtol=rtol)
    tell("parity", parity)
    say("measuring latency")
    # Where eager is kept, both are the same thing: a second figure would be noise.
    engines = {"eager": eager} if f.backend == "eager" else {"eager": eager, "ours": f}
    with undone(eager), undone(f):
        timing = benchmark(
            engines,
            args,
            kwargs,
            warmup=warmup,
            iters=iters,
            seconds=seconds,
            progress=lambda done, rounds: say("measuring latency", done, rounds),
        )
    tell("latency", timing)
    say("profiling")
    profiles, unprofiled = {}, {}
    for side, side_f in {"eager": eager, "optimized": f}.items():
        try:
            profiles[side] = profile(side_f, args, kwargs, runs=PROFILE_RUNS)
        except Exception as error:  # what a recorder cannot follow must not cost the rest
            unprofiled[side] = first_line(error)
    return Measured(peak, parity, timing, profiles, unprofiled)


def same_inputs(made: Reference, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a reference was made with these very objects."""
    given, before = (
        pytree.tree_leaves((tuple(args), dict(kwargs))),
        pytree.tree_leaves((made.args, made.kwargs)),
    )
    return len(given) == len(before) and all(a is b for a, b in zip(given, before, strict=True))
