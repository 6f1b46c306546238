"""How good a model is, as one number: a metric of the task, or a stand-in where there is none.

The stand-in is agreement with the float model on the calibration data: the share of rows whose largest output
is at the same place (top-1) where outputs are [N, C] or [N, T, C], else 1 - relative L2 error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from capture.errors import CaptureError, UsageError
from runtime.quantized import Noise, noise
from runtime.reference import clone_inputs

__all__ = ["Scorer", "in_pieces"]

Model = Callable[..., Any]
Metric = Callable[[Model], float]


@dataclass(frozen=True)
class Scorer:
    """Scores models that take the inputs that `example` shows; higher is better.

    Attributes:
        metric: of the task; None: agreement with `wanted`, the float model's results on `samples`.
        example: the inputs of one call; a metric may give others of another batch size.
    """

    metric: Metric | None
    samples: tuple[tuple[Any, ...], ...]
    wanted: tuple[Any, ...]
    example: tuple[Any, ...]

    @staticmethod
    def of(
        model: Model, samples: Sequence[tuple[Any, ...]], example: Sequence[Any], metric: Metric | None
    ) -> Scorer:
        """A scorer whose stand-in holds others against `model`."""
        with torch.no_grad():
            wanted = tuple(model(*clone_inputs(sample)) for sample in samples)
        return Scorer(metric, tuple(samples), wanted, tuple(example))

    @property
    def is_proxy(self) -> bool:
        return self.metric is None

    @property
    def name(self) -> str:
        """What the number is, in words."""
        if not self.is_proxy:
            return "metric"
        what = "top-1 agreement with" if self._ranks() else "1 - relative L2 error against"
        return f"{what} the float model"

    def noise(self, f: Model) -> Noise:
        """How far the results of `f` on the samples are off from the float model's."""
        wanted = iter(self.wanted)
        return noise(lambda *_: next(wanted), f, self.samples)

    def __call__(self, f: Model) -> float:
        """The score of `f`.

        Raises:
            CaptureError: the metric gives no finite number.
        """
        if self.metric is not None:
            with torch.no_grad():
                given = self.metric(in_pieces(f, self.example))
            try:
                score = float(given)
            except (TypeError, ValueError) as error:
                raise CaptureError(f"the metric gave {given!r}", hint="evaluate(fn) -> float") from error
            if not math.isfinite(score):
                raise CaptureError(f"the metric gave {score}", hint="evaluate(fn) -> float, higher is better")
            return score
        found = self.noise(f)
        return found.top1 if found.top1 is not None and self._ranks() else 1 - found.relative_l2

    def _ranks(self) -> bool:
        """Whether every output is rows of scores."""
        leaves = [v for v in pytree.tree_leaves(self.wanted) if isinstance(v, Tensor)]
        return bool(leaves) and all(v.dim() in (2, 3) and v.shape[-1] > 1 for v in leaves)


def in_pieces(f: Model, example: Sequence[Any]) -> Model:
    """`f`, which takes batches of the example's size, as a function that takes any number of rows.

    Rows are axis 0 of those tensors that differ from the example in axis 0 alone. The last piece is filled up
    with its last row; what comes of that is cut off.
    """

    def call(*args: Any) -> Any:
        sizes = {(len(x), len(e)) for x, e in zip(args, example, strict=False) if _is_rows(x, e)}
        if len(args) != len(example) or not sizes:
            return f(*args)
        if len(sizes) > 1:
            raise UsageError("the metric gives inputs of unlike batch sizes", hint="as many rows of each")
        count, size = sizes.pop()
        parts = []
        for start in range(0, count, size):
            rows = torch.arange(start, start + size).clamp(max=count - 1)
            piece = [x[rows] if _is_rows(x, e) else x for x, e in zip(args, example, strict=True)]
            parts.append(pytree.tree_map(lambda y: y.clone() if isinstance(y, Tensor) else y, f(*piece)))
        return _joined(parts, count, size)

    return call


def _is_rows(given: Any, example: Any) -> bool:
    """Whether a tensor is another number of the rows that the example has."""
    tensors = isinstance(given, Tensor) and isinstance(example, Tensor)
    if not tensors or not given.dim() or given.dim() != example.dim():
        return False
    return (
        given.shape[1:] == example.shape[1:]
        and len(given) != len(example)
        and 0 not in (len(given), len(example))
    )


def _joined(parts: Sequence[Any], count: int, size: int) -> Any:
    """Results of pieces as the results of the whole."""
    columns, spec = [], pytree.tree_structure(parts[0])
    for column in zip(*map(pytree.tree_leaves, parts), strict=True):
        if not all(isinstance(y, Tensor) and y.dim() and len(y) == size for y in column):
            raise UsageError(
                f"the metric gives {count} rows, the model was captured for {size}",
                why="an output has no row for each row of the input, so it cannot be fed in pieces",
                hint=f"an evaluate(fn) that gives {size} rows a call",
            )
        columns.append(torch.cat(column)[:count])
    return pytree.tree_unflatten(columns, spec)
