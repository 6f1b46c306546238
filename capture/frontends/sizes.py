"""Torch's symbolic sizes -> the graph's dims: readable names, ranges, expressions in the IR's grammar."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch.utils._sympy import functions as tsf

from capture.errors import CaptureError
from capture.ir import Dim, Graph, Range, TensorType, dims
from capture.ir.types import format_of

__all__ = ["Sizes", "as_expr", "truth"]

_UNBOUNDED = 2**31 * 2**31  # torch writes "no upper bound" as int_oo or as a number of about 2**63


def as_expr(value: Any) -> sympy.Basic:
    """The sympy expression of a SymInt, SymFloat or SymBool; of a number, the number."""
    node = getattr(value, "node", None)
    return sympy.sympify(value) if node is None else node.expr  # sympify of a number, never of text


class Sizes:
    """The names that a graph gives to torch's symbols, and the conversions that need them."""

    def __init__(self, graph: Graph, ranges: Mapping[sympy.Symbol, Any] | None = None) -> None:
        self.graph = graph
        self.names: dict[sympy.Symbol, sympy.Symbol] = {}
        self._ranges = dict(ranges or {})

    def name(self, torch_symbol: sympy.Symbol, wanted: str) -> None:
        """Give a torch symbol a name, if it has none; the name is made unique and fit for the grammar."""
        if torch_symbol in self.names:
            return
        cleaned = re.sub(r"\W", "_", wanted) or "dim"
        if cleaned[0].isdigit() or keyword.iskeyword(cleaned) or cleaned in ("min", "max"):
            cleaned = f"dim_{cleaned}"
        if not _is_unbacked(torch_symbol) and re.fullmatch(r"u\d+", cleaned):
            cleaned = f"{cleaned}_"
        unique, n = cleaned, 1
        while unique in self.graph.dims:
            unique, n = f"{cleaned}_{n}", n + 1
        self.names[torch_symbol] = dims.symbol(unique)
        self.graph.dims[unique] = self._range(torch_symbol)

    def name_input(self, name: str, value: Any, wanted: Mapping[int, str] | None = None) -> None:
        """Name the symbols that an input defines: as the user called them, else ``x_dim0``.

        Args:
            value: the fake tensor, or the SymInt, of the input.
            wanted: the user's names by axis; -1 stands for the value of a SymInt.
        """
        wanted = wanted or {}
        sizes = enumerate(value.shape) if isinstance(value, torch.Tensor) else [(-1, value)]
        for axis, size in sizes:
            expr = as_expr(size) if isinstance(size, torch.SymInt) else None
            if expr is None or len(expr.free_symbols) != 1:
                continue
            (symbol,) = expr.free_symbols
            if axis in wanted or isinstance(expr, sympy.Symbol):
                self.name(symbol, wanted.get(axis, name if axis < 0 else f"{name}_dim{axis}"))

    def size(self, value: Any) -> Dim:
        """An int, SymInt or torch expression as a size of the graph.

        Raises:
            CaptureError: the expression cannot be written as a size.
        """
        if isinstance(value, int):
            return value
        expr = value if isinstance(value, sympy.Basic) else as_expr(value)
        try:
            return dims.normalise(self._renamed(expr))
        except (ValueError, TypeError) as error:
            raise CaptureError(
                f"the size {expr} cannot be written as a size expression", why=str(error)
            ) from error

    def _renamed(self, expr: sympy.Basic) -> Any:
        for symbol in sorted(expr.free_symbols, key=str):
            if symbol not in self.names:
                count = sum(_is_unbacked(s) for s in self.names)
                self.name(symbol, f"u{count}" if _is_unbacked(symbol) else "dim")
        renamed = expr.xreplace(self.names)
        return (
            renamed.replace(tsf.CeilToInt, _ceil)
            .replace(tsf.TruncToInt, _floor)
            .replace(tsf.FloorToInt, _floor)
        )

    def truth(self, expr: sympy.Basic) -> Dim:
        """A condition on sizes, as a size that is zero where the condition is false."""
        return self.size(truth(expr))

    def holds_always(self, expr: sympy.Basic) -> bool:
        """Whether the inputs' ranges imply a condition, or it only says that a size is not negative."""
        expr = sympy.sympify(expr)
        if expr in (sympy.true, sympy.false):
            return bool(expr)
        if not isinstance(expr, (sympy.Ge, sympy.Gt, sympy.Le, sympy.Lt)) or len(expr.free_symbols) != 1:
            return False
        (symbol,) = expr.free_symbols
        if _is_unbacked(symbol):
            return bool(expr.subs(symbol, 0)) and bool(expr.subs(symbol, 1)) and expr.gts == symbol
        bounds = self.graph.dims.get(self.names[symbol].name) if symbol in self.names else None
        if bounds is None or sympy.degree(expr.lhs - expr.rhs, symbol) != 1:
            return False
        upper = sympy.oo if bounds.upper is None else bounds.upper
        return bool(expr.subs(symbol, bounds.lower)) and bool((expr.gts - expr.lts).subs(symbol, upper) >= 0)

    def type(self, tensor: torch.Tensor) -> TensorType:
        """The type of a (fake) tensor, its memory format read off its strides."""
        shape = tuple(self.size(d) for d in tensor.shape)
        strides = [self.size(s) for s in tensor.stride()]
        return TensorType(tensor.dtype, shape, format_of(shape, strides), tensor.device)

    def _range(self, torch_symbol: sympy.Symbol) -> Range:
        lower, upper = (0, None) if _is_unbacked(torch_symbol) else (1, None)
        bounds = self._ranges.get(torch_symbol)
        if bounds is not None:
            if bounds.lower.is_Integer:
                lower = max(lower, int(bounds.lower))
            if bounds.upper.is_Integer and int(bounds.upper) < _UNBOUNDED:
                upper = int(bounds.upper)
        return Range(lower, upper)


