"""Reductions, sorting and cumulative sums: against eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

x345 = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2))

REDUCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "sum": lambda x: (
        x.sum(),
        x.sum(1),
        x.sum((0, -1)),
        x.sum(-1, keepdim=True),
        x.sum([]),
        x.sum(0, dtype=torch.float64),
    ),
    "mean": lambda x: (x.mean(), x.mean(0), x.mean((1, 2), keepdim=True), x.mean(-1)),
    "prod": lambda x: (x.prod(), x.prod(1), x.prod(-1, keepdim=True)),
    "extremes": lambda x: (x.amax(), x.amax(1), x.amin((0, 2)), x.amin(-1, keepdim=True), x.max(), x.min()),
    "max of a dim": lambda x: (*x.max(1), *x.min(-1, keepdim=True), *x.max(0)),
    "aminmax": lambda x: (*torch.aminmax(x), *torch.aminmax(x, dim=1)),
    "argmax": lambda x: (
        x.argmax(),
        x.argmax(1),
        x.argmin(-1, keepdim=True),
        x.argmin(),
        x.argmax(keepdim=True),
    ),
    "any and all": lambda x: ((x > 0).any(), (x > 0).all(1), x.any(-1), (x > -9).all(), (x > 2).any((0, 1))),
    "count": lambda x: ((x > 0).count_nonzero(), torch.count_nonzero(x > 0, 1)),
    "var": lambda x: (
        x.var(),
        x.var(1),
        x.var(-1, unbiased=False),
        x.var((0, 1), correction=0, keepdim=True),
        x.var(0, keepdim=True),
    ),
    "std": lambda x: (
        x.std(),
        x.std(1),
        x.std(-1, correction=2),
        *torch.var_mean(x, 1),
        *torch.std_mean(x, (0, 1), keepdim=True),
    ),
    "logsumexp": lambda x: (x.logsumexp(1), x.logsumexp((0, 1), keepdim=True)),
    "norms": lambda x: (
        x.norm(),
        x.norm(dim=1),
        torch.linalg.vector_norm(x, 1, -1),
        torch.linalg.vector_norm(x, torch.inf, 0),
        torch.linalg.vector_norm(x, 3, (0, 2), keepdim=True),
        torch.linalg.vector_norm(x, 0),
        x.norm(p=1, dim=0),
    ),
    "normalize": lambda x: (F.normalize(x), F.normalize(x, p=1, dim=-1), F.cosine_similarity(x, x.flip(0))),
    "cumulative": lambda x: (x.cumsum(0), x.cumsum(-1), (x > 0).cumsum(1), x.cumprod(-1), x.cumprod(0)),
    "running extremes": lambda x: (*torch.cummax(x, 1), *torch.cummin(x.round(), -1)),
    "medians": lambda x: (x.median(), *x.median(1), *x.median(-1, keepdim=True), *x.kthvalue(2, 0)),
    "distances": lambda x: (torch.cdist(x, x * 2), torch.cdist(x, x[:1], p=1), F.pairwise_distance(x, x * 2)),
    "taken apart by torch": lambda x: (
        F.cross_entropy(x[:, :, 0], torch.tensor([0, 2, 1]), label_smoothing=0.1),
        F.nll_loss(F.log_softmax(x[:, :, 0], -1), torch.tensor([1, 0, 3]), reduction="none"),
        F.binary_cross_entropy_with_logits(x, (x > 0).float()),
        F.kl_div(x, x.softmax(-1), reduction="sum"),
        torch.linalg.matrix_norm(x[0]),
        x.nanmean(1),
        torch.logaddexp(x, x * 2),
        x.quantile(0.3, 1),
        torch.trace(x[0]),
        torch.diff(x),
    ),
    "losses": lambda x: (
        F.mse_loss(x, x * 2),
        F.l1_loss(x, x * 2, reduction="none"),
        F.smooth_l1_loss(x, x * 3),
    ),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction(name: str, same: Callable[..., None]) -> None:
    same(REDUCTIONS[name], x345)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.int16, torch.bool], ids=str)
def test_reductions_of_integers(dtype: torch.dtype, same: Callable[..., None]) -> None:
    x = (x345 * 3).to(dtype)
    same(lambda x: (x.sum(), x.sum(1), x.amax(1), x.amin(), x.any(0), x.all(), x.cumsum(0), x.prod(-1)), x)
    if dtype != torch.bool:
        same(lambda x: (x.argmax(1), x.argmin()), x)


def test_half_and_double(same: Callable[..., None]) -> None:
    same(lambda x: (x.sum(1), x.mean(), x.amax(0), x.var(1), x.argmax(), x.norm(dim=1)), x345.double())
    same(lambda x: (x.sum(1), x.mean(), x.amax(0), x.argmax(), x.float().var(1)), x345.half(), atol=2e-2)


def test_reductions_of_a_scalar(same: Callable[..., None]) -> None:
    same(
        lambda x: (x.sum(), x.mean(), x.amax(), x.argmax(), x.cumsum(0), x.sum(0), x.norm(), x.any()),
        torch.tensor(2.5),
    )


def test_sums_of_nothing(same: Callable[..., None]) -> None:
    same(lambda x: (x.sum(), x.sum(0), x.sum(1), x.any(), x.all(), x.amax(1), x.cumsum(0)), torch.zeros(0, 3))


SORTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "topk": lambda x: (*x.topk(2), *x.topk(3, 1), *x.topk(1, 0, largest=False)),
    "sort": lambda x: (*x.sort(), *x.sort(1, descending=True), *torch.sort(x, stable=True, dim=0)),
    "argsort": lambda x: (x.argsort(), x.argsort(1, descending=True), torch.argsort(x, dim=0, stable=True)),
    "extreme of sorted": lambda x: (x.sort()[0][..., -1], x.msort(), x.topk(2, sorted=True).values),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int16], ids=str)
@pytest.mark.parametrize("name", SORTS)
def test_sort(name: str, dtype: torch.dtype, same: Callable[..., None]) -> None:
    distinct = torch.randperm(60, generator=torch.Generator().manual_seed(3)).view(3, 4, 5)
    same(SORTS[name], distinct.to(dtype), atol=0)


def test_stable_sort_of_equals(same: Callable[..., None]) -> None:
    x = torch.tensor([2, 1, 2, 1, 1, 3])
    same(lambda x: (*torch.sort(x, stable=True), torch.argsort(x, stable=True, descending=True)), x)


def test_one_hot_and_buckets(same: Callable[..., None]) -> None:
    index = torch.tensor([[0, 3, 1], [2, 2, 0]])
    bounds = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    same(lambda i: F.one_hot(i, 5), index)
    same(
        lambda x, b: (
            torch.bucketize(x, b),
            torch.bucketize(x, b, right=True),
            torch.searchsorted(b, x),
            torch.bucketize(x, b, out_int32=True),
        ),
        torch.tensor([[-2.0, 0.0, 0.3], [0.5, 1.0, 7.0]]),
        bounds,
    )
