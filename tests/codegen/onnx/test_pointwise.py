"""Arithmetic, functions, activations: against eager, over dtypes and mixed operands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

f16, f32, f64, i8, u8, i16, i32, i64 = (
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
)


def values(dtype: torch.dtype = f32, *shape: int) -> torch.Tensor:
    """Numbers around zero, or true and false; repeatable."""
    made = torch.randn(shape or (3, 5), generator=torch.Generator().manual_seed(1)) * 3
    return made > 0 if dtype == torch.bool else made.to(dtype) if dtype != u8 else made.abs().to(u8)


BINARY = {
    "add": lambda a, b: a + b,
    "add alpha": lambda a, b: torch.add(a, b, alpha=3),
    "sub": lambda a, b: a - b,
    "sub alpha": lambda a, b: torch.sub(a, b, alpha=2),
    "rsub": lambda a, b: torch.rsub(a, b, alpha=2),
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / (b * b + 1),
    "floor_divide": lambda a, b: a // (b * b + 1),
    "div trunc": lambda a, b: torch.div(a, b * b + 1, rounding_mode="trunc"),
    "remainder": lambda a, b: torch.remainder(a, torch.where(b == 0, 2, b)),
    "fmod": lambda a, b: torch.fmod(a, torch.where(b == 0, 2, b)),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "comparisons": lambda a, b: (a == b, a != b, a < b, a <= b, a > b, a >= b),
    "logical": lambda a, b: (torch.logical_and(a, b), torch.logical_or(a, b), torch.logical_xor(a, b)),
    "where": lambda a, b: torch.where(a > b, a, b),
}


@pytest.mark.parametrize(
    "dtypes",
    [
        (f32, f32),
        (f64, f64),
        (f16, f16),
        (i64, i64),
        (i32, i32),
        (i8, i8),
        (u8, u8),
        (f32, i64),
        (i32, i64),
        (f16, f32),
        (i64, torch.bool),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", BINARY)
def test_two_operands(name: str, dtypes: tuple[torch.dtype, torch.dtype], same: Callable[..., None]) -> None:
    a = values(dtypes[0], 3, 5)
    b = values(dtypes[1], 4, 1, 5).flip(-1)
    if torch.bool in dtypes and name in ("remainder", "sub", "sub alpha", "fmod", "rsub"):
        b = b.to(i32)
    same(BINARY[name], a, b, atol=2e-2 if f16 in dtypes else 1e-5)


NUMBERS = {
    "int and float": lambda x: (x + 2, x * 0.5, 3 - x, 1.5 / (x * x + 1), x > 1, x == 2, x // 2, x % 3),
    "promotion": lambda x: (x + 0.5, x * True, x / 2, torch.true_divide(x, 3)),
    "powers": lambda x: (x**2, x**3, torch.pow(x.abs() + 1, 2)),
    "scalar tensor": lambda x: (x + torch.tensor(2.5), x * torch.tensor(3), torch.tensor(1.0) - x),
    "shift": lambda x: (x - 1, 1 - x),
    "fills": lambda x: (x.masked_fill(x > 0, 7), torch.where(x > 0, x, 0), torch.where(x > 0, 1.5, 2.5)),
    "clamp": lambda x: (x.clamp(-1, 2), x.clamp(min=1), x.clamp(max=0), x.clamp_min(1), x.clamp_max(1)),
    "unary": lambda x: (-x, x.abs(), x.sign(), torch.square(x), +x),
}


@pytest.mark.parametrize("dtype", [f32, f64, f16, i64, i32, i16, i8], ids=str)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str, dtype: torch.dtype, same: Callable[..., None]) -> None:
    same(NUMBERS[name], values(dtype), atol=0.2 if dtype == f16 else 1e-5)


FLOAT_FUNCTIONS = [
    torch.exp,
    torch.exp2,
    torch.expm1,
    torch.sigmoid,
    torch.tanh,
    torch.erf,
    torch.erfc,
    torch.sin,
    torch.cos,
    torch.tan,
    torch.atan,
    torch.sinh,
    torch.cosh,
    torch.asinh,
    torch.floor,
    torch.ceil,
    torch.round,
    torch.trunc,
    torch.frac,
    torch.isnan,
    torch.isinf,
    torch.isfinite,
    torch.logical_not,
    torch.sgn,
]
POSITIVE_FUNCTIONS = [
    torch.log,
    torch.log2,
    torch.log10,
    torch.log1p,
    torch.sqrt,
    torch.rsqrt,
    torch.reciprocal,
    torch.acosh,
]


@pytest.mark.parametrize("fn", FLOAT_FUNCTIONS, ids=lambda f: f.__name__)
def test_function(fn: Callable[..., torch.Tensor], same: Callable[..., None]) -> None:
    same(fn, values(f32, 3, 5).t() / 3)


@pytest.mark.parametrize("fn", POSITIVE_FUNCTIONS, ids=lambda f: f.__name__)
def test_function_of_positive(fn: Callable[..., torch.Tensor], same: Callable[..., None]) -> None:
    same(fn, values(f32, 3, 5).abs() + 1)


@pytest.mark.parametrize("fn", [torch.asin, torch.acos, torch.atanh, torch.arcsin], ids=lambda f: f.__name__)
def test_function_of_the_unit_interval(fn: Callable[..., torch.Tensor], same: Callable[..., None]) -> None:
    same(fn, torch.linspace(-0.9, 0.9, 7))


def test_functions_of_integers_give_floats(same: Callable[..., None]) -> None:
    x = torch.arange(1, 7)
    same(
        lambda x: (x.exp(), x.sqrt(), x.sigmoid(), x.float().log(), x.rsqrt(), x.sin(), x.erf()), x, atol=1e-4
    )


def test_small_numbers_keep_their_digits(same: Callable[..., None]) -> None:
    x = torch.tensor([1e-7, -3e-6, 0.0, 1e-4, 0.5])
    same(lambda x: (x.expm1() * 1e6, x.log1p() * 1e6), x, atol=1e-2)


def test_special_values(same: Callable[..., None]) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -2.5, 1.0])
    same(
        lambda x: (
            x.isnan(),
            x.isinf(),
            x.isfinite(),
            x.nan_to_num(),
            x.nan_to_num(1, 2, 3),
            x.relu(),
            x.clamp(-1, 1),
            torch.maximum(x, x.flip(0)),
            x.log1p(),
            x.expm1(),
            F.softplus(x),
            F.logsigmoid(x),
            x.sign(),
            x != x,
        ),
        x,
    )


def test_atan2_in_all_quadrants(same: Callable[..., None]) -> None:
    y = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 0.0, 1.0, -1.0, 0.0])
    x = torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0, -1.0, 0.0, 0.0, 0.0])
    same(torch.atan2, y, x)


def test_hypot_does_not_overflow(same: Callable[..., None]) -> None:
    x = torch.tensor([3.0, 0.0, -1e30, 2.0])
    same(torch.hypot, x, torch.tensor([4.0, 0.0, 1e30, -7.0]), atol=1e24)


def test_safe_softmax(same: Callable[..., None]) -> None:
    x = values().masked_fill(torch.tensor([True, False, True])[:, None], -torch.inf)
    same(lambda x: torch.ops.aten._safe_softmax(x, -1), x)


def test_round_to_decimals(same: Callable[..., None]) -> None:
    same(lambda x: (torch.round(x, decimals=2), torch.round(x * 100, decimals=-1), x.round()), values())


def test_round_half_to_even(same: Callable[..., None]) -> None:
    same(torch.round, torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]))


@pytest.mark.parametrize("dtype", [i64, i32, u8, torch.bool], ids=str)
def test_bits(dtype: torch.dtype, same: Callable[..., None]) -> None:
    a, b = values(dtype, 4, 3), values(dtype, 4, 3).flip(0)
    same(lambda a, b: (a & b, a | b, a ^ b, ~a), a, b)


@pytest.mark.parametrize("dtype", [i64, i32], ids=str)
def test_shifts(dtype: torch.dtype, same: Callable[..., None]) -> None:
    same(lambda a, b: (a << b, a >> b, a << 2, a >> 1), values(dtype, 7), torch.arange(7, dtype=dtype))


def test_boolean_arithmetic(same: Callable[..., None]) -> None:
    a, b = values(torch.bool), values(torch.bool).flip(1)
    same(lambda a, b: (a + b, a * b, a.sum(), a + 1, a * 2.5, torch.maximum(a, b), a == b, a < b), a, b)


CASTS = [f32, f64, f16, i64, i32, i16, i8, u8, torch.bool, torch.bfloat16]


@pytest.mark.parametrize("dtype", CASTS, ids=str)
def test_casts(dtype: torch.dtype, same: Callable[..., None]) -> None:
    x = values(dtype)
    same(lambda x: [x.to(other) for other in CASTS if not (dtype.is_floating_point and other == u8)], x)


def test_three_operands(same: Callable[..., None]) -> None:
    x, a, b = values(f32, 3, 5), values(f32, 5) + 5, values(f32, 3, 1).abs() + 1
    same(
        lambda x, a, b: (
            torch.addcmul(x, a, b, value=0.5),
            torch.addcdiv(x, a, b, value=2),
            torch.lerp(x, a, 0.3),
            torch.lerp(x, a, b),
            torch.clamp(x, min=-a, max=b),
            x.clamp(min=b),
        ),
        x,
        a,
        b,
    )


ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "elu": F.elu,
    "elu alpha": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 1.7),
    "softplus": F.softplus,
    "softplus beta": lambda x: F.softplus(x, 2.0, 3.0),
    "leaky": F.leaky_relu,
    "hardtanh": F.hardtanh,
    "hardtanh bounds": lambda x: F.hardtanh(x, -0.3, 2),
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 20.0),
    "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "glu": lambda x: F.glu(x.repeat(1, 2), -1),
    "dropout": lambda x: F.dropout(x, 0.5, False),
    "softmax": lambda x: F.softmax(x, 0),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "softmax to f64": lambda x: F.softmax(x, 1, dtype=f64),
    "rrelu": F.rrelu,
    "softmax of a scalar": lambda x: F.softmax(x[0, 0], 0),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3])),
    "prelu channels": lambda x: F.prelu(x.view(1, 5, 3), torch.arange(5) / 10.0),
}


@pytest.mark.parametrize("dtype", [f32, f16], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str, dtype: torch.dtype, same: Callable[..., None]) -> None:
    if dtype == f16 and name.startswith("prelu"):
        return same(lambda x: F.prelu(x, torch.tensor([0.25], dtype=f16)), values(f16), atol=1e-2)
    return same(ACTIVATIONS[name], values(dtype), atol=2e-2 if dtype == f16 else 1e-5)


def test_relu_of_integers(same: Callable[..., None]) -> None:
    same(lambda a, b, c: (a.relu(), b.relu(), c.relu()), values(i64), values(i32), values(i8))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,)], ids=str)
def test_odd_shapes(shape: tuple[int, ...], same: Callable[..., None]) -> None:
    x = torch.ones(shape)
    same(lambda x: (x + 1, x.exp(), x.relu(), x > 0, F.gelu(x), x.to(i64) // 2, x.clamp(0, 1), -x), x)
