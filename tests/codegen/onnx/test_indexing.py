"""Reading and writing by index: against eager, with negative, empty, broadcast and boolean indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

x345 = torch.arange(60.0).view(3, 4, 5)
i2 = torch.tensor([2, 0])
j2 = torch.tensor([-1, 1])
i22 = torch.tensor([[0, 2], [1, 1]])
mask34 = torch.arange(12).view(3, 4) % 3 == 0
mask345 = torch.arange(60).view(3, 4, 5) % 7 == 0

READS: dict[str, Callable[[torch.Tensor], Any]] = {
    "one index": lambda x: (x[i2], x[:, j2], x[..., i2], x[i22], x[:, i22], x[[0, -1]]),
    "pairs": lambda x: (x[i2, j2], x[:, i2, j2], x[i22, j2], x[i2[:, None], j2]),
    "apart": lambda x: (x[i2, :, j2], x[i22, :, i2], x[i2, :, j2[:, None]]),
    "all": lambda x: (x[i2, j2, i2], x[i22, 1, j2], x[0, i2], x[i2, 1:, 2]),
    "with slices and None": lambda x: (x[i2, 1:3], x[None, i2], x[:, None, i2, j2], x[1:, i2, :-1]),
    "masks": lambda x: (
        x[mask345],
        x[mask34],
        x[:, mask34.T[:, :1].flatten()],
        x[torch.tensor([True, False, True])],
    ),
    "gather": lambda x: (
        x.gather(0, i22[..., None]),
        torch.gather(x, 1, torch.tensor([[[0, 1, 3, 2, 1]]])),
        x.gather(2, i22[None]),
    ),
    "take": lambda x: (
        x.take(i22),
        x.index_select(1, i2),
        torch.take_along_dim(x, x.argsort(1), 1),
        x.take_along_dim(i2),
    ),
    "nonzero": lambda x: (
        (x > 50).nonzero(),
        x[0, 0].nonzero(),
        torch.masked_select(x, x > 40),
        torch.where(x > 55)[0],
    ),
    "embedding": lambda x: (F.embedding(i22, x[0]), F.embedding(i22, x[0], padding_idx=1), x[0][i22]),
}


@pytest.mark.parametrize("name", READS)
def test_reading(name: str, same: Callable[..., None]) -> None:
    same(READS[name], x345, atol=0)


def test_indices_from_the_caller(same: Callable[..., None]) -> None:
    same(lambda x, i, m: (x[i], x[:, i], x[m], x[i, i]), x345, torch.tensor([1, -2, 0]), mask345)
    same(lambda x, i: x[i], x345, torch.zeros(0, dtype=torch.int64))
    same(lambda x, i: (x[i], x.index_select(0, i)), x345, torch.tensor([1, 0], dtype=torch.int32))


def _written(write: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The tensor after a write in place to a copy of it."""

    def run(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        write(y)
        return y

    return run


def _set(index: Any, value: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return _written(lambda y: y.__setitem__(index, value(y) if callable(value) else value))


every = slice(None)
WRITES: dict[str, Callable[[torch.Tensor], Any]] = {
    "one index": _set(i2, 1.0),
    "a row": _set(i2, torch.arange(5.0)),
    "second dim": _set((every, i2), lambda y: y[:, 2:] + 100),
    "second dim, broadcast": _set((every, i2), torch.arange(5.0)),
    "last dim": _set((every, every, j2), torch.ones(3, 1, 2)),
    "pairs": _set((i2, j2), torch.arange(10.0).view(2, 5)),
    "pairs behind": _set((every, i2, j2), torch.tensor([7.0, 8.0])),
    "pairs apart": _set((i2, every, j2), lambda y: y[:2, :, 0] * 2),
    "grid": _set((i22, j2), -1.0),
    "negative": _set(torch.tensor([-1]), 0.0),
    "mask": _set(mask345, 0.0),
    "mask of leading dims": _set(mask34, -1.0),
    "mask with values": _set(mask34, lambda y: torch.arange(4.0)[:, None] + y[0, 0]),
    "slice": _set((every, slice(1, 3)), 0.0),
    "slice of the end": _set((Ellipsis, slice(-2, None)), lambda y: y[..., :2] * 10),
    "slice with a step": _set((every, slice(0, None, 2)), lambda y: y[:, 1::2]),
    "whole slice": _set((every, every), lambda y: y.flip(0)),
    "one place": _set((1, 2), lambda y: y[0, 0] * 3),
    "index_put add": _written(
        lambda y: y.index_put_((torch.tensor([0, 0, 1]),), torch.ones(4, 5), accumulate=True)
    ),
    "index_put pairs": _written(lambda y: y.index_put_((i22, i22), torch.ones(5), accumulate=True)),
    "scatter": lambda x: (
        x.scatter(0, i22[..., None], 9.0),
        x.scatter(1, i22[None], torch.full((2, 3, 3), -5.0)),
    ),
    "scatter_add": lambda x: (
        x.scatter_add(2, i22[None], torch.ones(1, 2, 2)),
        x.scatter(1, i22[None], 2.0, reduce="multiply"),
    ),
    "scatter_reduce": lambda x: (
        x.scatter_reduce(0, i22[..., None], x * 3, "amax"),
        x.scatter_reduce(1, i22[None], x, "sum"),
    ),
    "index ops": lambda x: (
        x.index_add(1, i2, torch.ones(3, 2, 5), alpha=2),
        x.index_copy(2, i2, x[..., 3:]),
        x.index_fill(0, i2, 4.0),
    ),
    "masked": lambda x: (
        x.masked_scatter(mask345, x.flip(0)),
        x.masked_fill(mask345, -1),
        x.masked_fill(mask34[..., None], 2),
    ),
    "scatters": lambda x: (
        x.select_scatter(x[1], 0, 2),
        x.slice_scatter(x[:, :1], 1, 2, 3),
        x.slice_scatter(x[:2] * 2, 0, 0, 3, 2),
    ),
}


@pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter:UserWarning")
@pytest.mark.parametrize("name", WRITES)
def test_writing(name: str, same: Callable[..., None]) -> None:
    same(WRITES[name], x345, atol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16], ids=str)
def test_other_types(dtype: torch.dtype, same: Callable[..., None]) -> None:
    x = (x345 % 2).to(dtype)
    same(
        lambda x: (x[i2], x[i2, j2], x[mask34], x.gather(0, i22[..., None]), x.scatter(0, i22[..., None], 1)),
        x,
    )


def test_a_cache_is_written_at_a_position(same: Callable[..., None]) -> None:
    def update(cache: torch.Tensor, new: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        kept = cache.clone()
        kept[:, :, position] = new
        return kept

    same(update, torch.zeros(1, 2, 8, 3), torch.randn(1, 2, 2, 3), torch.tensor([4, 5]), atol=0)
