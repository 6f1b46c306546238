"""Symbolic sizes: their symbols, their small text grammar, and evaluation.

A size is a Python int or a sympy expression over the graph's dims. The grammar, with Python's precedence
and Python's floor division and modulus::

    size   = term {("+" | "-") term}
    term   = factor {("*" | "//" | "%") factor}
    factor = integer | name | "-" factor | "(" size ")" | ("min" | "max") "(" size {"," size} ")"

It is read by hand, because ``sympify`` would execute the text.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Container, Iterator, Mapping
from functools import reduce
from typing import Any, TypeAlias

import sympy
from torch.utils._sympy import functions as tsf

from capture.ir.scan import IDENTIFIER, INTEGER, Scanner

Dim: TypeAlias = int | sympy.Expr

_FLOOR_DIVS = (tsf.FloorDiv, tsf.CleanDiv)
_MODS = (tsf.PythonMod, tsf.Mod, sympy.Mod)
_MAXES = (tsf.Max, sympy.Max)
_MINS = (tsf.Min, sympy.Min)
_UNBACKED = re.compile(r"u[0-9]+")
_RESERVED = ("None", "True", "False", "inf", "nan", "min", "max")
_TERM_OPS = re.compile(r"\*|//|%")
_MAX_TEXT, _MAX_DIVISIONS = 10_000, 24  # sympy takes seconds over modulus within modulus, 50 deep
_MAX_ROUNDS = 8  # of simplification; one or two are what it takes


def symbol(name: str) -> sympy.Symbol:
    """The symbol of a dim. Sizes are taken as positive; data-dependent ones (``u0``) may be 0."""
    if is_data_dependent(name):
        return sympy.Symbol(name, integer=True, nonnegative=True)
    return sympy.Symbol(name, integer=True, positive=True)


def is_data_dependent(name: str) -> bool:
    """Whether a name is that of a size which the data decide, such as ``u0``."""
    return _UNBACKED.fullmatch(name) is not None


def is_name(name: str) -> bool:
    """Whether a dim may have this name: an ASCII identifier that means nothing else in a graph's text."""
    return IDENTIFIER.fullmatch(name) is not None and name not in _RESERVED


def is_symbolic(dim: object) -> bool:
    return isinstance(dim, sympy.Expr) and not dim.is_number


def equal(a: Dim, b: Dim, bounds: Mapping[str, tuple[int, int | None]]) -> bool:
    """Whether two sizes are the same for all values of their dims, by trying some within their bounds.

    Sizes are polynomials with divisions by small numbers, minima and maxima: what agrees at the ends of the
    ranges, beside them and at random points agrees.
    """
    if a == b:
        return True
    ranges = {name: bounds.get(name, (1, None)) for name in sorted(free_names([a, b]))}
    for env in _points(ranges):
        try:
            if evaluate(a, env) != evaluate(b, env):
                return False
        except ValueError:  # divides by zero here
            continue
    return True


def _points(ranges: Mapping[str, tuple[int, int | None]]) -> Iterator[dict[str, int]]:
    choose = random.Random(0)
    choices = {}
    for name, (lower, upper) in ranges.items():
        last = lower + 1000 if upper is None else upper
        inner = [choose.randint(lower, last) for _ in range(8)]
        choices[name] = sorted({lower, min(lower + 1, last), max(last - 1, lower), last, *inner})
    if len(choices) == 1:
        yield from ({name: n} for name, found in choices.items() for n in found)
        return
    for pick in (0, 1, -2, -1):
        yield {name: found[pick % len(found)] for name, found in choices.items()}
    for _ in range(24):
        yield {name: choose.choice(found) for name, found in choices.items()}


def is_size(expr: Dim) -> bool:
    """Whether a size in normal form is within the grammar; torch also has sizes that go through floats."""
    if isinstance(expr, int):
        return True
    parts = (
        sympy.Symbol,
        sympy.Integer,
        sympy.Add,
        sympy.Mul,
        sympy.Pow,
        tsf.FloorDiv,
        tsf.PythonMod,
        tsf.Max,
        tsf.Min,
    )
    return all(isinstance(part, parts) for part in sympy.preorder_traversal(expr))


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
    if isinstance(expr, sympy.floor):  # sympy turns some a//b into floor(a*Rational)
        return _floor(expr.args[0], leaf, minimum, maximum)
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
    raise ValueError(f"size expression {expr} uses {type(expr).__name__}, which sizes do not have")


def _floor(inner: sympy.Expr, leaf: Callable[[sympy.Symbol], Any], lo: Any, hi: Any) -> Any:
    numerator, denominator = inner.as_numer_denom()
    top = fold(canonical(numerator), leaf, minimum=lo, maximum=hi)
    return top // fold(canonical(denominator), leaf, minimum=lo, maximum=hi)


def evaluate(expr: Dim, env: Mapping[str, int]) -> int:
    """The size as an int, under `env` (symbol name -> int).

    Raises:
        KeyError: a symbol has no value in `env`.
        ValueError: the size divides by zero there.
    """
    try:
        return int(fold(expr, lambda s: env[s.name]))
    except ZeroDivisionError as error:
        raise ValueError(f"the size {expr} divides by zero at {dict(env)}") from error


