"""The space that a kernel walks through, and where each of its tensors lies in it.

    x [N, C, H, W] channels-last, bias [C]    sizes s0 s1 s2 s3, walked in the order of x's memory: N, H, W, C
                                              groups D0 = s0*s2*s3, D1 = s1: x at index, bias at index % D1

A tensor is contiguous, channels-last or strided; of a strided one the strides are arguments of the kernel.
Sizes are arguments too (constants, where the graph's are static), so that one file serves all sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import sympy

from capture.errors import UnsupportedOpError
from capture.ir import TensorType
from capture.ir.dims import Dim, format_dim
from capture.ir.types import CHANNELS_LAST, CONTIGUOUS, STRIDED
from codegen.triton import index


def size_symbol(axis: int) -> sympy.Symbol:
    return sympy.Symbol(f"s{axis}", integer=True, positive=True)


def group_symbol(group: int) -> sympy.Symbol:
    return sympy.Symbol(f"D{group}", integer=True, positive=True)


def count_symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, integer=True, positive=True)


@dataclass(frozen=True)
class Operand:
    """A tensor of a kernel.

    Attributes:
        name: in the kernel's text.
        type: as captured.
        axes: for each axis of the space, the tensor's own axis, or None where it is broadcast.
    """

    name: str
    type: TensorType
    axes: tuple[int | None, ...]

    @property
    def order(self) -> list[int]:
        """The space's axes that the tensor varies over, outermost in memory first."""
        at = {own: axis for axis, own in enumerate(self.axes) if own is not None}
        ranks = (0, 2, 3, 1) if self.type.memory_format == CHANNELS_LAST else range(self.type.rank)
        return [at[own] for own in ranks if own in at]

    @property
    def is_strided(self) -> bool:
        return self.type.memory_format == STRIDED

    def stride_symbol(self, axis: int) -> sympy.Symbol:
        return sympy.Symbol(f"{self.name}_{self.axes[axis]}", integer=True, nonnegative=True)

    def strides(self, sizes: dict[int, Dim]) -> dict[int, Dim]:
        """Elements between neighbours along each axis of the space; 0 where broadcast.

        Args:
            sizes: of the axes.
        """
        found: dict[int, Dim] = dict.fromkeys(range(len(self.axes)), 0)
        if self.is_strided:
            return found | {axis: self.stride_symbol(axis) for axis in self.order}
        step: Dim = 1
        for axis in reversed(self.order):
            found[axis] = step
            step = step * sizes[axis]
        return found


def place(type_: TensorType, shape: Sequence[Dim]) -> tuple[int | None, ...]:
    """The tensor's own axis for each axis of `shape`, which it is broadcast to.

    Raises:
        UnsupportedOpError: it cannot be, or its memory format is none that kernels read.
    """
    new = len(shape) - type_.rank
    axes: list[int | None] = [None] * len(shape)
    for own, size in enumerate(type_.shape):
        if new + own < 0 or (size != 1 and size != shape[new + own]):
            raise UnsupportedOpError(f"{type_} is not broadcast to {[format_dim(d) for d in shape]}")
        if shape[new + own] != 1:
            axes[new + own] = own if size != 1 else None
    if type_.memory_format not in (CONTIGUOUS, CHANNELS_LAST, STRIDED):
        raise UnsupportedOpError(f"no kernel reads {type_.memory_format}")
    return tuple(axes)


@dataclass(frozen=True)
class Space:
    """Axes, in parts that are each counted by one flat number: all of them, or rows and columns.

    Attributes:
        shape: sizes as captured.
        parts: axes of each part, outermost first.
        operands: every tensor, results too.
        counts: for each part, the name of its size in the kernel, where it has one.
    """

    shape: tuple[Dim, ...]
    parts: tuple[tuple[int, ...], ...]
    operands: tuple[Operand, ...]
    counts: tuple[str, ...] = ()

    @cached_property
    def groups(self) -> list[list[tuple[int, ...]]]:
        """Per part, the axes that may be counted as one."""
        sizes = {axis: size_symbol(axis) if size != 1 else 1 for axis, size in enumerate(self.shape)}
        made = [operand.strides(sizes) for operand in self.operands]
        found = []
        for part in self.parts:
            strides = [[s[axis] for axis in part] for s in made]
            positions = index.coalesce([sizes[axis] for axis in part], strides)
            found.append([tuple(part[i] for i in group) for group in positions])
        return found

    @cached_property
    def numbered(self) -> dict[tuple[int, ...], sympy.Symbol]:
        """The size of each group as a symbol."""
        found = {}
        for part, groups in enumerate(self.groups):
            for group in groups:
                named = len(groups) == 1 and part < len(self.counts)
                found[group] = count_symbol(self.counts[part]) if named else group_symbol(len(found))
        return found

    def offset(self, operand: Operand, part: int, flat: str) -> sympy.Expr:
        """Where in memory the operand's element lies, as far as this part's flat number tells."""
        sizes = {group[-1]: symbol for group, symbol in self.numbered.items()}
        sizes |= {axis: 1 for group in self.numbered for axis in group[:-1]}
        strides = operand.strides({axis: sizes.get(axis, 1) for axis in range(len(self.shape))})
        groups = self.groups[part]
        symbol = sympy.Symbol(flat, integer=True, nonnegative=True)
        return index.offset(symbol, [self.numbered[g] for g in groups], [strides[g[-1]] for g in groups])

    def sizes_used(self, exprs: Iterable[sympy.Expr]) -> list[tuple[str, tuple[int, ...]]]:
        """(name, axes) of the groups whose sizes some expression mentions."""
        used = {s.name for e in exprs for s in e.free_symbols}
        used -= set(self.counts)
        return [(symbol.name, group) for group, symbol in self.numbered.items() if symbol.name in used]

    def strides_used(self, exprs: Iterable[sympy.Expr]) -> list[tuple[str, str]]:
        """(name, expression in `launch`) of the strides that some expression mentions."""
        used = {s.name for e in exprs for s in e.free_symbols}
        return [
            (name, f"{operand.name}.stride({operand.axes[axis]})")
            for operand in self.operands
            if operand.is_strided
            for axis in operand.order
            if (name := operand.stride_symbol(axis).name) in used
        ]


def text_of(expr: sympy.Expr) -> str:
    """An index expression in Triton."""
    return format_dim(expr)


__all__ = ["Operand", "Space", "group_symbol", "place", "size_symbol", "text_of"]
