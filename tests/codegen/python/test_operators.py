"""Every door into PyTorch: operators that print as torch functions, methods, subscripts or overloads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import runtime

Fn = Callable[[torch.Tensor], Any]

FUNCTIONS: dict[str, list[Fn]] = {
    "activations": [
        F.relu6, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.hardswish,
        F.hardsigmoid, F.hardtanh, F.logsigmoid, F.tanhshrink, F.softshrink, F.hardshrink, F.leaky_relu,
        F.glu, lambda t: F.gelu(t, approximate="tanh"), lambda t: F.threshold(t, 0.1, 5.0),
        lambda t: F.prelu(t, torch.tensor([0.1])), F.rrelu,
    ],
    "arithmetic": [
        torch.erf, torch.erfinv, torch.lgamma, torch.sinc, torch.expm1, torch.frac, torch.round, torch.sign,
        torch.signbit, torch.isnan, torch.isfinite, torch.nan_to_num, torch.special.i0, torch.deg2rad,
        lambda t: t.round(decimals=1), lambda t: t.clamp(-0.5, 0.5),
        lambda t: t.clamp(max=torch.tensor(0.0)), lambda t: t.floor_divide(2), lambda t: t % 3,
        lambda t: t.fmod(2), lambda t: 2**t, lambda t: t**3, lambda t: 3 - t, lambda t: 1 / t,
        lambda t: torch.atan2(t, t + 1), lambda t: torch.lerp(t, t + 1, 0.3),
        lambda t: torch.addcmul(t, t, t, value=0.5), lambda t: torch.add(t, t, alpha=-2),
        lambda t: torch.where(t > 0, t, 0.0), lambda t: torch.where(t > 0, 1.0, t), lambda t: t.int() << 1,
        lambda t: torch.heaviside(t, t), lambda t: ~t.int() & 3, lambda t: t.bool(),
        lambda t: t.half().float(), lambda t: torch.div(t, 0.3, rounding_mode="trunc"),
        lambda t: t.long() // 2, lambda t: t + 1j * t,
    ],
    "reductions": [
        torch.norm, lambda t: t.norm(dim=1), lambda t: torch.linalg.vector_norm(t, 3, dim=(1, 2)),
        F.normalize, torch.std, lambda t: t.var(1, unbiased=False), lambda t: torch.var_mean(t, 1),
        lambda t: t.amin((1, 2)), lambda t: t.prod(1), lambda t: t.any(1), lambda t: t.isfinite().all(),
        lambda t: t.count_nonzero(1), lambda t: t.logsumexp((1, 2)), lambda t: t.aminmax(dim=1)[0],
        lambda t: t.sum(1, True, dtype=torch.float64), lambda t: t.mean((2, 3), keepdim=True),
        lambda t: t.cumsum(1), lambda t: t.cummax(1), lambda t: t.argmax(1), torch.argmin,
        lambda t: t.median(1)[0], lambda t: t.kthvalue(2)[0], lambda t: t.sort(-1), lambda t: t.topk(3),
        torch.max, torch.min, lambda t: t.max(1), torch.mean,
    ],
    "shapes": [
        lambda t: t.roll(1, 1), lambda t: t.flip(1, 2), lambda t: t.rot90(), lambda t: t.tile(2),
        torch.ravel, lambda t: t.repeat(1, 2, 1, 1), lambda t: t.repeat_interleave(2, 1),
        lambda t: t.movedim(1, -1), lambda t: t.unfold(2, 3, 1), lambda t: t.diagonal(dim1=2, dim2=3),
        torch.tril, lambda t: t.triu(1), lambda t: t.chunk(3, 1), lambda t: t.split([1, 3], 1),
        lambda t: t.split(4, 1), lambda t: t.unbind(1), lambda t: t.tensor_split(3, 2),
        lambda t: torch.stack([t, t], 2), lambda t: t.unflatten(1, (2, 2)),
        lambda t: torch.meshgrid(t[0, 0, 0], t[0, 0, 1], indexing="ij"), lambda t: t.mT, torch.squeeze,
        lambda t: torch.block_diag(t[0, 0], t[0, 1]), lambda t: torch.kron(t[0, 0], t[0, 1]),
        lambda t: t[:1].expand(3, -1, 8, 8), lambda t: torch.cat([t, t[:, :0], t], 1),
        torch.Tensor.contiguous,
    ],
    "indexing": [
        lambda t: t[:, [0, 2]], lambda t: t[:, torch.tensor([True, False, True, False])],
        lambda t: t[..., -1], lambda t: t[0, :, ::2, None], lambda t: t[:, 1:3, 2:-1],
        lambda t: t[torch.tensor([1]), :, [2]], lambda t: t.take_along_dim(t.argsort(1), 1),
        lambda t: t.index_select(1, torch.tensor([1, 1])),
        lambda t: t.scatter(1, torch.zeros(2, 1, 8, 8, dtype=torch.long), 1.5), lambda t: t[t > 0],
        lambda t: t.index_add(1, torch.tensor([0, 1]), t[:, :2]),
        lambda t: t.masked_fill(t > 0, float("-inf")),
        lambda t: t.gather(1, torch.ones(2, 2, 8, 8, dtype=torch.long)), lambda t: t.masked_select(t < 0),
        lambda t: F.embedding(torch.tensor([[1, 2], [0, 3]]), t[0, 0], padding_idx=1), torch.nonzero,
        lambda t: torch.bucketize(t, torch.arange(3.0)), lambda t: t.index_fill(1, torch.tensor([1]), 0.0),
    ],
    "images": [
        lambda t: F.interpolate(t, size=(5, 7)),
        lambda t: F.interpolate(t, scale_factor=2, mode="bilinear"),
        lambda t: F.interpolate(t, size=(5, 7), mode="bicubic", antialias=True),
        lambda t: F.pixel_shuffle(t, 2), lambda t: F.fold(F.unfold(t, 3, padding=1), (8, 8), 3, padding=1),
        lambda t: F.adaptive_avg_pool2d(t, 3), lambda t: F.adaptive_max_pool2d(t, 3),
        lambda t: F.pad(t, (1, 1, 1, 1), mode="reflect"), lambda t: F.pad(t, (1, -1), value=float("-inf")),
        lambda t: F.pad(t, (1, 1, 0, 1), mode="circular"),
        lambda t: F.grid_sample(t, t[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False),
        lambda t: F.max_pool2d(t, 3, 2, ceil_mode=True), lambda t: F.max_pool2d(t, 2, return_indices=True),
        lambda t: F.avg_pool2d(t, 3, count_include_pad=False, padding=1), lambda t: F.lp_pool2d(t, 2, 2),
        lambda t: F.group_norm(t, 2, torch.ones(4)), F.instance_norm, lambda t: F.rms_norm(t, (8,)),
        lambda t: F.layer_norm(t, (8,), torch.ones(8), torch.zeros(8)),
        lambda t: F.local_response_norm(t, 2),
    ],
    "products": [
        lambda t: torch.einsum("bchw,bdhw->bcd", t, t), lambda t: t @ t.mT, lambda t: t[0, 0] @ t[0, 0, 0],
        lambda t: torch.baddbmm(t[0], t[0], t[0], beta=0.5, alpha=2),
        lambda t: torch.tensordot(t, t, ([1, 2], [1, 2])),
        lambda t: torch.addmm(t[0, 0], t[0, 1], t[0, 2], alpha=0.3), lambda t: t[0, 0, 0].dot(t[0, 0, 1]),
        lambda t: torch.cdist(t[0, 0], t[0, 1]), lambda t: torch.outer(t[0, 0, 0], t[0, 0, 1]),
        lambda t: torch.linalg.solve(t @ t.mT + 9 * torch.eye(8), t), lambda t: t[0, 0, 0] @ t[0, 0],
        lambda t: F.scaled_dot_product_attention(t, t, t, is_causal=True),
        lambda t: F.scaled_dot_product_attention(t, t, t, t[..., :1] < 9, scale=0.3),
        lambda t: F.scaled_dot_product_attention(t, t[:, :2], t[:, :2], enable_gqa=True),
        lambda t: torch.fft.irfft2(torch.fft.rfft2(t)),
        lambda t: torch.view_as_real(torch.polar(t.abs(), t)),
    ],
    "new tensors and losses": [
        lambda t: torch.arange(5), lambda t: torch.arange(1, 9, 2.0), lambda t: torch.linspace(0, 1, 5),
        lambda t: torch.eye(3, 4), lambda t: torch.full_like(t, 3),
        lambda t: torch.zeros_like(t, dtype=torch.int8), lambda t: t.new_full((2,), 7),
        lambda t: torch.tril_indices(3, 3), lambda t: F.one_hot(torch.arange(3), 4),
        lambda t: F.cross_entropy(t.flatten(1), torch.tensor([1, 2])), lambda t: F.mse_loss(t, t * 2),
        lambda t: F.smooth_l1_loss(t, t * 2),
        lambda t: F.kl_div(t.log_softmax(1), t.softmax(1), reduction="sum"),
        lambda t: F.binary_cross_entropy_with_logits(t, t.sigmoid()),
        lambda t: F.hinge_embedding_loss(t, t.sign()), lambda t: F.margin_ranking_loss(t, t + 1, t.sign()),
        lambda t: F.triplet_margin_loss(t[0], t[1], t[0] + 1),

        lambda t: F.cosine_similarity(t, t + 1),
    ],
}  # fmt: skip

MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "lstm": (lambda: nn.LSTM(8, 6, 2, bidirectional=True, batch_first=True), ((2, 5, 8),)),
    "gru": (lambda: nn.GRU(8, 6), ((5, 2, 8),)),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), ((2, 5, 8), (2, 4, 8), (2, 4, 8))),
    "decoder": (lambda: nn.TransformerDecoderLayer(8, 2, 16), ((5, 2, 8), (4, 2, 8))),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), ((2, 3), (2, 4))),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), ((2, 8),)),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2)),
        ((2, 4, 20),),
    ),
    "three dimensions": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.AvgPool3d(2)),
        ((1, 2, 8, 8, 8),),
    ),
    "decoder of images": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), nn.BatchNorm2d(6), nn.SiLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(6, 8, 3, padding="same", padding_mode="reflect"),
            nn.GroupNorm(2, 8), nn.PixelUnshuffle(2),
            nn.Conv2d(32, 4, 1), nn.Hardtanh(-0.5, 0.5), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(),
        ),
        ((2, 4, 5, 5),),
    ),
}  # fmt: skip


class Together(nn.Module):
    def __init__(self, functions: list[Fn]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: torch.Tensor) -> list[Any]:
        return [f(x) for f in self.functions]


def assert_equal_to_eager(model: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    f = runtime.compile(model.eval(), args, backend="aten")
    with torch.no_grad():
        want = model(*args)
    got = f(*args)
    assert pytree.tree_structure(got) == pytree.tree_structure(want)
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("group", FUNCTIONS)
def test_functions(group: str) -> None:
    assert_equal_to_eager(Together(FUNCTIONS[group]), (torch.randn(2, 4, 8, 8),))


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    make, shapes = MODULES[name]
    assert_equal_to_eager(make(), tuple(torch.randn(shape) for shape in shapes))
