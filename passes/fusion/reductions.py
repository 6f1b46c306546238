"""Which axes a reduction works along: what says whether it may share a kernel with its neighbours.

mean(x, [-1], True)              rows of x's shape along its last axis; gives one number a row
softmax(x, 1), layer_norm(x)     the same rows; give as many numbers as they take
group_norm(x, 4), cross_entropy  rows of their own kind
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from capture.ir import Node, TensorType, op_name
from capture.ir.dims import Dim


@dataclass(frozen=True)
class Rows:
    """What a kernel's programs work on: `shape`, cut along `axes`; or by a `rule` that gives `made`."""

    shape: tuple[Dim, ...]
    axes: tuple[int, ...]
    rule: str = ""
    made: tuple[Dim, ...] = ()

    @property
    def kept(self) -> tuple[Dim, ...]:
        """The shape of one number a row, keepdim=True."""
        return tuple(1 if i in self.axes else d for i, d in enumerate(self.shape))

    @property
    def dropped(self) -> tuple[Dim, ...]:
        """The shape of one number a row, keepdim=False."""
        return tuple(d for i, d in enumerate(self.shape) if i not in self.axes)

    def holds(self, shape: tuple[Dim, ...]) -> bool:
        """Whether a value of that shape may be computed beside the rows."""
        beside = (self.made,) if self.rule else (self.kept, self.dropped)
        return shape == self.shape or shape in beside


def rows_of(node: Node) -> Rows | None:
    """The rows that a reduction works along, or None for what is no reduction or none that fuses."""
    made = _TABLE.get(op_name(node.op).removeprefix("aten."))
    if made is None or len(node.results) != 1 or not node.operands:
        return None
    given = getattr(node.operands[0], "type", None)
    if not isinstance(given, TensorType) or not isinstance(node.results[0].type, TensorType):
        return None
    return made(node, given.shape) if given.rank else None


def _along(name: str) -> Callable[[Node, tuple[Dim, ...]], Rows]:
    """The axes that an argument gives; all where it gives none."""

    def rows(node: Node, shape: tuple[Dim, ...]) -> Rows:
        given: Any = node.arg(name)
        axes = range(len(shape)) if given in (None, []) else [given] if isinstance(given, int) else given
        return Rows(shape, tuple(sorted(axis % len(shape) for axis in axes)))

    return rows


def _all(node: Node, shape: tuple[Dim, ...]) -> Rows:
    return Rows(shape, tuple(range(len(shape))))


def _last(node: Node, shape: tuple[Dim, ...]) -> Rows:
    count = len(node.arg("normalized_shape"))
    return Rows(shape, tuple(range(len(shape) - count, len(shape))))


def _groups(node: Node, shape: tuple[Dim, ...]) -> Rows:
    return Rows(shape, tuple(range(1, len(shape))), f"{node.arg('num_groups')} groups", shape)


def _losses(node: Node, shape: tuple[Dim, ...]) -> Rows:
    """A number an example along the classes' axis, then over all examples."""
    return Rows(shape, (min(1, len(shape) - 1),), "loss", node.results[0].tensor_type.shape)


_TABLE: dict[str, Callable[[Node, tuple[Dim, ...]], Rows]] = {
    **dict.fromkeys(["sum", "mean", "prod", "max", "min"], _all),
    **dict.fromkeys(["sum.dim_IntList", "mean.dim", "amax", "amin", "logsumexp"], _along("dim")),
    **dict.fromkeys(["var.dim", "var.correction", "std.dim", "std.correction"], _along("dim")),
    **dict.fromkeys(["prod.dim_int", "any.dim", "all.dim", "linalg_vector_norm"], _along("dim")),
    **dict.fromkeys(["softmax.int", "log_softmax.int", "_softmax", "_log_softmax"], _along("dim")),
    **dict.fromkeys(["layer_norm", "rms_norm"], _last),
    "group_norm": _groups,
    "cross_entropy_loss": _losses,
}

__all__ = ["Rows", "rows_of"]
