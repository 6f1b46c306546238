"""Axes of tensors as terms, so that one index can be taken out everywhere at once.

Each axis of each value is a term: a leaf, or made of other terms as views and concatenations make it.

    view [N, 768] as [N, 12, 64]      768 = product(12, 64), row-major: 12 heads of 64
    cat of [N, 64, ...], [N, 32, ...]  96 = sum(64, 32)

Operators say which axes are the same (`unify`) or must stay as they are (`fix`). What is then one free leaf
can lose indices; `indices` tells where those that stay lie in any axis that is made of it. It is unification
of first-order terms, with products refined to common factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import sympy
import torch

from capture.ir import Graph, TensorType, Value, dims
from capture.ir.dims import Dim

PRODUCT, SUM = "product", "sum"


class Axis:
    """A term: a leaf, or (once bound) another term, a product or a sum of terms."""

    __slots__ = ("fixed", "kind", "link", "parts", "size")

    def __init__(self, size: Dim, fixed: str = "") -> None:
        self.size = size
        self.fixed = fixed  # why a leaf must stay as it is
        self.link: Axis | None = None
        self.kind = ""
        self.parts: list[Axis] = []

    @property
    def root(self) -> Axis:
        """The term that stands for this one."""
        axis = self
        while axis.link is not None:
            axis = axis.link
        return axis

    @property
    def leaves(self) -> Iterator[Axis]:
        """The leaves that the axis is made of, outermost first, with repeats."""
        root = self.root
        if not root.parts:
            yield root
        for part in root.parts:
            yield from part.leaves

    def __repr__(self) -> str:
        root = self.root
        return f"{root.kind}{root.parts}" if root.parts else f"<{dims.format_dim(root.size)} {root.fixed}>"


def fix(axis: Axis, reason: str) -> None:
    """None of the leaves of the axis may lose an index; the first reason stays."""
    for leaf in axis.leaves:
        leaf.fixed = leaf.fixed or reason


def unify(a: Axis, b: Axis) -> None:
    """Make the two one. Where their structures do not fit, both are fixed."""
    a, b = a.root, b.root
    if a is b:
        return
    if a.size != b.size:
        _fix_all([a, b], "sizes that differ are used as one")
    elif not a.parts or not b.parts:
        leaf, other = (a, b) if not a.parts else (b, a)
        leaf.link = other
        if leaf.fixed:
            fix(other, leaf.fixed)
    elif a.kind == b.kind == PRODUCT:
        unify_products(a.parts, b.parts)
    elif a.kind == b.kind and [p.size for p in a.parts] == [p.size for p in b.parts]:
        for left, right in zip(a.parts, b.parts, strict=True):
            unify(left, right)
    else:
        _fix_all([a, b], "it is made of different pieces in two places")


def unify_products(left: Sequence[Axis], right: Sequence[Axis]) -> None:
    """Make one of two row-major products of equal size, splitting leaves into the factors they share."""
    xs, ys = list(_factors(left)), list(_factors(right))
    while xs and ys:
        a, b = xs[0].root, ys[0].root
        if a.size == b.size:
            unify(xs.pop(0), ys.pop(0))
        elif _split(a, b.size):
            xs[0:1] = a.parts
        elif _split(b, a.size):
            ys[0:1] = b.parts
        else:
            break
    _fix_all([*xs, *ys], "a view cuts across it")


def _factors(axes: Iterable[Axis]) -> Iterator[Axis]:
    """The factors of a product that are not products themselves and not 1."""
    for axis in axes:
        root = axis.root
        if root.kind == PRODUCT:
            yield from _factors(root.parts)
        elif root.size != 1:
            yield root


def _split(axis: Axis, outer: Dim) -> bool:
    """Bind a leaf to `outer` times the rest, where that divides its size."""
    if axis.parts or not outer:
        return False
    quotient = _quotient(axis.size, outer)
    if quotient is None:
        return False
    bind(axis, PRODUCT, [Axis(outer, axis.fixed), Axis(quotient, axis.fixed)])
    return True


def _quotient(size: Dim, divisor: Dim) -> Dim | None:
    if isinstance(size, int) and isinstance(divisor, int):
        return size // divisor if size % divisor == 0 else None
    quotient = dims.canonical(sympy.cancel(sympy.sympify(size) / divisor))
    return quotient if isinstance(quotient, int) or dims.is_size(quotient) else None


def bind(axis: Axis, kind: str, parts: Sequence[Axis]) -> None:
    """Let a leaf be a product or a sum of these; anything else is unified with it."""
    root = axis.root
    if not root.parts:
        if root.fixed:
            _fix_all(parts, root.fixed)
        root.kind, root.parts = kind, list(parts)
        return
    made = Axis(root.size)
    made.kind, made.parts = kind, list(parts)
    unify(root, made)


def _fix_all(axes: Iterable[Axis], reason: str) -> None:
    for axis in axes:
        fix(axis, reason)


class Axes:
    """The axes of every tensor of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._axes: dict[Value, list[Axis]] = {}

    def of(self, value: Value) -> list[Axis]:
        """One term per dimension; sizes of 1 and symbolic ones are fixed from the start."""
        if value not in self._axes:
            self._axes[value] = [Axis(size, _why_fixed(size)) for size in value.tensor_type.shape]
        return self._axes[value]

    def fix(self, values: Iterable[Value], reason: str) -> None:
        """All axes of these tensors stay as they are."""
        for value in values:
            if isinstance(value.type, TensorType):
                _fix_all(self.of(value), reason)

    def shape(self, value: Value, kept: Mapping[Axis, torch.Tensor]) -> tuple[Dim, ...]:
        """The shape that the value has after the cut."""
        return tuple(new_size(axis, kept) for axis in self.of(value))


