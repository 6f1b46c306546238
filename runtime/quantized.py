"""Parity and noise of quantised graphs, whose integers are meant to differ from float.

A compiled model is held against the interpreter on its own quantised graph: it may be off from fp64 by twice
as much as that is, or by `FLOOR`, since a value halfway between two integers may become either. How far the
quantised model is off from the float one is told beside it, as relative L2 error, as the ratio of signal to
quantisation noise (SQNR) and as agreement of the largest outputs. These stand in for a metric of the task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from capture.ir import Graph
from capture.ir.interpreter import flatten_inputs, run_flat
from passes.quantize.static import StaticInt8
from runtime.reference import Outcome, Reference, clone_inputs

FLOOR = 2e-2  # relative to the scale of an output: some steps of 1/255 that fell to the other side


def quantized_graph(f: Any) -> Graph | None:
    """The graph that a compiled model runs, where it was quantised; else None."""
    graph = getattr(f, "graph", None)
    if not isinstance(graph, Graph):
        return None
    return graph if any(r.name == StaticInt8.name and r.changed for r in graph.history) else None


def as_meant(made: Reference, graph: Graph) -> Outcome:
    """What the quantised graph means: eager's outcome, with the results of the interpreter on it."""
    args, kwargs = clone_inputs((made.args, made.kwargs))
    results, _ = run_flat(graph, flatten_inputs(graph, args, kwargs))
    return replace(made.eager, leaves=list(results))


def allowed(rows: Sequence[Any]) -> list[Any]:
    """Rows of a parity that are off by no more than quantised results may be pass."""
    own = [row.eager_error_vs_fp64 for row in rows if row.eager_error_vs_fp64 is not None]
    limit = max([FLOOR, *(2 * error for error in own)])

    def judged(row: Any) -> Any:
        within = row.error_vs_fp64 is not None and row.error_vs_fp64 <= limit
        return replace(row, ok=True, reason="", limit=limit) if within and not row.ok else row

    return [judged(row) for row in rows]


@dataclass(frozen=True)
class Noise:
    """How far a quantised model is off from the float one, over all outputs of all samples.

    Attributes:
        relative_l2: |ours - float| / |float|, Euclidean.
        sqnr_db: the same in decibels, -20 log10; None where nothing differs.
        top1: the share of rows (last axis) whose largest element is at the same place; None without rows.
    """

    samples: int
    relative_l2: float
    sqnr_db: float | None
    top1: float | None

    def to_dict(self) -> dict[str, Any]:
        """As in report.json: `proxy` says that no metric of the task was measured."""
        return {**asdict(self), "proxy": True}


def noise(model: Callable[..., Any], f: Callable[..., Any], samples: Iterable[Sequence[Any]]) -> Noise:
    """Run both on the samples (tuples of arguments) and compare their floating outputs.

    A value that is not finite counts as wholly wrong: the error is then infinite.
    """
    apart = size = 0.0
    rows = same = count = 0
    for sample in samples:
        count += 1
        with torch.no_grad():
            ours, theirs = (_floats(g(*clone_inputs(tuple(sample)))) for g in (f, model))
        for y, e in zip(ours, theirs, strict=True):
            apart += float((y - e).square().sum())
            size += float(e.square().sum())
            if y.dim() and y.shape[-1] > 1 and y.numel():
                agree = y.argmax(-1) == e.argmax(-1)
                rows, same = rows + agree.numel(), same + int(agree.sum())
    error = math.sqrt(apart / size) if size else math.sqrt(apart)
    error = error if math.isfinite(error) else math.inf
    decibels = -20 * math.log10(error) if 0 < error < math.inf else None
    return Noise(count, error, decibels, same / rows if rows else None)


def _floats(results: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(results)
    return [v.double() for v in leaves if isinstance(v, Tensor) and v.is_floating_point()]


__all__ = ["FLOOR", "Noise", "allowed", "as_meant", "noise", "quantized_graph"]
