"""Symbolic sizes as ONNX: each dim read off a tensor once by Shape, size arithmetic shared.

N            Shape(x)[0:1]                          every size is an int64 vector of one element,
2*N + 1      Add(Mul(N, [2]), [1])                  ready to be concatenated into a shape
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as oir
import sympy

from capture.errors import CaptureError
from capture.ir import dims
from capture.ir.dims import Dim
from capture.ir.types import ScalarType, TensorType, ValueType

if TYPE_CHECKING:
    from codegen.onnx.builder import Builder, Scope


@dataclass(frozen=True)
class Source:
    """Where a dim can be read: an axis of a tensor whose size is `expr`, linear in the dim; or a number."""

    value: oir.Value
    axis: int | None
    expr: sympy.Expr


class SizeTable:
    """Sizes as values of the ONNX graph; each is computed in the outermost scope that knows its dims."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder

    def learn(self, value: oir.Value, type: ValueType) -> None:
        """Note the dims that a value tells: those of its shape, or the size that it is."""
        if isinstance(type, ScalarType) and isinstance(type.expr, sympy.Symbol):
            self._note(type.expr, Source(value, None, type.expr))
        if isinstance(type, TensorType):
            for axis, dim in enumerate(type.shape):
                unknown = [s for s in getattr(dim, "free_symbols", ()) if self._scope_of(s) is None]
                if len(unknown) == 1 and _slope(dim, unknown[0]):
                    self._note(unknown[0], Source(value, axis, dim))

    def vector(self, dim: Dim) -> oir.Value:
        """The size as an int64 tensor of shape [1].

        Raises:
            CaptureError: no input or result tells one of the dims, or the expression is outside the grammar.
        """
        if isinstance(dim, int):
            return self._builder.const([dim])
        with self._home(dim):
            try:
                return self._traced(dim).value
            except ValueError as error:
                raise CaptureError(
                    f"the size {dim} has no ONNX form",
                    where=self._builder.where,
                    why=str(error),
                    hint="make that dimension static",
                ) from error

    def scalar(self, dim: Dim, dtype: oir.DataType) -> oir.Value:
        """The size as a tensor of shape []."""
        with self._home(dim):
            size = self.shared("Squeeze", self.vector(dim))
            return size if dtype == oir.DataType.INT64 else self.shared("Cast", size, to=dtype)

    def shared(self, op_type: str, *inputs: oir.Value, **attributes: Any) -> oir.Value:
        """The output of such a node on these inputs, made where there is none yet."""
        key = (op_type, *(id(v) for v in inputs), *attributes.items())
        for scope in self._builder.scope.outwards():
            if key in scope.shared:
                return scope.shared[key]
        with self._builder.named("sizes"):
            made: oir.Value = self._builder.call(op_type, *inputs, **attributes)
        made.dtype = oir.DataType(attributes.get("to", oir.DataType.INT64))
        self._builder.scope.shared[key] = made
        return made

    def _note(self, symbol: sympy.Basic, source: Source) -> None:
        self._builder.scope.dims.setdefault(str(symbol), source)

    def _scope_of(self, symbol: sympy.Basic) -> Scope | None:
        return next((s for s in self._builder.scope.outwards() if str(symbol) in s.dims), None)

    @contextmanager
    def _home(self, dim: Dim) -> Iterator[None]:
        """Emit where the innermost of the expression's dims is known: outside of a branch, where possible."""
        homes = [self._scope_of(s) for s in getattr(dim, "free_symbols", ())]
        innermost = max(
            (s for s in homes if s is not None), key=lambda s: s.depth, default=self._builder.scope
        )
        with self._builder.within(innermost):
            yield

    def _traced(self, dim: Dim) -> _Size:
        def extreme(op_type: str) -> Any:
            return lambda a, b: self.wrap(a).apply(op_type, b)

        return self.wrap(dims.fold(dim, self._symbol, minimum=extreme("Min"), maximum=extreme("Max")))

    def wrap(self, size: _Size | int) -> _Size:
        return _Size(self, self._builder.const([size]), size >= 0) if isinstance(size, int) else size

    def _symbol(self, symbol: sympy.Symbol) -> _Size:
        """Read the dim; where its source is ``slope * symbol + rest``, solve for it."""
        scope = self._scope_of(symbol)
        if scope is None:
            raise CaptureError(
                f"no input tells the size {symbol}",
                where=self._builder.where,
                why="it is no dimension of an input or earlier result, alone or scaled and shifted",
                hint="pass a tensor that has this size as a dimension of its own",
            )
        source = scope.dims[str(symbol)]
        with self._builder.within(scope):
            if source.axis is None:
                read = self.shared("Reshape", source.value, self._builder.const([1]))
            else:
                read = self.shared("Shape", source.value, start=source.axis, end=source.axis + 1)
            size = _Size(self, read, nonnegative=True)
            if source.expr == symbol:
                return size
            rest = dims.canonical(source.expr.subs(symbol, 0))
            solved = (size - self._traced(rest)) // (_slope(source.expr, symbol) or 1)
            return _Size(self, solved.value, nonnegative=True)


class _Size:
    """A size under Python arithmetic; each operation emits (or finds) an ONNX node."""

    def __init__(self, table: SizeTable, value: oir.Value, nonnegative: bool) -> None:
        self.table, self.value, self.nonnegative = table, value, nonnegative

    def apply(self, op_type: str, other: _Size | int) -> _Size:
        b = self.table.wrap(other)
        nonnegative = op_type != "Sub" and self.nonnegative and b.nonnegative
        return _Size(self.table, self.table.shared(op_type, self.value, b.value), nonnegative)

    def __add__(self, other: _Size | int) -> _Size:
        return self.apply("Add", other)

    def __sub__(self, other: _Size | int) -> _Size:
        return self.apply("Sub", other)

    def __mul__(self, other: _Size | int) -> _Size:
        return self.apply("Mul", other)

    def __mod__(self, other: _Size | int) -> _Size:
        return self.apply("Mod", other)  # ONNX's integer Mod takes the divisor's sign, as Python's

    def __floordiv__(self, other: _Size | int) -> _Size:
        divisor = self.table.wrap(other)
        exact = self if self.nonnegative and divisor.nonnegative else self - self % divisor
        return exact.apply("Div", divisor)  # ONNX's Div truncates towards zero

    def __rfloordiv__(self, other: int) -> _Size:
        return self.table.wrap(other) // self

    def __rmod__(self, other: int) -> _Size:
        return self.table.wrap(other) % self

    __radd__ = __add__
    __rmul__ = __mul__


def _slope(dim: Any, symbol: sympy.Basic) -> int | None:
    """The integer factor of `symbol` in an expression linear in it, or None."""
    slope = dim.diff(symbol) if not dim.atoms(sympy.Function) else None
    return int(slope) if slope is not None and slope.is_Integer and slope != 0 else None
