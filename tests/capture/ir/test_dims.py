"""Symbolic sizes: the grammar round-trips, and means what Python means."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._sympy import functions as tsf

from capture.ir import dims
from capture.ir.dims import canonical, evaluate, fold, format_dim, normalise, parse_dim, symbol, unknown

N, M = symbol("N"), symbol("M")
NAMES = ("N", "M", "K")

# A size as a tree: an int, a name, or (operator, left, right). Divisors are positive for positive names.
positive: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(NAMES) | st.integers(1, 7),
    lambda inner: st.tuples(st.sampled_from(["+", "*", "max", "min"]), inner, inner),
    max_leaves=4,
)
sizes: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(NAMES) | st.integers(-5, 12),
    lambda inner: (
        st.tuples(st.sampled_from(["+", "-", "*", "max", "min"]), inner, inner)
        | st.tuples(st.sampled_from(["//", "%"]), inner, positive)
    ),
    max_leaves=8,
)


def as_text(tree: Any) -> str:
    if not isinstance(tree, tuple):
        return str(tree)
    operator, left, right = tree
    if operator in ("max", "min"):
        return f"{operator}({as_text(left)}, {as_text(right)})"
    return f"({as_text(left)}) {operator} ({as_text(right)})"


def in_python(tree: Any, env: dict[str, int]) -> int:
    if not isinstance(tree, tuple):
        return env[tree] if isinstance(tree, str) else tree
    operator, left, right = tree[0], in_python(tree[1], env), in_python(tree[2], env)
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "//":
            return left // right
        case "%":
            return left % right
        case "max":
            return max(left, right)
    return min(left, right)


@given(sizes)
@settings(max_examples=150)
def test_text_reads_back_to_the_same_size(tree: Any) -> None:
    size = parse_dim(as_text(tree))
    text = format_dim(size)
    assert parse_dim(text) == size
    assert format_dim(parse_dim(text)) == text


@given(sizes, st.fixed_dictionaries({n: st.integers(1, 40) for n in NAMES}))
@settings(max_examples=150)
def test_evaluation_agrees_with_python(tree: Any, env: dict[str, int]) -> None:
    assert evaluate(parse_dim(as_text(tree)), env) == in_python(tree, env)


@given(st.text("NM0123456789+-*/%(),. minax_[]\"'\\", max_size=30))
@settings(max_examples=300)
def test_other_text_is_a_value_error(text: str) -> None:
    try:
        size = parse_dim(text)
    except ValueError:
        return
    assert parse_dim(format_dim(size)) == size


@pytest.mark.parametrize(
    "text",
    [
        "2*M*(N + 1)",
        "M*(2*N + 2)",
        "-N + 5",
        "(N//2)*(M//2)",
        "N - 2*(M//3)",
        "max(M, N)",
        "(-N)//2",
        "-(N % 4)",
    ]
    + [
        "min(3, N) + 1",
        "N*N",
        "2*N*N",
        "(N + 1)*(N + 1)",
        "(N*N)//2",
        "(N + 1) % M",
        "(N % 4)//3",
        "-2*N",
        "u0",
    ],
)
def test_each_form_of_text_is_what_is_printed(text: str) -> None:
    printed = format_dim(parse_dim(text))
    assert parse_dim(printed) == parse_dim(text)
    assert format_dim(parse_dim(printed)) == printed
    env = {"N": 5, "M": 3, "u0": 2}
    assert evaluate(parse_dim(text), env) == evaluate(parse_dim(printed), env) == eval(text, {}, env)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected a size"),
        ("N +", "expected a size"),
        ("N N", "expected nothing more"),
        ("N / 2", "expected nothing more"),
        ("N**2", "expected a size"),
        ("1.5", "expected nothing more"),
        ("(N", "expected `\\)`"),
        ("max()", "expected a size"),
        ("max N", "expected `\\("),
        ("None", "cannot be named"),
        ("N // 0", "no divisor"),
        ("N % (M - M)", "no divisor"),
        ("N // (-2)", "no divisor"),
        ("__import__('os').getcwd()", "expected nothing more"),
        ("f(N)", "expected nothing more"),
        ("N if M else 2", "expected nothing more"),
        ("[N]", "expected a size"),
        ("9" * 5000, "cannot read"),
        ("(" * 4000 + "N" + ")" * 4000, "too deeply"),
        ("N" + " % M" * 30, "within each other"),
        ("N + " * 5000 + "N", "characters"),
        ("ℵ", "expected a size"),
    ],
)
def test_what_is_no_size_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_dim(text)


def test_expressions_that_are_no_integers_do_not_print() -> None:
    for expr in (N / 2, sympy.sqrt(N), N**M, sympy.Float(1.5) * N):
        with pytest.raises(ValueError, match="size expression"):
            format_dim(expr)
    with pytest.raises(ValueError, match="which sizes do not have"):
        evaluate(sympy.sqrt(N), {"N": 4})


def test_a_size_that_divides_by_zero_says_so() -> None:
    with pytest.raises(ValueError, match="divides by zero"):
        evaluate(parse_dim("N // (M - 1)"), {"N": 3, "M": 1})


def test_every_division_of_torch_and_sympy_is_brought_to_one_form() -> None:
    assert normalise(tsf.CleanDiv(N, 3)) == tsf.FloorDiv(N, 3)
    assert normalise(sympy.floor(N / 3)) == tsf.FloorDiv(N, 3)
    assert normalise(sympy.Mod(N, 3)) == normalise(tsf.Mod(N, 3)) == tsf.PythonMod(N, 3)
    assert normalise(sympy.Max(N, M)) == tsf.Max(N, M)
    assert normalise(sympy.Min(N, 2 * M)) == tsf.Min(N, 2 * M)
    assert normalise(sympy.Symbol("N") + 1) == N + 1, "symbols get the assumptions of dims"
    assert normalise(7) == 7


@pytest.mark.parametrize("expr", [tsf.FloorDiv(N + 2, 3), sympy.floor((N + 2) / 3), tsf.CleanDiv(N + 2, 3)])
def test_each_division_evaluates_and_prints_alike(expr: sympy.Expr) -> None:
    assert [evaluate(expr, {"N": n}) for n in (1, 3, 4)] == [1, 1, 2]
    assert format_dim(expr) == "(N + 2)//3"


def test_powers_evaluate_and_print_as_products() -> None:
    assert evaluate(N**3, {"N": 4}) == 64
    assert format_dim(N**2) == "N*N"


def test_folding_calls_the_given_functions() -> None:
    seen = fold(tsf.Max(N, 2 * M), lambda s: 3, minimum=min, maximum=lambda a, b: ("max", *sorted((a, b))))
    assert seen == ("max", 3, 6)


def test_numbers_become_ints() -> None:
    assert type(canonical(sympy.Integer(3))) is int
    assert type(parse_dim("6 // 2")) is int
    assert canonical(N) is N
    assert type(dims.product((2, 3))) is int
    assert dims.product((2, N, 3)) == 6 * N
    assert dims.product(()) == 1


def test_names() -> None:
    assert dims.is_name("batch_2")
    assert dims.is_name("if")
    assert not any(map(dims.is_name, ("", "2d", "max", "None", "nan", "a-b", "größe", "a.b")))
    assert dims.is_data_dependent("u12")
    assert not dims.is_data_dependent("u")
    assert not dims.is_data_dependent("u1x")
    assert symbol("u3").is_nonnegative
    assert not symbol("u3").is_positive
    assert dims.free_names([N, [M + 1, "K"], 3, None]) == {"N", "M"}
    assert not dims.is_symbolic(3)
    assert dims.is_symbolic(N + 1)
    assert not dims.is_symbolic(sympy.Integer(3))


@pytest.mark.parametrize(
    ("text", "known", "found"),
    [
        ("N", "", ("N", "1", "0")),
        ("2*N + 3", "", ("N", "2", "3")),
        ("M*N + M", "M", ("N", "M", "M")),
        ("5 - N", "", ("N", "-1", "5")),
        ("N*(M + 1)", "M", ("N", "M + 1", "0")),
        ("N + M//2", "M", ("N", "1", "M//2")),
        ("N", "N", None),
        ("N*M", "", None),
        ("N*N", "", None),
        ("N//2", "", None),
        ("N + N % 3", "", None),
        ("max(N, 4)", "", None),
        ("7", "", None),
    ],
)
def test_unknown_solves_linear_sizes(text: str, known: str, found: tuple[str, str, str] | None) -> None:
    solved = unknown(parse_dim(text), set(known))
    assert solved == (None if found is None else (found[0], parse_dim(found[1]), parse_dim(found[2])))


def test_sizes_fold_over_symints() -> None:
    """The same walk serves fake calls: Python arithmetic on whatever the leaves are."""
    tensor = torch.empty(6)
    assert fold(parse_dim("min(N, 4) + N % 4"), lambda s: tensor.shape[0]) == 4 + 2