def _why_fixed(size: Dim) -> str:
    if not isinstance(size, int):
        return "its size is dynamic"
    return "" if size > 1 else "there is one of it"


def indices(axis: Axis, kept: Mapping[Axis, torch.Tensor]) -> torch.Tensor | None:
    """Which indices of a static axis stay, int64 and rising; None where all do."""
    root = axis.root
    if root in kept:
        return kept[root]
    inner = [indices(part, kept) for part in root.parts]
    if all(i is None for i in inner):
        return None
    whole = [torch.arange(int(p.size)) if i is None else i for p, i in zip(root.parts, inner, strict=True)]
    if root.kind == SUM:
        starts = torch.tensor([0, *(int(p.size) for p in root.parts)]).cumsum(0)
        return torch.cat([i + start for i, start in zip(whole, starts, strict=False)])
    found = torch.zeros(1, dtype=torch.int64)
    for part, index in zip(root.parts, whole, strict=True):
        found = (found[:, None] * int(part.size) + index).flatten()
    return found


def coordinates(axis: Axis, leaf: Axis) -> torch.Tensor:
    """For each position of a static axis, which index of a leaf it belongs to: int64, -1 for none."""
    root = axis.root
    size = int(root.size)
    if root is leaf.root:
        return torch.arange(size)
    found = [coordinates(part, leaf) for part in root.parts]
    if root.kind == SUM:
        return torch.cat(found)
    inner = size
    made = torch.full((size,), -1)
    for part, own in zip(root.parts, found, strict=True):
        inner //= int(part.size)
        spread = own[torch.arange(size) // inner % int(part.size)]
        made = torch.where(spread >= 0, spread, made)
    return made


def new_size(axis: Axis, kept: Mapping[Axis, torch.Tensor]) -> Dim:
    """The size of an axis after the cut; a dynamic one counts its static factors anew."""
    root = axis.root
    if root in kept:
        return len(kept[root])
    if not root.parts:
        return root.size
    sizes = tuple(new_size(part, kept) for part in root.parts)
    return dims.product(sizes) if root.kind == PRODUCT else dims.canonical(sum(sizes))


__all__ = [
    "PRODUCT",
    "SUM",
    "Axes",
    "Axis",
    "bind",
    "coordinates",
    "fix",
    "indices",
    "new_size",
    "unify",
    "unify_products",
]