def _is_unbacked(symbol: sympy.Basic) -> bool:
    return bool(re.fullmatch(r"z?u[f]?\d+", str(symbol)))


def _ceil(inner: sympy.Expr) -> sympy.Expr:
    top, bottom = _quotient(inner)
    return tsf.FloorDiv(top + bottom - 1, bottom)


def _floor(inner: sympy.Expr) -> sympy.Expr:
    top, bottom = _quotient(inner)
    return tsf.FloorDiv(top, bottom)


def _quotient(inner: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """Numerator and denominator of a quotient of whole numbers. Raises ValueError for anything else."""
    if isinstance(inner, (tsf.IntTrueDiv, tsf.FloatTrueDiv)):
        top, bottom = (a.args[0] if isinstance(a, tsf.ToFloat) else a for a in inner.args)
    else:
        top, bottom = inner.as_numer_denom()
    if not (top.is_integer and bottom.is_integer and bottom.is_positive):
        raise ValueError(f"{inner} is not a quotient of whole numbers")
    return top, bottom


def truth(expr: sympy.Basic) -> sympy.Expr:
    """A condition as an expression that is zero where it is false and positive where it is true.

    Raises:
        ValueError: the condition is not made of comparisons of whole numbers.
    """
    if expr in (sympy.true, sympy.false):
        return sympy.Integer(bool(expr))
    if isinstance(expr, sympy.And):
        return sympy.Mul(*(truth(a) for a in expr.args))
    if isinstance(expr, sympy.Or):
        return sympy.Add(*(truth(a) for a in expr.args))
    if isinstance(expr, sympy.Not):
        return tsf.Max(0, 1 - truth(expr.args[0]))
    if isinstance(expr, (sympy.Ge, sympy.Le)):
        return tsf.Max(0, expr.gts - expr.lts + 1)
    if isinstance(expr, (sympy.Gt, sympy.Lt)):
        return tsf.Max(0, expr.gts - expr.lts)
    if isinstance(expr, (sympy.Eq, sympy.Ne)):
        apart = tsf.Max(expr.lhs - expr.rhs, expr.rhs - expr.lhs)
        return apart if isinstance(expr, sympy.Ne) else tsf.Max(0, 1 - apart)
    raise ValueError(f"{expr} is not a comparison of sizes")
