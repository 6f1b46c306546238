"""Views, movement and creation: against eager, with odd sizes, empty and non-contiguous tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from capture.errors import UnsupportedOpError
from codegen import onnx

x235 = torch.arange(30.0).view(2, 3, 5)

VIEWS: dict[str, Callable[[torch.Tensor], Any]] = {
    "reshape": lambda x: (x.reshape(6, -1), x.reshape(-1), x.reshape(5, 3, 2), x.view(2, 15)),
    "flatten": lambda x: (x.flatten(), x.flatten(1), x.flatten(-2, -1), x.ravel()),
    "unflatten": lambda x: x.unflatten(2, (5, 1)),
    "squeeze": lambda x: (
        x[:1].squeeze(),
        x[:1].squeeze(0),
        x.squeeze(1),
        x[:1, :1].squeeze((0, 1)),
        x[:1].squeeze(-3),
    ),
    "unsqueeze": lambda x: (x.unsqueeze(0), x.unsqueeze(-1), x.unsqueeze(2), x[..., None, :]),
    "permute": lambda x: (x.permute(2, 0, 1), x.permute(-1, 1, 0), x.permute(0, 1, 2)),
    "transpose": lambda x: (x.transpose(0, 2), x.transpose(-1, -2), x[0].t(), x.mT, x[0].T, x[0, 0].t()),
    "movedim": lambda x: (x.movedim(0, 2), x.movedim((0, 1), (-1, 0)), torch.swapaxes(x, 0, 1)),
    "expand": lambda x: (
        x[:, :1].expand(2, 4, 5),
        x.expand(3, -1, -1, -1),
        x[:1].expand_as(x),
        x.expand(2, 3, 5),
    ),
    "slice": lambda x: (
        x[:, 1:],
        x[:, -2:],
        x[..., :-1],
        x[:, ::2],
        x[..., 1:4:2],
        x[:, 5:],
        x[:, :100],
        x[-9:1],
    ),
    "select": lambda x: (x[0], x[:, -1], x[..., 2], x.select(-1, -2)),
    "narrow": lambda x: (x.narrow(1, 1, 2), x.narrow(-1, 0, 3)),
    "split": lambda x: (
        x.split(2, -1),
        x.split([1, 3, 1], 2),
        x.chunk(2, 1),
        x.split(9),
        x.tensor_split(2, 2),
    ),
    "tensor_split": lambda x: (x.tensor_split((1, 3), -1), x.chunk(3, 0)),
    "unbind": lambda x: (x.unbind(), x.unbind(-1), x[:1].unbind(0)),
    "diagonal": lambda x: (
        x[0].diagonal(),
        x.diagonal(1, 1, 2),
        x.diagonal(-1, 0, 2),
        x.diagonal(-1, -1, -2),
    ),
    "unfold": lambda x: (x.unfold(2, 3, 2), x.unfold(1, 2, 1), x.unfold(-1, 5, 1)),
    "as_strided": lambda x: x.as_strided((2, 3), (15, 2), 1),
    "view_as": lambda x: x.view_as(torch.zeros(2, 3, 5)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_view(name: str, same: Callable[..., None]) -> None:
    same(VIEWS[name], x235, atol=0)


@pytest.mark.parametrize("name", ["reshape", "flatten", "slice", "squeeze", "permute", "expand", "split"])
def test_view_of_what_is_not_contiguous(name: str, same: Callable[..., None]) -> None:
    fn = VIEWS[name]
    same(lambda x: fn(x.transpose(0, 2).contiguous()), x235.permute(2, 1, 0), atol=0)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.bool, torch.float16, torch.float64, torch.int8], ids=str
)
def test_views_of_other_types(dtype: torch.dtype, same: Callable[..., None]) -> None:
    same(
        lambda x: (
            x.reshape(3, -1),
            x[:, 1:],
            x[1],
            x.permute(2, 0, 1),
            x.expand(2, -1, -1, -1),
            x.split(2, 1),
            torch.cat([x, x]),
            torch.stack([x, x], -1),
            x.repeat(1, 2, 1),
            x.flip(0),
            x.roll(1, 0),
        ),
        x235.to(dtype),
    )


def test_views_of_nothing(same: Callable[..., None]) -> None:
    same(
        lambda x: (
            x.reshape(0, 15),
            x.reshape(3, 0),
            x.permute(2, 0, 1),
            x[:, 1:],
            x.flatten(),
            x.unsqueeze(0),
            x.transpose(0, 1).reshape(5, 0),
            x.expand(0, 3, 5),
            x.sum(),
            torch.cat([x, x], 1),
        ),
        torch.zeros(0, 3, 5),
    )


MOVES: dict[str, Callable[[torch.Tensor], Any]] = {
    "cat": lambda x: (
        torch.cat([x, x], 0),
        torch.cat([x, x[:, :1]], 1),
        torch.cat([x], -1),
        torch.cat([x, torch.zeros(0)], 1),
    ),
    "cat promotes": lambda x: torch.cat([x, torch.ones(2, 3, 1, dtype=torch.int64)], -1),
    "stack": lambda x: (torch.stack([x, x]), torch.stack([x, x], -1), torch.stack([x], 1)),
    "joins": lambda x: (
        torch.hstack([x, x]),
        torch.vstack([x, x]),
        torch.dstack([x, x]),
        torch.column_stack([x, x]),
    ),
    "pad": lambda x: (
        F.pad(x, (1, 2)),
        F.pad(x, (0, 1, 2, 0)),
        F.pad(x, (1, 1), value=3.5),
        F.pad(x, (-1, -1)),
    ),
    "pad one way": lambda x: (F.pad(x, (-1, 2)), F.pad(x, (1, 1, -1, 0, 0, 3))),
    "pad reflect": lambda x: (F.pad(x, (2, 1), mode="reflect"), F.pad(x, (1, 1), mode="replicate")),
    "pad circular": lambda x: F.pad(x, (2, 3), mode="circular"),
    "pad planes": lambda x: (
        F.pad(x[None], (1, 2, 2, 1), mode="reflect"),
        F.pad(x[None], (1, 0, 0, 2), mode="replicate"),
    ),
    "repeat": lambda x: (x.repeat(2, 1, 1), x.repeat(2, 1, 1, 3), x.tile(2), x.tile(2, 1, 1, 2)),
    "repeat_interleave": lambda x: (
        x.repeat_interleave(2),
        x.repeat_interleave(3, 1),
        x.repeat_interleave(2, -1),
    ),
    "flip": lambda x: (x.flip(0), x.flip(-1, 1), torch.fliplr(x), torch.flipud(x), x.flip([])),
    "roll": lambda x: (x.roll(1), x.roll(-2, 1), x.roll((1, -1), (0, 2)), x.roll(7, -1), x.roll(0, 0)),
    "triangles": lambda x: (x.tril(), x.triu(), x.tril(-1), x.triu(2), (x > 3).tril(), x.long().triu()),
    "meshgrid": lambda x: torch.meshgrid(x[0, 0], x[0, :, 0], indexing="ij"),
    "diag": lambda x: (torch.diag_embed(x[0]), torch.rot90(x), torch.diag(x[0, 0])),
    "pixels": lambda x: (F.pixel_shuffle(x.repeat(4, 4, 1), 2), F.pixel_unshuffle(x[:, :2, :4], 2)),
    "pixels of a batch": lambda x: (
        F.pixel_shuffle(x.repeat(1, 3, 1).view(2, 9, 1, 5), 3),
        F.channel_shuffle(x[..., None], 3),
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_move(name: str, same: Callable[..., None]) -> None:
    same(MOVES[name], x235, atol=0)


def test_strides_of_a_view_are_refused(trace: Callable[..., Any]) -> None:
    graph = trace(lambda x: x[1:].as_strided((2,), (1,), 20), (x235,))
    with pytest.raises(UnsupportedOpError, match="depends on how its input lies in memory"):
        onnx.export(graph)


CREATIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "filled": lambda x: (
        torch.zeros(2, 3),
        torch.ones(4, dtype=torch.int32),
        torch.full((2,), 7),
        torch.zeros(()),
    ),
    "like": lambda x: (torch.zeros_like(x), torch.ones_like(x, dtype=torch.bool), torch.full_like(x, -2.5)),
    "new": lambda x: (x.new_zeros(3), x.new_ones(1, 2), x.new_full((2, 2), 3), x.new_tensor([1.0, 2.0])),
    "arange": lambda x: (
        torch.arange(5),
        torch.arange(2, 9, 3),
        torch.arange(3.0),
        torch.arange(1, 0, -0.25),
    ),
    "others": lambda x: (
        torch.linspace(0, 1, 5),
        torch.eye(3),
        torch.eye(2, 4),
        torch.tensor(3.0),
        torch.tensor([1, 2]),
    ),
    "indices": lambda x: (torch.tril_indices(3, 3), torch.triu_indices(2, 4, 1)),
    "empty then fill": lambda x: torch.empty(2, 2).fill_(3.0),
}


@pytest.mark.parametrize("name", CREATIONS)
def test_creation(name: str, same: Callable[..., None]) -> None:
    fn = CREATIONS[name]
    same(lambda x: (x, fn(x)), x235)


def test_random_numbers_have_their_shape(trace: Callable[..., Any]) -> None:
    """They are others than torch's, and not constants. ONNX Runtime has them up to opset 21."""
    import numpy as np
    import onnxruntime

    graph = trace(lambda x: (torch.rand(3, 500) + x, torch.randn_like(x)), (torch.zeros(500),))
    session = onnxruntime.InferenceSession(
        onnx.export(graph, opset=21).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {session.get_inputs()[0].name: np.zeros(500, np.float32)}
    uniform, normal = session.run(None, feeds)
    assert uniform.shape == (3, 500)
    assert 0 <= uniform.min() < 0.1
    assert 0.9 < uniform.max() <= 1
    assert normal.shape == (500,)
    assert normal.min() < -1
    assert not np.array_equal(session.run(None, feeds)[0], uniform)
