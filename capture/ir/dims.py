"""Symbolic sizes: their symbols, their small text grammar, and evaluation.

A size is a Python int or a sympy expression over the graph's dims. The grammar is
names, integers, ``+ - * // %``, ``min(...)`` and ``max(...)``; text is parsed by walking Python's own
syntax tree with a white list, because ``sympify`` would execute it.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, TypeAlias

import sympy
from torch.utils._sympy import functions as tsf

Dim: TypeAlias = int | sympy.Expr

_FLOOR_DIVS = (tsf.FloorDiv, tsf.CleanDiv)
_MODS = (tsf.PythonMod, tsf.Mod, sympy.Mod)
_MAXES = (tsf.Max, sympy.Max)
_MINS = (tsf.Min, sympy.Min)
_UNBACKED = re.compile(r"u\d+")


def symbol(name: str) -> sympy.Symbol:
    """The symbol of a dim. Sizes are taken as positive; data-dependent ones (``u0``) may be 0."""
    if _UNBACKED.fullmatch(name):
        return sympy.Symbol(name, integer=True, nonnegative=True)
    return sympy.Symbol(name, integer=True, positive=True)


def is_symbolic(dim: object) -> bool:
    return isinstance(dim, sympy.Expr) and not dim.is_number


def canonical(dim: Any) -> Dim:
    """An int where the expression is a number, else the expression."""
    if isinstance(dim, sympy.Expr):
        return int(dim) if dim.is_number else dim
    return int(dim)


def fold(
    expr: Dim,
    leaf: Callable[[sympy.Symbol], Any],
    *,
    minimum: Callable[..., Any] = min,
    maximum: Callable[..., Any] = max,
) -> Any:
    """Evaluate `expr` with Python arithmetic on what `leaf` gives for each symbol (ints, SymInts, ...).

    Raises:
        ValueError: the expression uses a function outside the grammar.
    """
    if isinstance(expr, int):
        return expr
    if isinstance(expr, sympy.Integer):
        return int(expr)
    if isinstance(expr, sympy.Symbol):
        return leaf(expr)
    args = [fold(a, leaf, minimum=minimum, maximum=maximum) for a in expr.args]
    if isinstance(expr, sympy.Add):
        return reduce(lambda a, b: a + b, args)
    if isinstance(expr, sympy.Mul):
        return reduce(lambda a, b: a * b, args)
    if isinstance(expr, _FLOOR_DIVS):
        return args[0] // args[1]
    if isinstance(expr, _MODS):
        return args[0] % args[1]
    if isinstance(expr, _MAXES):
        return reduce(maximum, args)
    if isinstance(expr, _MINS):
        return reduce(minimum, args)
    if isinstance(expr, (sympy.Pow, tsf.PowByNatural)) and isinstance(args[1], int) and args[1] >= 0:
        return reduce(lambda a, b: a * b, [args[0]] * args[1], 1)
    if isinstance(expr, sympy.floor):  # sympy turns some a//b into floor(a*Rational)
        return _floor(expr.args[0], leaf, minimum, maximum)
    raise ValueError(f"size expression {expr} uses {type(expr).__name__}, which sizes do not have")


def _floor(inner: sympy.Expr, leaf: Callable[[sympy.Symbol], Any], lo: Any, hi: Any) -> Any:
    numerator, denominator = inner.as_numer_denom()
    top = fold(canonical(numerator), leaf, minimum=lo, maximum=hi)
    return top // fold(canonical(denominator), leaf, minimum=lo, maximum=hi)


def evaluate(expr: Dim, env: Mapping[str, int]) -> int:
    """The size as an int, under `env` (symbol name -> int).

    Raises:
        KeyError: a symbol has no value in `env`.
    """
    return int(fold(expr, lambda s: env[s.name]))


def free_names(value: Any) -> set[str]:
    """Names of the dims in a size, or in any nesting of lists of operands."""
    if isinstance(value, sympy.Expr):
        return {s.name for s in value.free_symbols if isinstance(s, sympy.Symbol)}
    if isinstance(value, (list, tuple)):
        return set().union(*(free_names(v) for v in value)) if value else set()
    return set()


def format_dim(expr: Dim) -> str:
    """Text of a size, in the grammar above: what `parse_dim` reads back to the same expression."""
    if isinstance(expr, int):
        return str(expr)
    return _format(expr, 0)


def _format(e: sympy.Expr, level: int) -> str:
    """`level`: 0 inside nothing, 1 inside a sum, 2 inside a product."""
    if isinstance(e, (sympy.Integer, sympy.Symbol)):
        text = str(e)
        return f"({text})" if text.startswith("-") and level else text
    if isinstance(e, sympy.Add):
        text = _format(e.as_ordered_terms()[0], 0)
        for term in e.as_ordered_terms()[1:]:
            piece = _format(term, 0)
            text += f" - {piece[1:]}" if piece.startswith("-") else f" + {piece}"
        return f"({text})" if level else text
    if isinstance(e, sympy.Mul):
        coefficient, rest = e.as_coeff_Mul()
        if not coefficient.is_integer:
            raise ValueError(f"size expression {e} is not an integer for every value of its dims")
        factors = [_format(f, 2) for f in rest.as_ordered_factors()]
        if coefficient == -1:
            text = "-" + "*".join(factors)
        elif coefficient == 1:
            text = "*".join(factors)
        else:
            text = "*".join([str(coefficient), *factors])
        return f"({text})" if level >= 2 else text
    if isinstance(e, _FLOOR_DIVS):
        text = f"{_format(e.args[0], 2)}//{_format(e.args[1], 2)}"
        return f"({text})" if level >= 1 else text
    if isinstance(e, sympy.floor):
        top, bottom = e.args[0].as_numer_denom()
        return _format(tsf.FloorDiv(top, bottom), level)
    if isinstance(e, _MODS):
        text = f"{_format(e.args[0], 2)} % {_format(e.args[1], 2)}"
        return f"({text})" if level >= 1 else text
    if isinstance(e, _MAXES + _MINS):
        word = "max" if isinstance(e, _MAXES) else "min"
        return f"{word}({', '.join(sorted(_format(a, 0) for a in e.args))})"
    if isinstance(e, (sympy.Pow, tsf.PowByNatural)) and isinstance(e.args[1], sympy.Integer) and e.args[1] > 0:
        text = "*".join([_format(e.args[0], 2)] * int(e.args[1]))
        return f"({text})" if level >= 2 else text
    raise ValueError(f"size expression {e} uses {type(e).__name__}, which sizes do not have")


def normalise(expr: Dim) -> Dim:
    """Rewrite torch's several division and modulus functions to one of each, so that equal sizes compare equal."""
    if isinstance(expr, int):
        return expr
    return canonical(_normalise(expr))


