"""Activations and softmaxes spelled out are found, in every dtype and rank; look-alikes are not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.passes.rulebook.found import call, names, refusals, rewritten
from tests.passes.rulebook.spellings import ACTIVATIONS, SOFTMAXES

Function = Callable[[Tensor], Tensor]
SPELLINGS = [
    pytest.param(name, function, id=f"{name}-{number}")
    for name, functions in {**ACTIVATIONS, **SOFTMAXES}.items()
    for number, function in enumerate(functions)
]
FIRST = [
    pytest.param(name, functions[0], id=name) for name, functions in {**ACTIVATIONS, **SOFTMAXES}.items()
]
CALLS = {
    "gelu": "aten.gelu(%args_0)",
    "gelu-tanh": 'aten.gelu(%args_0, approximate="tanh")',
    "leaky_relu": "aten.leaky_relu(%args_0, 0.1)",
}


def operand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)


@pytest.mark.parametrize(("name", "function"), SPELLINGS)
def test_a_spelling_is_found(name: str, function: Function) -> None:
    found = rewritten(function, operand(2, 3, 5))
    assert names(found) == [name.removesuffix("-tanh")]
    if name in CALLS:
        assert call(found) == CALLS[name]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "function"), FIRST)
def test_it_is_found_in_other_dtypes(name: str, function: Function, dtype: torch.dtype) -> None:
    assert names(rewritten(function, operand(4, 7, dtype=dtype))) == [name.removesuffix("-tanh")]


@pytest.mark.parametrize("shape", [(6, 1), (2, 3, 1, 7)], ids=str)
@pytest.mark.parametrize("name", ["gelu", "silu", "softmax", "log_softmax", "elu"])
def test_it_is_found_at_other_ranks(name: str, shape: tuple[int, ...]) -> None:
    function = {**ACTIVATIONS, **SOFTMAXES}[name][0]
    assert names(rewritten(function, operand(*shape))) == [name]


@pytest.mark.parametrize("name", ["gelu", "relu", "softplus", "softmax", "logsumexp"])
def test_it_is_found_with_a_dynamic_batch(name: str) -> None:
    function = {**ACTIVATIONS, **SOFTMAXES}[name][0]
    batch = torch.export.Dim("batch", min=1, max=64)
    found = rewritten(function, operand(4, 5), dynamic_shapes=(({0: batch},),))
    assert names(found) == [name]
    other = operand(7, 5)
    torch.testing.assert_close(found.run(other), function(other))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 0.5 * x * (1 + torch.erf(x / 1.41)),
        lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x**3))),
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.0447 * x**3))),
        lambda x: 0.4 * x * (1 + torch.erf(x / math.sqrt(2))),
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: x / (1 + torch.exp(x)),
        lambda x: x / (2 + torch.exp(-x)),
        lambda x: x.clamp(min=0.1),
        lambda x: torch.maximum(x, torch.ones_like(x)),
        lambda x: torch.where(x > 0, x, 0.0),  # of NaN it makes 0
        lambda x: torch.where(x >= 0, x, torch.zeros_like(x)),
        lambda x: torch.where(x > 0.5, x, 0.0),
        lambda x: torch.where(x > 0, x, 0.1),
        lambda x: x.clamp(0, 5),
        lambda x: torch.maximum(x, 2 * x),
        lambda x: torch.where(x > 0, x, torch.exp(x) - 2),
        lambda x: F.relu6(x + 3) * 0.2,
        lambda x: torch.log(2 + torch.exp(x)),
        lambda x: x * torch.tanh(F.softplus(x, 2.0)),
        lambda x: torch.exp(x) / torch.exp(x).sum(0, keepdim=True).sum(-1, keepdim=True),
        lambda x: torch.exp(x - x.amax(0, True)) / torch.exp(x - x.amax(0, True)).sum(0, True),
        lambda x: x - torch.logsumexp(x, 0, keepdim=True),
        lambda x: torch.log(torch.exp(x).sum(0)),
    ],
)  # fmt: skip
def test_a_look_alike_is_not(function: Function) -> None:
    known = {"gelu", "silu", "relu", "leaky_relu", "elu", "hardsigmoid", "softmax", "log_softmax", "mish"}
    found = names(rewritten(function, operand(3, 4, 5)))
    assert not known & set(found)
    assert len(found) > 1 or "clamp" in found or "maximum" in found


def test_a_wrong_constant_is_told() -> None:
    found = rewritten(lambda x: 0.5 * x * (1 + torch.erf(x / 1.4142)), operand(3, 4))
    assert any("1.4142 is not 1.414213562" in reason for reason in refusals(found))


def test_a_constant_of_eight_digits_is_exact_to_fp32_alone() -> None:
    def function(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x * 0.70710678))

    assert names(rewritten(function, operand(3, 4), check=False)) == ["gelu"]
    assert "erf" in names(rewritten(function, operand(3, 4, dtype=torch.float64), check=False))


def test_what_is_used_elsewhere_stays() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        gate = torch.sigmoid(x)
        return x * gate, gate

    assert names(rewritten(function, operand(3, 4))) == ["sigmoid", "mul"]


def test_integers_stay() -> None:
    before = torch.arange(6)
    from capture import capture
    from passes import optimize
    from tests.passes.rulebook.found import Spelled

    graph = capture(Spelled(lambda x: x / (1 + torch.exp(-x))), (before,))
    assert "silu" not in names(optimize(graph, passes=["rewrite"]))


def test_softplus_in_fp64_is_exact_where_the_formula_is() -> None:
    x = torch.linspace(15, 45, 61, dtype=torch.float64)
    found = rewritten(lambda x: torch.log1p(torch.exp(x)), x)
    assert call(found) == "aten.softplus(%args_0, 1, 40)"


def test_a_formula_that_overflows_does_so_no_more() -> None:
    found = rewritten(lambda x: torch.log(1 + torch.exp(x)), operand(3, 4))
    assert found.run(torch.tensor([[1000.0] * 4] * 3)).isfinite().all()
