"""The one place that runs passes: timing, verification, dumps, history, the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import _disable_current_modes

from capture.errors import CaptureError, UsageError
from capture.ir import Graph
from capture.ir.serialize import write_aside
from capture.logs import logger
from passes.base import Pass, PassRecord, PassResult, Setting, check_graph, make_pass, parse_passes
from passes.ledger import carriers, record_fates
from passes.pipelines import PIPELINES


def optimize(
    graph: Graph,
    level: int = 2,
    disable: Iterable[str] = (),
    *,
    passes: str | Sequence[str | Pass] | None = None,
    verify: bool = False,
    dump_dir: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
    check_rewrites: bool = False,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Graph:
    """Run a pipeline over a copy of the graph.

    Args:
        level: 0 nothing, 1 clean-up and folding, 2 also fusion, layout, schedule and memory plan, 3 also slow
            searches.
        disable: names of passes to leave out.
        passes: a pipeline of one's own, in place of the level's; a text as `--passes` takes it will do.
        verify: check every invariant before the first pass and after each.
        dump_dir: where given, the graph's text after each pass is written there.
        progress: called with each pass's name before it runs.
        check_rewrites: run both sides of each application of a rule, in its own dtype and in fp64, and refuse
            those that differ; the record of the pass lists them in its `notes`.
        args, kwargs: example inputs, to record operands for that check; without them they are random.

    Returns:
        A new graph; its `history` has a `PassRecord` per pass, its `fates` a `Fate` per captured op that did
        not simply stay.

    Raises:
        UsageError: unknown level or pass, or what is given is no graph.
        CaptureError: a pass failed, or broke an invariant; the message names it.
    """
    if level not in PIPELINES:
        raise UsageError(
            f"there is no optimisation level {level}", hint=f"one of {', '.join(map(str, PIPELINES))}"
        )
    check_graph(graph, "optimize")
    if isinstance(passes, str):
        passes = parse_passes(passes)
    inputs = None if args is None and kwargs is None else (tuple(args or ()), dict(kwargs or {}))
    setting = Setting(level, check_rewrites, inputs)
    pipeline = [make_pass(p).at(setting) for p in (PIPELINES[level] if passes is None else passes)]
    left_out = {make_pass(name).name for name in disable}
    work = graph.clone()
    if verify:
        work.verify()
    if dump_dir is not None:
        write_aside(Path(dump_dir) / "00-captured.txt", str(work))
    for number, step in enumerate((p for p in pipeline if p.name not in left_out), start=1):
        if progress is not None:
            progress(step.name)
        run_pass(work, step, verify=verify)
        if dump_dir is not None:
            write_aside(Path(dump_dir) / f"{number:02d}-{step.name}.txt", str(work))
    return work


def run_pass(graph: Graph, step: Pass, *, verify: bool = False) -> PassRecord:
    """Run one pass on the graph itself; add its row to the history and its fates to the ledger."""
    before, stood_for = len(graph.nodes), carriers(graph)
    start = time.perf_counter()
    try:
        with _disable_current_modes():  # inside torch.compile a mode would turn new constants into fakes
            result = step.run(graph)
            if not isinstance(result, PassResult):
                raise CaptureError(
                    f"run() returned a {type(result).__name__}",
                    why="a pass says what it has done",
                    hint="return PassResult(changed=True)",
                )
        seconds = time.perf_counter() - start
        if verify:
            graph.verify()
    except UsageError:  # the pass was told what it cannot do: no failure of its own
        raise
    except CaptureError as error:
        raise CaptureError(
            f"the pass {step.name} failed: {error.what}", where=error.where, why=error.why, hint=error.hint
        ) from error
    except Exception as error:
        error.add_note(f"in the pass {step.name}")
        raise
    record_fates(graph, step.name, stood_for, result.fates, step.reason)
    record = PassRecord(
        step.name, seconds, result.changed, before, len(graph.nodes), result.stats, result.notes
    )
    graph.history.append(record)
    logger(step.name).info(
        "%d -> %d nodes, %.1f ms, %s", before, record.nodes_after, seconds * 1e3, dict(result.stats)
    )
    return record
