"""Index algebra: where in memory the element at a coordinate lies, as an expression over sizes and strides.

    x [N, C, H, W], bias [C]          axes of x and bias, coalesced: N, C, H*W
    x + bias.view(C, 1, 1)     ==>    x: index        bias: (index // HW) % C

A `View` says how an element of a result is found in its source: permutes, slices, broadcasts and reshapes
are coordinate expressions, padding adds conditions under which there is a source element at all. `offset`
gives the place in memory of the element with a flat number. Expressions are sympy's over non-negative
integers; `simplify` uses that a coordinate is smaller than its axis' size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import sympy
from torch.utils._sympy.functions import FloorDiv, PythonMod

from capture.ir import dims
from capture.ir.dims import Dim

INT32_MAX = 2**31 - 1


def coordinate(axis: int) -> sympy.Symbol:
    """The coordinate along an axis: a non-negative integer."""
    return sympy.Symbol(f"i{axis}", integer=True, nonnegative=True)


def contiguous_strides(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """Strides, in elements, of a dense row-major tensor."""
    return tuple(dims.product(tuple(shape[axis + 1 :])) for axis in range(len(shape)))


def coalesce(shape: Sequence[Dim], strides: Sequence[Sequence[Dim]]) -> list[tuple[int, ...]]:
    """The axes in groups that every operand steps through evenly, so that each group may be one axis.

    Axes of size 1 are left out. An inner group that is contiguous in all operands is one plain loop.

    Args:
        strides: of each operand along each axis; 0 where it is broadcast.
    """
    groups: list[list[int]] = []
    for axis in (axis for axis, size in enumerate(shape) if size != 1):
        if groups and all(_even(s, shape, groups[-1][-1], axis) for s in strides):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return [tuple(group) for group in groups]


def _even(strides: Sequence[Dim], shape: Sequence[Dim], outer: int, inner: int) -> bool:
    return _same(strides[outer], dims.product((strides[inner], shape[inner])))


def _same(a: Dim, b: Dim) -> bool:
    return bool(a == b) or bool(sympy.expand(a) == sympy.expand(b))


def offset(flat: sympy.Expr, shape: Sequence[Dim], strides: Sequence[Dim]) -> sympy.Expr:
    """Where the element with number `flat`, counted row-major through `shape`, lies in memory.

    Each run of axes that the operand steps through evenly costs one division and one modulus at most; a
    contiguous operand costs none.
    """
    kept = [axis for axis, size in enumerate(shape) if size != 1]
    total: sympy.Expr = sympy.Integer(0)
    for run in coalesce(shape, [strides]):
        inner = dims.product(tuple(shape[axis] for axis in kept if axis > run[-1]))
        size = dims.product(tuple(shape[axis] for axis in run))
        place = FloorDiv(flat, inner) if inner != 1 else flat
        if run[0] != kept[0]:
            place = PythonMod(place, size)
        total += place * strides[run[-1]]
    return total


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """One past the largest offset of an element; 0 where there is none."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def needs_int64(extents: Sequence[int]) -> bool:
    """Whether offsets into some operand do not fit 32 bits."""
    return max(extents, default=0) > INT32_MAX


@dataclass(frozen=True)
class View:
    """How an element of a result is found in its source.

    Attributes:
        shape: sizes of the result.
        source: sizes of the source.
        coords: for each axis of the source, its coordinate as an expression over `coordinate(axis)`.
        inside: (expression, size): the source has an element where 0 <= expression < size for all of them.
    """

    shape: tuple[Dim, ...]
    source: tuple[Dim, ...]
    coords: tuple[sympy.Expr, ...]
    inside: tuple[tuple[sympy.Expr, Dim], ...] = ()

    @staticmethod
    def of(shape: Sequence[Dim]) -> View:
        """The tensor itself."""
        return View(tuple(shape), tuple(shape), tuple(map(coordinate, range(len(shape)))))

    def permute(self, order: Sequence[int]) -> View:
        at = {axis: coordinate(new) for new, axis in enumerate(order)}
        return self._with([self.shape[axis] for axis in order], at)

    def expand(self, shape: Sequence[Dim]) -> View:
        """Broadcast axes of size 1, and put new ones before the first."""
        new = len(shape) - len(self.shape)
        at: dict[int, Any] = {}
        for axis, size in enumerate(self.shape):
            same = size == shape[new + axis]
            if not same and size != 1:
                raise ValueError(f"axis {axis} of size {size} cannot become {shape[new + axis]}")
            at[axis] = coordinate(new + axis) if same else sympy.Integer(0)
        return self._with(shape, at)

    def slice(self, axis: int, start: Dim, stop: Dim, step: int = 1) -> View:
        """Elements start, start + step, ... before stop, where 0 <= start <= stop <= size and step > 0."""
        count = dims.canonical(FloorDiv(sympy.sympify(stop) - start + step - 1, step))
        shape = [*self.shape[:axis], count, *self.shape[axis + 1 :]]
        return self._with(shape, {axis: start + coordinate(axis) * step})

    def select(self, axis: int, index: Dim) -> View:
        at: dict[int, Any] = {a: coordinate(a - (a > axis)) for a in range(len(self.shape))}
        at[axis] = sympy.sympify(index)
        return self._with([*self.shape[:axis], *self.shape[axis + 1 :]], at)

    def reshape(self, shape: Sequence[Dim]) -> View:
        """The same elements in row-major order; as many of them."""
        if not _same(dims.product(tuple(shape)), dims.product(self.shape)):
            raise ValueError(f"{list(self.shape)} cannot become {list(shape)}")
        strides = contiguous_strides(shape)
        flat = sum((coordinate(a) * s for a, s in enumerate(strides)), sympy.Integer(0))
        sizes = {coordinate(axis): size for axis, size in enumerate(shape)}
        at = {}
        for axis, inner in enumerate(contiguous_strides(self.shape)):
            at[axis] = simplify(PythonMod(FloorDiv(flat, inner), self.shape[axis]), sizes)
        return self._with(shape, at)

    def pad(self, axis: int, before: int, after: int) -> View:
        """Elements around an axis that the source does not have; negative numbers cut."""
        size = self.shape[axis]
        here = coordinate(axis) - before
        shape = [*self.shape[:axis], size + before + after, *self.shape[axis + 1 :]]
        padded = self._with(shape, {axis: here})
        conditions = () if before <= 0 and after <= 0 else ((here, size),)
        return View(padded.shape, padded.source, padded.coords, (*padded.inside, *conditions))

    def offset(self, strides: Sequence[Dim], start: Dim = 0) -> sympy.Expr:
        """Where in the source's memory an element lies."""
        terms = (c * s for c, s in zip(self.coords, strides, strict=True))
        sizes = {coordinate(axis): size for axis, size in enumerate(self.shape)}
        return simplify(sum(terms, sympy.sympify(start)), sizes)

    def _with(self, shape: Sequence[Any], at: Mapping[int, Any]) -> View:
        """What this view becomes when its own coordinates are those expressions."""
        put = {coordinate(axis): at.get(axis, coordinate(axis)) for axis in range(len(self.shape))}

        def moved(expr: sympy.Expr) -> sympy.Expr:
            return expr.xreplace(put)

        inside = tuple((moved(e), size) for e, size in self.inside)
        return View(tuple(map(dims.canonical, shape)), self.source, tuple(map(moved, self.coords)), inside)


