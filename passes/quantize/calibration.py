"""Run calibration data through the float graph and keep what ranges are chosen from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capture.errors import CaptureError, UsageError
from capture.ir import Graph, Node, TensorType, Value
from capture.ir.arguments import flatten_inputs
from capture.ir.interpreter import run_flat
from passes.quantize.config import QuantConfig
from passes.quantize.observers import Extremes, Histogram

SHAPE = "(x,) for a model that takes one tensor"


@dataclass(frozen=True)
class Samples:
    """Calibration data, checked: the flat inputs of each sample."""

    flat: tuple[tuple[Any, ...], ...]

    @staticmethod
    def of(graph: Graph, calibration: Iterable[Any]) -> Samples:
        """Check the data against the graph's inputs.

        Args:
            calibration: tuples of the arguments that the graph takes; a lone tensor is a tuple of one.

        Raises:
            UsageError: there are no samples; one does not fit the inputs, holds NaN or an infinity; or all of
                them hold one value only.
        """
        flat = tuple(_sample(graph, number, given) for number, given in enumerate(calibration, start=1))
        if not flat:
            raise UsageError("the calibration data is empty", hint="at least one sample: " + SHAPE)
        _refuse_constant(graph, flat)
        return Samples(flat)

    def run(self, graph: Graph, see: Callable[[Value, Tensor], None], wanted: Iterable[Value]) -> None:
        """Run each sample; `see` gets every tensor of the values that are wanted."""
        looked_at = set(wanted)

        def observe(node: Node, _: Sequence[Any], results: Sequence[Any]) -> None:
            for value, tensor in zip(node.results, results, strict=True):
                if value in looked_at:
                    _see(value, tensor, node.where)

        def _see(value: Value, tensor: Tensor, where: str | None) -> None:
            if not tensor.numel():
                return
            if not bool(tensor.isfinite().all()):
                raise CaptureError(
                    "calibration made a value that is NaN or infinite",
                    where=where,
                    why="no range can be chosen from it",
                    hint="look at the model in float first: python -m capture verify MODEL",
                )
            see(value, tensor)

        for flat in self.flat:
            for value, given in zip(graph.inputs, flat, strict=True):
                if value in looked_at:
                    _see(value, given, None)
            run_flat(graph, flat, observe=observe)


def _sample(graph: Graph, number: int, given: Any) -> tuple[Any, ...]:
    """One sample's flat inputs."""
    args = given if isinstance(given, tuple | list) else (given,)
    try:
        flat = tuple(flatten_inputs(graph, tuple(args), {}))
    except CaptureError as error:
        raise UsageError(
            f"calibration sample {number} does not fit the model: {error.what}",
            why=error.why,
            hint=error.hint,
        ) from error
    for value, tensor in zip(graph.inputs, flat, strict=True):
        _refuse_misfit(number, value, tensor)
    return flat


def _refuse_misfit(number: int, value: Value, given: Any) -> None:
    type_, what = value.type, f"calibration sample {number}: the input {value.name}"
    if not isinstance(type_, TensorType):
        return
    if not isinstance(given, Tensor):
        raise UsageError(f"{what} is no tensor", hint=f"a tensor {type_}")
    fits = given.dtype == type_.dtype and given.dim() == type_.rank
    fits = fits and all(
        not isinstance(d, int) or d == n for d, n in zip(type_.shape, given.shape, strict=True)
    )
    if not fits:
        dtype = str(given.dtype).removeprefix("torch.")
        raise UsageError(f"{what} is {dtype} {list(given.shape)}", hint=f"it takes {type_}")
    if given.is_floating_point() and not bool(given.isfinite().all()):
        raise UsageError(
            f"{what} holds NaN or an infinity", hint="calibrate with data as the model will meet"
        )


def _refuse_constant(graph: Graph, flat: Sequence[Sequence[Any]]) -> None:
    """Where every floating input is one number in all samples, every range would be wrong."""
    columns = [
        [sample[i] for sample in flat if sample[i].numel()]
        for i, value in enumerate(graph.inputs)
        if isinstance(value.type, TensorType) and value.type.dtype.is_floating_point
    ]
    extremes = [
        (min(float(t.min()) for t in c), max(float(t.max()) for t in c), sum(t.numel() for t in c))
        for c in columns
        if c
    ]
    if extremes and all(lo == hi and count > 1 for lo, hi, count in extremes):
        raise UsageError(
            "the calibration data is constant: every input holds one value only",
            hint="calibrate with samples of the data that the model will meet",
        )


def ranges(
    graph: Graph, samples: Samples, groups: dict[Value, list[Value]], config: QuantConfig
) -> dict[Value, tuple[float, float]]:
    """The range of each group of values, by its first; none for a group that calibration never reached."""
    root = {value: first for first, values in groups.items() for value in values}
    momentum = config.momentum if config.observer == "moving-average" else None
    extremes = {first: Extremes(momentum) for first in groups}
    samples.run(graph, lambda value, tensor: extremes[root[value]].see(tensor.float()), root)
    seen = {first: e for first, e in extremes.items() if e.seen}
    if config.observer in ("minmax", "moving-average"):
        return {first: (e.lo, e.hi) for first, e in seen.items()}
    histograms = {first: Histogram(e.lo, e.hi) for first, e in seen.items()}
    samples.run(graph, lambda value, tensor: histograms[root[value]].see(tensor), root)
    return {first: h.range(config.observer, config.percentile) for first, h in histograms.items()}


def means(graph: Graph, samples: Samples, values: Iterable[Value]) -> dict[Value, Tensor]:
    """The mean of each value over samples, and over all axes but channels and space; float64.

    [N, C, H, W] gives [1, C, H, W] where all samples have one size; [..., K] gives [K].
    """
    sums: dict[Value, Tensor] = {}
    counts: dict[Value, int] = {}

    def see(value: Value, tensor: Tensor) -> None:
        wide = tensor.double()
        total = wide.sum(0, keepdim=True) if wide.dim() == 4 else wide.reshape(-1, wide.shape[-1]).sum(0)
        if value not in sums:
            sums[value], counts[value] = torch.zeros_like(total), 0
        if sums[value].shape == total.shape:
            sums[value] += total
            counts[value] += tensor.shape[0] if wide.dim() == 4 else wide.numel() // wide.shape[-1]

    samples.run(graph, see, values)
    return {value: total / counts[value] for value, total in sums.items()}


__all__ = ["Samples", "means", "ranges"]
