"""The functions of a kernel file beside the kernel: launch, examples, captured, work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capture.errors import UnsupportedOpError
from capture.ir import Range
from capture.ir.dims import canonical, evaluate, format_dim, free_names, is_symbolic
from capture.ir.types import CHANNELS_LAST, STRIDED
from codegen.triton.space import Operand, Space

_TYPICAL = 128  # what a size that varies is captured with, within its range
_CASES = {  # sizes to check with, by the number of axes that vary
    0: [()],
    1: [(1,), (7,), (127,), (128,), (129,), (1000,), (0,)],
    2: [(1, 1), (7, 129), (127, 8), (3, 1000), (0, 5), (5, 128)],
    3: [(1, 1, 1), (2, 7, 129), (3, 5, 127), (0, 3, 4), (2, 3, 128)],
    4: [(1, 1, 1, 1), (2, 3, 5, 7), (1, 7, 3, 129), (2, 0, 3, 4), (2, 2, 8, 8)],
}


@dataclass(frozen=True)
class Tensors:
    """What a kernel reads and writes, in its space.

    Attributes:
        inputs, results: operands of the space.
        dims: ranges of the graph's symbolic sizes.
        below: exclusive upper bound of whole numbers in an input, as text, where not every value will do.
        multiples: for axes whose size must be a multiple of a number.
    """

    space: Space
    inputs: Sequence[Operand]
    results: Sequence[Operand]
    dims: Mapping[str, Range]
    below: Mapping[str, str]
    multiples: Mapping[int, int]

    def axes(self) -> list[int]:
        """The axes whose size the inputs tell."""
        return [a for a in range(len(self.space.shape)) if self._teller(a) is not None]

    def _teller(self, axis: int) -> Operand | None:
        return next((o for o in self.inputs if o.axes[axis] is not None), None)

    def size(self, axis: int) -> str:
        """The size of an axis in `launch`.

        Raises:
            UnsupportedOpError: none of the inputs tells it, and it is not constant.
        """
        if self._teller(axis) is not None:
            return f"s{axis}"
        size = self.space.shape[axis]
        if is_symbolic(size):
            raise UnsupportedOpError("none of the tensors that it reads tells a size of its result")
        return str(size)

    def shape(self, operand: Operand) -> str:
        """A tensor's shape in `launch`: ``(s0, 1, s2)``."""
        at = {own: axis for axis, own in enumerate(operand.axes) if own is not None}
        return tuple_of([self.size(at[own]) if own in at else "1" for own in range(operand.type.rank)])

    def unpacking(self) -> list[str]:
        """Lines that read the sizes off the inputs: ``s0, s1 = x.shape``."""
        axes = self.axes()
        for operand in self.inputs:
            own = [operand.axes[axis] for axis in axes]
            if axes and own == list(range(operand.type.rank)):
                return [f"{tuple_of([f's{a}' for a in axes])[1:-1]} = {operand.name}.shape"]
        found = []
        for axis in axes:
            teller = self._teller(axis)
            assert teller is not None
            found.append(f"s{axis} = {teller.name}.shape[{teller.axes[axis]}]")
        return found

    def checks(self) -> list[str]:
        names = tuple_of([o.name for o in self.inputs])
        return spread("expect(", [names, tuple_of([self.shape(o) for o in self.inputs])], ")", 0, 106)

    def dense(self) -> list[str]:
        """Lines that copy what does not lie in memory as the kernel reads it."""
        lines = []
        for operand in self.inputs:
            if operand.type.memory_format == CHANNELS_LAST:
                given = f"{operand.name}.contiguous(memory_format=torch.channels_last)"
            elif operand.type.rank == 0 or operand.is_strided:
                continue
            else:
                given = f"{operand.name}.contiguous()"
            lines.append(f"{operand.name} = {given}")
        return lines

    def allocations(self) -> list[str]:
        """Lines that make the results."""
        device = f"{self.inputs[0].name}.device"
        lines = []
        for operand in self.results:
            options = f"dtype={operand.type.dtype}, device={device}"
            if operand.type.memory_format == CHANNELS_LAST:
                options += ", memory_format=torch.channels_last"
            like = self._like(operand)
            if like is not None:
                lines.append(f"{operand.name} = torch.empty_like({like}, {options})")
            else:
                lines.append(f"{operand.name} = torch.empty({self.shape(operand)}, {options})")
        return lines

    def _like(self, result: Operand) -> str | None:
        """The input whose order of memory a strided result takes over."""
        if result.type.memory_format != STRIDED:
            return None
        alike = [o for o in self.inputs if o.is_strided and o.type.shape == result.type.shape]
        if not alike:
            raise UnsupportedOpError("its result has an order of memory that no tensor it reads has")
        return alike[0].name

    def example_function(self, without_empty: Sequence[int] = (), long_axis: int | None = None) -> str:
        """`examples`: several sizes, gaps in memory, special values.

        Args:
            without_empty: axes that are not to be of size 0.
            long_axis: one that is to be long once.
        """
        axes = self.axes()
        many = [(1,) * len(axes), tuple(2 + i % 3 for i in range(len(axes)))]
        scaled = []
        long = [tuple(5000 if axis == long_axis else 2 for axis in axes)] if long_axis in axes else []
        for case in (*long, *_CASES.get(len(axes), many)):
            sizes = [size * self.multiples.get(axis, 1) for axis, size in zip(axes, case, strict=True)]
            if not any(size == 0 and axis in without_empty for axis, size in zip(axes, sizes, strict=True)):
                scaled.append(tuple_of([str(size) for size in sizes]))
        names = tuple_of([f"s{axis}" for axis in axes])[1:-1]
        lines = ['def examples(device="cpu"):', '    """Odd sizes, memory with gaps, special values."""']
        lines.append("    found = []")
        if not axes:
            lines += [*self._inputs("inputs = ", 4), '    found.append(("fixed", inputs))']
        else:
            label = "x".join(f"{{s{axis}}}" for axis in axes)
            lines += spread(f"for {names} in (", scaled, "):", 4)
            lines += [*self._inputs("inputs = ", 8), f'        found.append((f"{label}", inputs))']
        lines.append('    found.append(("gaps in memory", tuple(map(spaced, inputs))))')
        lines.append('    found.append(("special values", tuple(map(special, inputs))))')
        return "\n".join([*lines, "    return found"])

    def captured_function(self) -> str:
        env = {name: typical(self.dims.get(name, Range())) for name in free_names(self.space.shape)}
        sizes = {axis: evaluate(size, env) for axis, size in enumerate(self.space.shape)}
        lines = ['def captured(device="cpu"):', '    """Random inputs of the sizes that were captured."""']
        axes = self.axes()
        if axes:
            names = ", ".join(f"s{axis}" for axis in axes)
            lines.append(f"    {names} = {', '.join(str(sizes[axis]) for axis in axes)}")
        return "\n".join([*lines, *self._inputs("return ", 4)])

    def _inputs(self, head: str, indent: int) -> list[str]:
        """Lines that make the tuple of inputs."""
        made = []
        for o in self.inputs:
            below = f", below={self.below[o.name]}" if o.name in self.below else ""
            text = f"random({self.shape(o)}, {o.type.dtype}, device{below})"
            if o.type.memory_format == CHANNELS_LAST:
                text = f"{text}.contiguous(memory_format=torch.channels_last)"
            made.append(f"spaced({text})" if o.is_strided else text)
        return spread(f"{head}(", [*made, ""] if len(made) == 1 else made, ")", indent)

    def moved(self) -> str:
        """What the kernel reads and writes at least, as captured."""
        count = sum((o.type.nbytes for o in (*self.inputs, *self.results)), 0)
        return f"Moves {format_dim(canonical(count))} bytes at least as captured."

    def work_function(self, flops: int) -> str:
        """`work`: what the tensors hold, and `flops` operations an element of the space."""
        names = ", ".join(o.name for o in self.inputs)
        count = " * ".join(self.size(a) for a in range(len(self.space.shape)) if self.space.shape[a] != 1)
        writes = [f"{o.type.dtype.itemsize} * {_product(self.shape(o))}" for o in self.results]
        return "\n".join(
            [
                f"def work({names}):",
                '    """Bytes read and written at least, floating-point operations."""',
                *(f"    {line}" for line in self.unpacking()),
                f"    return nbytes({names}) + {' + '.join(writes)}, {flops} * {count or 1}",
            ]
        )


def typical(range_: Range) -> int:
    """The size that a file's captured inputs have where a size varies."""
    upper = range_.upper if range_.upper is not None else math.inf
    return int(max(range_.lower, min(_TYPICAL, upper)))


def _product(shape: str) -> str:
    parts = [part for part in shape.strip("()").split(", ") if part.strip(",") not in ("", "1")]
    return " * ".join(part.strip(",") for part in parts) or "1"


def spread(head: str, items: Sequence[str], tail: str, indent: int, width: int = 110) -> list[str]:
    """``head item, item tail`` on one line where it fits; else the items on as many lines as they need."""
    space = " " * indent
    line = f"{space}{head}{', '.join(items).strip()}{tail}"
    if len(line) <= width:
        return [line]
    lines = [f"{space}{head}"]
    for item in filter(None, items):
        if len(lines) > 1 and len(lines[-1]) + len(item) + 2 <= width:
            lines[-1] += f" {item},"
        else:
            lines.append(f"{space}    {item},")
    return [*lines, f"{space}{tail}"]


def tuple_of(items: Sequence[str]) -> str:
    """A tuple's text: ``(a,)``, ``(a, b)``."""
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


__all__ = ["Tensors", "spread", "tuple_of", "typical"]