def simplify(expr: sympy.Expr, sizes: Mapping[sympy.Symbol, Dim]) -> sympy.Expr:
    """Without the divisions and moduli that cannot matter, since each symbol is below its size."""
    if not expr.args:
        return expr
    args = [simplify(arg, sizes) for arg in expr.args]
    if isinstance(expr, FloorDiv):
        return _divide(args[0], args[1], sizes)
    if isinstance(expr, PythonMod):
        return _remainder(args[0], args[1], sizes)
    made = expr.func(*args)
    return _joined(sympy.expand(made)) if isinstance(expr, (sympy.Add, sympy.Mul)) else made


def _joined(total: sympy.Expr) -> sympy.Expr:
    """A sum with ``x % d + (x // d)*d`` written as ``x``."""
    for part in total.atoms(PythonMod):
        x, by = part.args
        scale = total.coeff(part)
        if scale != 0 and total.coeff(FloorDiv(x, by)) == scale * by:
            total = sympy.expand(total - scale * part - scale * by * FloorDiv(x, by) + scale * x)
    return total


def _divide(top: sympy.Expr, by: sympy.Expr, sizes: Mapping[sympy.Symbol, Dim]) -> sympy.Expr:
    if isinstance(top, FloorDiv):  # (a // b) // c == a // (b*c)
        return _divide(top.args[0], top.args[1] * by, sizes)
    whole, rest = _split(top, by)
    if _below(rest, by, sizes):
        return whole
    return whole + FloorDiv(rest, by)


def _remainder(top: sympy.Expr, by: sympy.Expr, sizes: Mapping[sympy.Symbol, Dim]) -> sympy.Expr:
    _, rest = _split(top, by)
    return rest if _below(rest, by, sizes) else PythonMod(rest, by)


def _split(top: sympy.Expr, by: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """(q, r) with top == q*by + r, where r has no term that is a multiple of `by`."""
    whole, rest = sympy.Integer(0), sympy.Integer(0)
    for term in sympy.Add.make_args(sympy.expand(top)):
        quotient = sympy.cancel(term / by) if not term.has(FloorDiv, PythonMod) else term / by
        if quotient.is_integer and sympy.fraction(quotient)[1] == 1:
            whole += quotient
        else:
            rest += term
    return whole, rest


def _below(expr: sympy.Expr, limit: sympy.Expr, sizes: Mapping[sympy.Symbol, Dim]) -> bool:
    """Whether 0 <= expr < limit surely holds."""
    highest = _highest(expr, sizes)
    return highest is not None and bool(sympy.expand(limit - highest).is_positive)


def _highest(expr: sympy.Expr, sizes: Mapping[sympy.Symbol, Dim]) -> sympy.Expr | None:
    """A bound that a sum of non-negative terms does not exceed; None where one may be negative."""
    total = sympy.Integer(0)
    for term in sympy.Add.make_args(expr):
        factors = [_highest_factor(f, sizes) for f in sympy.Mul.make_args(term)]
        if any(f is None for f in factors):
            return None
        total += reduce(lambda a, b: a * b, factors)
    return sympy.expand(total)


def _highest_factor(factor: sympy.Expr, sizes: Mapping[sympy.Symbol, Dim]) -> sympy.Expr | None:
    if factor in sizes:
        return sympy.sympify(sizes[factor]) - 1
    if isinstance(factor, PythonMod):
        return factor.args[1] - 1
    if isinstance(factor, FloorDiv):
        top = _highest(factor.args[0], sizes)
        return FloorDiv(top, factor.args[1]) if top is not None and factor.args[1].is_number else None
    return factor if factor.is_nonnegative else None


__all__ = [
    "INT32_MAX",
    "View",
    "coalesce",
    "contiguous_strides",
    "coordinate",
    "extent",
    "needs_int64",
    "offset",
    "simplify",
]
