"""Matrix products, convolutions, norms, pools, interpolation, recurrent layers: against eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape))).to(dtype)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((0, 4), (4, 5)),
        ((3, 0), (0, 2)),
    ],
    ids=str,
)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], same: Callable[..., None]) -> None:
    same(torch.matmul, randn(*a), randn(*b))


def test_matmul_of_other_types(same: Callable[..., None]) -> None:
    same(lambda a, b: a @ b, randn(3, 4, dtype=torch.float64), randn(4, 5, dtype=torch.float64))
    same(lambda a, b: a @ b, randn(3, 4, dtype=torch.float16), randn(4, 5, dtype=torch.float16), atol=1e-2)
    same(lambda a, b: a @ b, torch.arange(12).view(3, 4), torch.arange(8).view(4, 2))


def test_products(same: Callable[..., None]) -> None:
    same(
        lambda a, b, c: (
            torch.mm(a, b),
            torch.addmm(c, a, b),
            torch.addmm(c, a, b, beta=0.5, alpha=2),
            a.mv(b[:, 0]),
            torch.baddbmm(c[None], a[None], b[None], beta=0, alpha=3),
            torch.outer(a[0], b[:, 1]),
            a[0].dot(b[:, 0]),
            torch.einsum("ij,jk->ik", a, b),
            torch.einsum("ij,jk", a, b),
            torch.einsum("...j->...", a),
            torch.einsum("bij,bjk->bk", a[None], b[None]),
            torch.tensordot(a, b, 1),
        ),
        randn(3, 4),
        randn(4, 5),
        randn(3, 5),
    )


def test_products_of_integers(same: Callable[..., None]) -> None:
    a = torch.arange(6).view(2, 3)
    same(lambda a: (torch.addmm(a[:, :2], a, a.t(), beta=2, alpha=3), torch.einsum("ij,kj->ik", a, a)), a)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (4,), (0, 4), (2, 1, 3, 4)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool, same: Callable[..., None]) -> None:
    same(nn.Linear(4, 5, bias=bias), randn(*shape))


def test_bilinear(same: Callable[..., None]) -> None:
    same(nn.Bilinear(3, 4, 5), randn(2, 3), randn(2, 4))


CONVOLUTIONS = {
    "plain": (nn.Conv2d(3, 4, 3), (2, 3, 7, 9)),
    "strided": (nn.Conv2d(3, 4, 3, 2, 1), (1, 3, 7, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=(1, 2), groups=2), (1, 4, 5, 5)),
    "dilated": (nn.Conv2d(3, 4, (1, 3), dilation=(1, 2), bias=False), (1, 3, 5, 9)),
    "same": (nn.Conv2d(3, 4, 4, padding="same"), (1, 3, 6, 7)),
    "valid": (nn.Conv2d(3, 4, 3, padding="valid"), (1, 3, 6, 7)),
    "reflect": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (1, 3, 6, 7)),
    "without a batch": (nn.Conv2d(3, 4, 3), (3, 6, 7)),
    "1d": (nn.Conv1d(3, 4, 3, padding=1), (2, 3, 7)),
    "3d": (nn.Conv3d(2, 3, 3, stride=2, padding=1), (1, 2, 5, 6, 7)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (1, 3, 5, 6)),
    "transposed groups": (nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2, bias=False), (1, 4, 5, 6)),
    "transposed 1d": (nn.ConvTranspose1d(3, 4, 4, stride=3), (2, 3, 5)),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 3, 3, 3)),
    "transposed without a batch": (nn.ConvTranspose2d(3, 4, 3), (3, 5, 6)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, same: Callable[..., None]) -> None:
    layer, shape = CONVOLUTIONS[name]
    same(layer, randn(*shape))


def test_convolution_of_channels_last(same: Callable[..., None]) -> None:
    x = randn(2, 3, 6, 7).contiguous(memory_format=torch.channels_last)
    same(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), x)


def _trained(norm: nn.Module) -> nn.Module:
    """With weights and statistics unlike those of a fresh layer."""
    generator = torch.Generator().manual_seed(4)
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return norm


NORMS = {
    "layer": (nn.LayerNorm(5), (2, 3, 5)),
    "layer of two dims": (nn.LayerNorm((3, 5)), (2, 3, 5)),
    "layer without weights": (nn.LayerNorm(5, elementwise_affine=False), (2, 3, 5)),
    "layer without bias": (nn.LayerNorm(5, bias=False), (2, 3, 5)),
    "rms": (nn.RMSNorm(5), (2, 3, 5)),
    "rms with eps": (nn.RMSNorm((3, 5), eps=1e-3), (2, 3, 5)),
    "rms without weight": (nn.RMSNorm(5, elementwise_affine=False), (3, 5)),
    "batch": (nn.BatchNorm2d(3), (2, 3, 4, 5)),
    "batch of vectors": (nn.BatchNorm1d(3), (4, 3)),
    "batch without weights": (nn.BatchNorm1d(3, affine=False), (2, 3, 5)),
    "group": (nn.GroupNorm(2, 6), (2, 6, 4, 5)),
    "group of sequences": (nn.GroupNorm(3, 6), (2, 6, 7)),
    "group of vectors": (nn.GroupNorm(3, 6, affine=False), (2, 6)),
    "instance": (nn.InstanceNorm2d(3), (2, 3, 4, 5)),
    "instance with weights": (nn.InstanceNorm2d(3, affine=True), (2, 3, 4, 5)),
    "instance with statistics": (nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (2, 3, 5)),
    "local response": (nn.LocalResponseNorm(2), (2, 5, 3, 3)),
    "weight": (nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), (2, 5)),
}


@pytest.mark.parametrize("name", NORMS)
def test_norm(name: str, same: Callable[..., None]) -> None:
    norm, shape = NORMS[name]
    same(_trained(norm), randn(*shape))


def test_rms_norm_before_opset_23(same: Callable[..., None]) -> None:
    same(_trained(nn.RMSNorm(5)), randn(2, 3, 5), opset=20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_norm_of_other_types(dtype: torch.dtype, same: Callable[..., None]) -> None:
    layers = nn.Sequential(nn.LayerNorm(6), nn.RMSNorm(6), nn.BatchNorm1d(3)).to(dtype)
    same(_trained(layers), randn(2, 3, 6, dtype=dtype), atol=2e-2 if dtype == torch.float16 else 1e-9)


POOLS: dict[str, Callable[[torch.Tensor], Any]] = {
    "max": lambda x: F.max_pool2d(x, 2),
    "max with padding": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max with dilation": lambda x: F.max_pool2d(x, (2, 3), 1, (0, 1), (1, 2)),
    "max ceil": lambda x: (F.max_pool2d(x, 2, ceil_mode=True), F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "max ceil far": lambda x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True),
    "max indices": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "avg": lambda x: (F.avg_pool2d(x, 2), F.avg_pool2d(x, (3, 2), 1)),
    "avg with padding": lambda x: (
        F.avg_pool2d(x, 3, 2, 1),
        F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ),
    "avg ceil": lambda x: (F.avg_pool2d(x, 3, 2, 1, True, True), F.avg_pool2d(x, 3, 2, 1, True, False)),
    "avg ceil far": lambda x: (F.avg_pool2d(x, 2, 3, 1, True, True), F.avg_pool2d(x, 2, 3, 0, True)),
    "avg divisor": lambda x: (
        F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
        F.avg_pool2d(x, 3, 2, 1, True, False, 4),
    ),
    "without a batch": lambda x: (F.max_pool2d(x[0], 2), F.avg_pool2d(x[0], 2)),
    "1d": lambda x: (
        F.max_pool1d(x[0], 3, 2, 1),
        F.avg_pool1d(x[0], 3, 2, 1),
        F.avg_pool1d(x[0], 2, ceil_mode=True),
    ),
    "3d": lambda x: (F.max_pool3d(x[None], 2, ceil_mode=True), F.avg_pool3d(x[None], 2, padding=1)),
    "adaptive": lambda x: (
        F.adaptive_avg_pool2d(x, 1),
        F.adaptive_avg_pool2d(x, (3, 2)),
        F.adaptive_avg_pool2d(x, (None, 4)),
    ),
    "adaptive 1d": lambda x: (
        F.adaptive_avg_pool1d(x[0], 4),
        F.adaptive_avg_pool1d(x[0], 3),
        F.adaptive_avg_pool3d(x, 2),
    ),
    "adaptive max": lambda x: (
        F.adaptive_max_pool2d(x, 1),
        F.adaptive_max_pool2d(x, (3, 2)),
        F.adaptive_max_pool1d(x[0], 4),
    ),
    "lp": lambda x: F.lp_pool2d(x, 2, 2),
    "unfold": lambda x: (F.unfold(x, 3), F.unfold(x, (2, 3), dilation=(2, 1), padding=1, stride=2)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pool(name: str, same: Callable[..., None]) -> None:
    same(POOLS[name], randn(2, 3, 7, 9))


RESIZES: dict[str, Callable[[torch.Tensor], Any]] = {
    "nearest": lambda x: (
        F.interpolate(x, scale_factor=2),
        F.interpolate(x, size=(7, 3)),
        F.interpolate(x, scale_factor=1.7),
    ),
    "nearest-exact": lambda x: (
        F.interpolate(x, size=(7, 3), mode="nearest-exact"),
        F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    ),
    "bilinear": lambda x: (
        F.interpolate(x, scale_factor=2, mode="bilinear"),
        F.interpolate(x, size=(3, 11), mode="bilinear"),
    ),
    "bilinear scale": lambda x: F.interpolate(x, scale_factor=(1.7, 0.6), mode="bilinear"),
    "bilinear recomputed": lambda x: F.interpolate(
        x, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True
    ),
    "bilinear corners": lambda x: (
        F.interpolate(x, size=(9, 4), mode="bilinear", align_corners=True),
        F.interpolate(x, size=1, mode="bilinear", align_corners=True),
    ),
    "bicubic": lambda x: (
        F.interpolate(x, size=(9, 4), mode="bicubic"),
        F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=True),
    ),
    "antialias": lambda x: (
        F.interpolate(x, size=(3, 4), mode="bilinear", antialias=True),
        F.interpolate(x, size=(3, 9), mode="bicubic", antialias=True),
    ),
    "linear": lambda x: (F.interpolate(x[0], size=11, mode="linear"), F.interpolate(x[0], scale_factor=2)),
    "trilinear": lambda x: (
        F.interpolate(x[None], size=(4, 9, 5), mode="trilinear"),
        F.interpolate(x[None], scale_factor=2),
    ),
    "area": lambda x: F.interpolate(x, size=(3, 2), mode="area"),
}


@pytest.mark.parametrize("name", RESIZES)
def test_interpolation(name: str, same: Callable[..., None]) -> None:
    same(RESIZES[name], randn(2, 3, 5, 6))


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_grid_sample(mode: str, padding: str, same: Callable[..., None]) -> None:
    grid = randn(2, 4, 5, 2).clamp(-1.2, 1.2)
    same(
        lambda x, g: F.grid_sample(x, g, mode, padding, align_corners=False),
        randn(2, 3, 6, 7),
        grid,
        atol=1e-4,
    )


RECURRENT = {
    "lstm": nn.LSTM(4, 5, 2, bidirectional=True),
    "lstm batch first": nn.LSTM(4, 5, batch_first=True),
    "lstm without bias": nn.LSTM(4, 5, bias=False),
    "gru": nn.GRU(4, 5, 2, bidirectional=True),
    "rnn": nn.RNN(4, 5, 2),
    "rnn relu": nn.RNN(4, 5, nonlinearity="relu", batch_first=True),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
def test_recurrent(name: str, same: Callable[..., None]) -> None:
    same(RECURRENT[name], randn(3, 2, 4))


def test_cells_and_other_products(same: Callable[..., None]) -> None:
    same(nn.LSTMCell(4, 5), randn(3, 4), (randn(3, 5), randn(3, 5) / 2))
    same(nn.GRUCell(4, 5), randn(3, 4))
    same(lambda a, b: torch.addbmm(a[0, :, :3], a, b, beta=0.5, alpha=2), randn(2, 3, 4), randn(2, 4, 3))
    same(
        lambda a: (torch.kron(a, a), torch.linalg.matrix_power(a[:, :3], 3), torch.block_diag(a, a)),
        randn(3, 4),
    )


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
def test_recurrent_with_a_state(same: Callable[..., None]) -> None:
    same(RECURRENT["lstm batch first"], randn(2, 3, 4), (randn(1, 2, 5), randn(1, 2, 5) / 2))