def unknown(dim: Dim, known: Container[str]) -> tuple[str, Dim, Dim] | None:
    """The only name in `dim` that is not known, as ``(name, slope, rest)`` with ``dim == slope*name + rest``.

    None where there is no such name, there are several, or the size is not linear in it.
    """
    if isinstance(dim, sympy.Symbol):
        return None if dim.name in known else (dim.name, 1, 0)
    names = [s for s in getattr(dim, "free_symbols", ()) if s.name not in known]
    if len(names) != 1 or not isinstance(dim, sympy.Expr):
        return None
    expanded = sympy.expand(dim)
    slope = expanded.coeff(names[0], 1)
    rest = sympy.expand(expanded - slope * names[0])
    if slope == 0 or names[0] in (slope.free_symbols | rest.free_symbols):
        return None
    return names[0].name, canonical(slope), canonical(rest)


def free_names(value: Any) -> set[str]:
    """Names of the dims in a size, or in any nesting of lists of operands."""
    if isinstance(value, sympy.Expr):
        return {s.name for s in value.free_symbols if isinstance(s, sympy.Symbol)}
    if isinstance(value, (list, tuple)):
        return set().union(*(free_names(v) for v in value)) if value else set()
    return set()


def format_dim(expr: Dim) -> str:
    """Text of a size, in the grammar above and in normal form: `parse_dim` reads it back to the same size.

    Raises:
        ValueError: the expression is outside the grammar.
    """
    size = normalise(expr)
    return str(size) if isinstance(size, int) else _format(size, 0)


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
    if (
        isinstance(e, (sympy.Pow, tsf.PowByNatural))
        and isinstance(e.args[1], sympy.Integer)
        and e.args[1] > 0
    ):
        text = "*".join([_format(e.args[0], 2)] * int(e.args[1]))
        return f"({text})" if level >= 2 else text
    raise ValueError(f"size expression {e} uses {type(e).__name__}, which sizes do not have")


def normalise(expr: Dim) -> Dim:
    """The normal form of a size, so that equal sizes compare equal as far as sympy can tell.

    One division and one modulus stand for torch's and sympy's several, and no part can be simplified further.
    """
    if isinstance(expr, int):
        return expr
    for _ in range(_MAX_ROUNDS):
        rebuilt = _normalise(expr)
        if rebuilt == expr:
            break
        expr = (
            rebuilt  # min(max(9, M), max(-3, M)) takes two rounds, being max(M, min(-3, 9)) after the first
        )
    return canonical(expr)


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
    if isinstance(e, tsf.PowByNatural):
        return args[0] ** args[1]
    return e.func(*args)


def parse_dim(text: str) -> Dim:
    """Read a size back from text. Nothing in it is executed.

    Raises:
        ValueError: the text is outside the grammar.
    """
    scanner = Scanner(text)
    try:
        size = read_dim(scanner)
        scanner.finish()
    except ValueError as error:
        raise ValueError(f"cannot read the size {text!r}: {error}") from error
    return size


def read_dim(scanner: Scanner) -> Dim:
    """Read a size from where the scanner stands.

    Raises:
        ValueError: no size stands there, it divides by what is never positive, or it is monstrous.
    """
    try:
        return normalise(_Reader(scanner).size()[0])
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


_Read: TypeAlias = tuple[sympy.Expr, int]  # an expression, and how deep divisions nest in it


class _Reader:
    """Recursive descent, a method a rule of the grammar."""

    def __init__(self, scanner: Scanner) -> None:
        self.scanner = scanner
        self.start = scanner.at

    def size(self) -> _Read:
        term, depth = self.term()
        terms = [term]
        while (minus := self.scanner.take("-")) or self.scanner.take("+"):
            term, deep = self.term()
            terms.append(-term if minus else term)
            depth = max(depth, deep)
        return sympy.Add(*terms), depth

    def term(self) -> _Read:
        # All factors of a product at once: 2*(N + 1)*M is not (2*N + 2)*M to sympy.
        factor, depth = self.factor()
        factors = [factor]
        while found := self.scanner.match(_TERM_OPS):
            factor, deep = self.factor()
            depth = max(depth, deep)
            if found[0] == "*":
                factors.append(factor)
                continue
            depth += 1
            if depth > _MAX_DIVISIONS:
                raise ValueError(f"more than {_MAX_DIVISIONS} divisions within each other")
            if factor.is_nonpositive:
                raise ValueError(f"{factor} is no divisor: it divides by zero, or by a negative number")
            divide = tsf.FloorDiv if found[0] == "//" else tsf.PythonMod
            factors = [divide(sympy.Mul(*factors), factor)]
        return sympy.Mul(*factors), depth

    def factor(self) -> _Read:
        scanner = self.scanner
        if scanner.at - self.start > _MAX_TEXT:
            raise ValueError(f"a size of more than {_MAX_TEXT} characters")
        if scanner.take("-"):
            factor, depth = self.factor()
            return -factor, depth
        if scanner.take("("):
            inner = self.size()
            scanner.expect(")")
            return inner
        if number := scanner.match(INTEGER):
            return sympy.Integer(int(number[0])), 0
        name = scanner.need(IDENTIFIER, "a size")
        if name in ("min", "max"):
            return self.extremum(tsf.Min if name == "min" else tsf.Max)
        if not is_name(name):
            raise ValueError(f"a size cannot be named {name}")
        return symbol(name), 0

    def extremum(self, kind: Any) -> _Read:
        self.scanner.expect("(")
        read = [self.size()]
        while self.scanner.take(","):
            read.append(self.size())
        self.scanner.expect(")")
        return kind(*(expr for expr, _ in read)), max(depth for _, depth in read)


def product(dims: tuple[Dim, ...]) -> Dim:
    """Product of sizes: an int where all are."""
    if all(isinstance(d, int) for d in dims):
        return math.prod(dims)
    return canonical(sympy.Mul(*dims))