def _normalise(e: sympy.Expr) -> sympy.Expr:
    if isinstance(e, sympy.Symbol):
        return symbol(e.name)
    if not e.args:
        return e
    args = [_normalise(a) for a in e.args]
    if isinstance(e, _FLOOR_DIVS):
        return tsf.FloorDiv(*args)
    if isinstance(e, _MODS):
        return tsf.PythonMod(*args)
    if isinstance(e, _MAXES):
        return tsf.Max(*args)
    if isinstance(e, _MINS):
        return tsf.Min(*args)
    if isinstance(e, sympy.floor):
        return tsf.FloorDiv(*args[0].as_numer_denom())
    return e.func(*args)


def parse_dim(text: str) -> Dim:
    """Read a size back from text. Nothing in it is executed.

    Raises:
        ValueError: the text is outside the grammar.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"cannot read the size {text!r}") from error
    return canonical(_from_ast(tree, text))


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: tsf.FloorDiv(a, b),
    ast.Mod: lambda a, b: tsf.PythonMod(a, b),
}


def _from_ast(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return sympy.Integer(number)
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_from_ast(inner, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            bottom = _from_ast(right, text)
            if bottom == 0 and isinstance(op, (ast.FloorDiv, ast.Mod)):
                raise ValueError(f"the size {text!r} divides by zero")
            return _BINARY[type(op)](_from_ast(left, text), bottom)
        case ast.Call(func=ast.Name(id="min" | "max" as word), args=args, keywords=[]) if args:
            kind = tsf.Min if word == "min" else tsf.Max
            return kind(*(_from_ast(a, text) for a in args))
    raise ValueError(f"cannot read the size {text!r}: only names, integers, + - * // % min max are sizes")


def product(dims: tuple[Dim, ...]) -> Dim:
    """Product of sizes: an int where all are."""
    if all(isinstance(d, int) for d in dims):
        return math.prod(dims)  # type: ignore[arg-type]
    return canonical(sympy.Mul(*dims))
