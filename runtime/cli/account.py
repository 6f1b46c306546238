"""The lines of the account that `run` prints: what was done, what it costs, whether it is right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from rich.text import Text

from capture.ir import Graph, TensorType
from capture.wording import human_size
from passes.base import PassRecord
from runtime.benchmark import Benchmark
from runtime.cli.terminal import Terminal
from runtime.compare import Parity
from runtime.compile import Compiled
from runtime.wording import told
from viz.labels import modules_by_name
from viz.style import human_count

__all__ = [
    "backend_name", "header", "tell_capture", "tell_latency", "tell_memory", "tell_optimize",
    "tell_parity", "took", "verdict",
]  # fmt: skip


WIDE, NARROW = 25, 10  # columns of the lines on capture and optimisation


def took(seconds: float) -> str:
    """1.9 s, 12 ms, 0.3 ms."""
    if seconds >= 0.995:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.00095 else f"{seconds * 1e3:.1f} ms"


def header(
    terminal: Terminal,
    model: str,
    title: str,
    parameters: int,
    dtype: str,
    inputs: Sequence[str],
    dynamic: Sequence[str] = (),
    note: str = "",
) -> None:
    """What is at hand, and what is to be noted of it."""
    shown = "input " + ", ".join(inputs)
    if len(inputs) > 4:
        shown = f"{len(inputs)} inputs: {', '.join(inputs[:3])}, ..."
    varying = "where " + ", ".join(dynamic) if dynamic else ""
    terminal.line(
        Text(model, style="bold"), title, f"{human_count(parameters)} parameters", dtype, shown, varying
    )
    if note:
        terminal.line(Text(note, style="dim"), indent=2)
    terminal.print()


def tell_capture(terminal: Terminal, graph: Graph, seconds: float) -> None:
    attempts = [a for a in getattr(graph, "attempts", ()) if a[0] != graph.frontend and a[1]]
    nodes = f"{len(graph.nodes)} nodes"
    terminal.line(f"{graph.frontend:<{WIDE}}", f"{nodes:>{NARROW}}", took(seconds), label="capture")
    for frontend, reason in attempts:
        terminal.line(Text(f"{frontend} failed: {reason}", style="dim"), indent=2)
    if idle := idle_inputs(graph):
        terminal.line(Text(f"the result does not depend on {', '.join(idle)}", style="dim"), indent=2)


def idle_inputs(graph: Graph) -> list[str]:
    """Names of the tensors that nothing reads or writes; those of varying sizes may be asked for these."""
    tensors = [v for v in graph.inputs if isinstance(v.type, TensorType)]
    fixed = [v for v in tensors if all(isinstance(size, int) for size in v.type.shape)]
    return [v.name for v in fixed if not v.num_uses and v not in graph.writebacks]


def tell_optimize(terminal: Terminal, captured: Graph, graph: Graph, level: str, seconds: float) -> None:
    """The level and a line for each pass that did something; with -v for every pass."""
    if not graph.history:
        terminal.line(
            Text("O0: the graph as captured; --optimize makes it fast", style="dim"), label="optimize"
        )
        return
    nodes = f"{len(captured.nodes)} -> {len(graph.nodes)}"
    terminal.line(f"{level:<{WIDE}}", f"{nodes:>{NARROW}}", took(seconds), label="optimize")
    rows = [(record, told(record.name, record.stats)) for record in graph.history if record.name != "memory"]
    idle = [record.name for record, done in rows if not (done or record.changed)]
    if terminal.verbose:
        shown, idle = [(record, told(record.name, record.stats)) for record in graph.history], []
    else:
        shown = [(record, done) for record, done in rows if done or record.changed]
    wide = max((len(record.name) for record, _ in shown), default=0)
    for record, done in shown:
        tell_pass(terminal, record, done, wide)
        for note in record.notes:
            terminal.line(Text(note, style="yellow"), indent=6)
    if idle:
        passes = "1 more pass" if len(idle) == 1 else f"{len(idle)} more passes"
        terminal.line(Text(f"{passes} found nothing to do (-v shows them)", style="dim"), indent=2)


def tell_pass(terminal: Terminal, record: PassRecord, done: str, wide: int) -> None:
    """A pass: nodes before and after, time, what it did."""
    nodes = f"{record.nodes_before:>4} -> {record.nodes_after:<4}"
    row = Text(f"  {record.name:<{wide}}  {nodes}  {took(record.seconds):>6}  ")
    row.stylize("" if record.changed or done else "dim")
    if len(row) + len(done) <= terminal.width or not done:
        terminal.print(row.append(done))
    else:
        terminal.print(row)
        terminal.line(done, indent=6)


def tell_memory(terminal: Terminal, graph: Graph, measured: int | None, backend: str = "") -> None:
    """Naive, planned and measured bytes of the activations; who holds the peak."""
    plan = graph.memory_plan
    # What eager takes says nothing of the plan.
    parts = [] if measured is None or backend == "eager" else [f"{human_size(measured)} measured"]
    if plan is None:
        if parts:
            why = "no plan: it is made at level 2"
            if backend == "triton":
                why = "no plan: kernels take their memory from PyTorch's allocator"
            terminal.line(*parts, Text(why, style="dim"), label="memory")
        return
    bound = plan.lower_bound_bytes
    tight = " = lower bound" if plan.arena_bytes == bound else f" lower bound {human_size(bound)}"
    if plan.arena_bytes == plan.naive_bytes == bound:  # nothing could share memory
        tight = ""
    terminal.line(
        f"{human_size(plan.naive_bytes)} naive",
        f"{human_size(plan.arena_bytes)} planned{tight}",
        *parts,
        label="memory",
    )
    holders = [plan.buffers[i] for i in plan.peak_holders]
    if other := {"onnx": "ONNX Runtime makes its own", "eager": "eager has none"}.get(backend):
        terminal.line(Text(f"the plan is for aten; {other}", style="dim"), indent=11)
    elif holders:
        modules = modules_by_name(graph)
        largest = sorted(holders, key=lambda b: -b.size)
        places = list(
            dict.fromkeys(holder_name(modules.get(b.name, ""), b.location or b.op) for b in largest)
        )
        more = f" and {len(places) - 1} more" * (len(places) > 1)
        terminal.line(Text(f"peak held by {places[0]}{more}", style="dim"), indent=11)


def holder_name(module: str, place: str) -> str:
    """``layer1.0.conv3 (models/resnet.py:61)``."""
    return f"{module} ({place})" if module else place


def tell_parity(terminal: Terminal, parity: Parity) -> None:
    verdict = Text("ok", style="bold green") if parity.ok else Text("FAILED", style="bold red")
    if parity.error_vs_fp64 is not None:
        errors = (
            f"error vs fp64: ours {parity.error_vs_fp64:.1e}, eager {parity.eager_error_vs_fp64 or 0.0:.1e}"
        )
    elif parity.max_abs_error is not None:
        errors = f"differs from eager by {parity.max_abs_error:.1e} at most"
    else:
        errors = "" if parity.integers_exact is None else "integers compared"
    exact = {True: "integers exact", False: "integers differ", None: ""}[parity.integers_exact]
    terminal.line(
        errors, exact if errors != "integers compared" or parity.ok else "", verdict, label="parity"
    )
    if parity.reason and parity.ok:  # where it fails, the error at the end says why
        terminal.line(Text(parity.reason, style="dim"), indent=11)


def tell_latency(terminal: Terminal, compiled: Compiled, timing: Benchmark, failure: str = "") -> None:
    """Both medians, the ratio with its interval, and after how many calls the work is paid for.

    Where the machine was too busy to tell, minima in place of a ratio. What `failure` has said of the results
    already is not said again of each backend.
    """
    rows, doubt = dict(zip(("eager", "ours"), timing.rows.values(), strict=False)), timing.doubt()
    threads = f"{timing.threads} thread{'s' * (timing.threads != 1)}"
    medians = [f"{name} {milliseconds(row.median)}" for name, row in rows.items()]
    if doubt:
        minima = [f" (min {milliseconds(row.min)})" for row in rows.values()]
        medians = [median + least for median, least in zip(medians, minima, strict=True)]
    terminal.line(*medians, verdict(timing), f"{backend_name(compiled)}, {threads}", label="latency")
    if doubt:
        terminal.line(Text(doubt, style="yellow"), indent=11)
    if len(rows) == 1 or not doubt:
        terminal.line(Text(latency_note(compiled, timing), style="dim"), indent=11)
    for text in candidates(compiled, failure, verbose=terminal.verbose > 0):
        terminal.line(Text(text, style="dim"), indent=11)


def verdict(timing: Benchmark, name: str = "") -> Text:
    """The speed-up of an engine (the last one unless named) with its interval, if it can be told."""
    name = name or next(reversed(timing.rows))
    if name == timing.baseline:
        return Text("1.00x", style="bold")
    if timing.doubt(name):
        return Text("too noisy for a verdict", style="yellow")
    low, high = timing.intervals[name]
    return Text(
        f"{timing.ratios[name]:.2f}x [{low:.2f}, {high:.2f}]", style="bold green" if low > 1 else "bold"
    )


def latency_note(compiled: Compiled, timing: Benchmark) -> str:
    """What the speed-up comes to."""
    if len(timing.rows) == 1:
        chosen = len(compiled.candidates) > 1
        return "eager is kept: nothing that is right was faster" if chosen else "eager was asked for"
    eager, ours = timing.rows[timing.baseline], next(reversed(timing.rows.values()))
    low, high = timing.ratio_interval
    if not (low > 1 or high < 1):
        return f"no clear difference; the noise is {timing.noise_floor:.0%}"
    saved = (eager.median - ours.median) / 1e3
    if saved <= 0:
        return "slower than eager: this backend was asked for; --backend auto would keep the fastest"
    calls = int(sum(compiled.seconds.values()) / saved) + 1
    return f"pays for itself after {calls:,} call{'s' * (calls != 1)}"


def candidates(compiled: Compiled, failure: str, *, verbose: bool) -> Iterable[str]:
    """Which backends were left out and why; when asked to say more, also what the others took."""
    reasons: dict[str, list[str]] = {}
    for candidate in compiled.candidates:
        if candidate.reason:
            reasons.setdefault(candidate.reason, []).append(candidate.backend)
        elif verbose and candidate.milliseconds is not None:
            yield f"{candidate.backend} {milliseconds(candidate.milliseconds)} when it was chosen"
    for reason, backends in reasons.items():
        known = failure and reason.endswith(failure)
        yield f"{', '.join(backends)} left out: {'not right either' if known else reason}"


def milliseconds(value: float) -> str:
    """31.2 ms, 0.592 ms, 8.1 µs."""
    if value >= 0.1:
        return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f} ms"
    return f"{value * 1e3:.3g} µs"


def backend_name(compiled: Compiled) -> str:
    """The backend, and the library whose kernels it calls: ``aten/oneDNN``."""
    kernels = {n.impl.kernel.partition(".")[0] for n in compiled.graph.nodes if n.impl is not None}
    if compiled.backend == "aten" and "onednn" in kernels and torch.backends.mkldnn.is_available():
        return "aten/oneDNN"
    device = getattr(compiled.executable, "device", None)
    if compiled.backend == "triton" and device == torch.device("cpu"):
        return "triton in its interpreter"
    return {"onnx": "ONNX Runtime"}.get(compiled.backend, compiled.backend)
