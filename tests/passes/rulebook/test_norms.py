"""Norms spelled out are found, also when computed in fp32; look-alikes are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import passes
from capture import capture
from models import llama
from tests.passes.rulebook.found import Spelled, call, names, refusals, rewritten
from tests.passes.rulebook.spellings import NORMS, by_root, normalised

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
SPELLINGS = [
    pytest.param(name, function, id=f"{name}-{number}")
    for name, functions in NORMS.items()
    for number, function in enumerate(functions)
]


def operands(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    w, b = (torch.randn(shape[-1:], generator=generator) for _ in range(2))
    return x.to(dtype), w.to(dtype), b.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "function"), SPELLINGS)
def test_a_spelling_is_found(name: str, function: Function, dtype: torch.dtype) -> None:
    assert names(rewritten(function, *operands(2, 3, 8, dtype=dtype))) == [name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_it_is_found_in_half_precision(name: str, dtype: torch.dtype) -> None:
    assert names(rewritten(NORMS[name][0], *operands(4, 16, dtype=dtype))) == [name]


def test_the_call_has_factor_offset_and_epsilon() -> None:
    found = rewritten(NORMS["layer_norm"][2], *operands(2, 3, 8))
    assert call(found) == "aten.layer_norm(%args_0, [8], %args_1, %args_2)"
    found = rewritten(NORMS["rms_norm"][0], *operands(2, 3, 8))
    assert call(found) == "aten.rms_norm(%args_0, [8], %args_1, 1e-06)"


def decoder_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
    return w * h.to(x.dtype)


def encoder_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    return w * (x * torch.rsqrt(variance + 1e-6)).to(x.dtype)


def wide_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = x.float()
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * w.float()).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", [decoder_norm, encoder_norm, wide_norm])
def test_a_norm_computed_in_fp32_is_the_operator_in_half_precision(
    function: Function, dtype: torch.dtype
) -> None:
    found = rewritten(function, *operands(3, 5, 8, dtype=dtype))
    assert call(found) == "aten.rms_norm(%args_0, [8], %args_1, 1e-06)"


def test_a_layer_norm_computed_in_fp32_too() -> None:
    def function(x: Tensor) -> Tensor:
        return normalised(x.float(), lambda x, d: d.pow(2).mean(-1, keepdim=True), by_root).to(x.dtype)

    found = rewritten(function, operands(3, 8, dtype=torch.bfloat16)[0])
    assert call(found) == "aten.layer_norm(%args_0, [8])"


def test_it_is_found_with_a_dynamic_batch() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    found = rewritten(NORMS["layer_norm"][2], *operands(4, 3, 8), dynamic_shapes=(({0: batch}, None, None),))
    assert names(found) == ["layer_norm"]
    x, w, b = operands(7, 3, 8)
    torch.testing.assert_close(found.run(x, w, b), F.layer_norm(x, (8,), w, b))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, b: normalised(x, lambda x, d: x.var(-1, keepdim=True), by_root),
        lambda x, w, b: normalised(x, lambda x, d: d.pow(2).mean(1, keepdim=True), by_root),
        lambda x, w, b: normalised(x, lambda x, d: d.pow(3).mean(-1, keepdim=True).abs(), by_root),
        lambda x, w, b: x / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5),
        lambda x, w, b: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6),
        lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
        lambda x, w, b: x * torch.rsqrt((x * w).mean(-1, keepdim=True).abs() + 1e-6),
    ],
)
def test_a_look_alike_is_not(function: Function) -> None:
    assert not {"layer_norm", "rms_norm"} & set(names(rewritten(function, *operands(2, 8, 8))))


def test_a_factor_of_another_shape_stays_outside() -> None:
    x, w, _ = operands(3, 8, 8)
    found = rewritten(lambda x, w: NORMS["rms_norm"][2](x, w, w) * w[:, None], x, w)
    assert names(found) == ["rms_norm", "unsqueeze", "mul"]
    assert any("not one number per element of the last axis" in reason for reason in refusals(found))


def test_a_factor_of_another_dtype_stays_outside() -> None:
    x, w, _ = operands(3, 8, dtype=torch.bfloat16)
    found = rewritten(lambda x, w: NORMS["rms_norm"][2](x, w, w) * w, x, w.float())
    assert names(found) == ["rms_norm", "mul"]


def test_a_factor_of_each_row_stays_before_the_root() -> None:
    def function(x: Tensor, rows: Tensor) -> Tensor:
        return (x * rows) * torch.rsqrt(x.abs().amax(-1, keepdim=True) + 1)

    for rows in ((4, 1), (4, 8)):
        x, factor = operands(4, 8)[0], torch.rand(rows) + 1
        assert names(rewritten(function, x, factor)) == ["mul", "abs", "amax", "add", "rsqrt", "mul"]


def test_a_mean_that_is_used_elsewhere_stays() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(-1, keepdim=True)
        d = x - mean
        return d / torch.sqrt(d.pow(2).mean(-1, keepdim=True) + 1e-5), mean

    assert "layer_norm" not in names(rewritten(function, operands(3, 8)[0]))


def test_the_norms_of_a_decoder_are_found() -> None:
    graph = capture(llama.small().eval(), llama.example_inputs(factory="small"))
    assert names(passes.optimize(graph, passes=passes.PIPELINES[1])).count("rms_norm") == 5


# -- BatchNorm behind a convolution


class FrozenNorm(nn.Module):
    """Inference BatchNorm with its statistics as buffers, spelled in one of three ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(3, 4, 3)
        for name in ("weight", "bias", "mean"):
            self.register_buffer(name, torch.randn(1, 4, 1, 1))
        self.register_buffer("var", torch.rand(1, 4, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.way == "factor":
            scale = self.weight * torch.rsqrt(self.var + 1e-5)
            return x * scale + (self.bias - self.mean * scale)
        if self.way == "rsqrt":
            return (x - self.mean) * torch.rsqrt(self.var + 1e-5) * self.weight + self.bias
        return (x - self.mean) / torch.sqrt(self.var + 1e-5) * self.weight + self.bias


@pytest.mark.parametrize("way", ["factor", "rsqrt", "sqrt"])
def test_a_batch_norm_is_found_and_folded(way: str) -> None:
    model = FrozenNorm(way).eval()
    x = torch.randn(2, 3, 8, 8)
    graph = capture(model, (x,))
    found = passes.optimize(graph, passes=passes.PIPELINES[1], verify=True)
    assert names(found) == ["conv2d"]
    torch.testing.assert_close(found.run(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_batch_norm_with_other_than_constants_of_its_channels_is_not() -> None:
    conv = nn.Conv2d(3, 4, 3).eval()
    x, s, b = torch.randn(2, 3, 8, 8), torch.randn(1, 4, 1, 1), torch.randn(1, 4, 1, 1)

    def computed(x: Tensor, s: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(x, conv.weight.detach()) * s + b

    graph = capture(Spelled(computed), (x, s, b))
    assert "mul" in names(passes.optimize(graph, passes=passes.PIPELINES[1]))

    rows = torch.randn(6, 1)

    def by_row(x: Tensor) -> Tensor:
        return F.conv2d(x, conv.weight.detach()) * rows + rows

    graph = capture(Spelled(by_row), (x,))
    assert "mul" in names(passes.optimize(graph, passes=passes.PIPELINES[1]))
