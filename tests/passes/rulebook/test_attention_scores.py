"""Attention whose masks, scales and heads come in another order is found, but not what would change by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.passes.rulebook.found import names, refusals, rewritten
from tests.passes.rulebook.test_attention import LOWEST, OPEN, SDPA, B, D, H, L, operands, t, w

Function = Callable[..., Any]
ALIBI = torch.arange(float(L)) * torch.tensor([0.5, 0.25, 0.125, 0.0625])[:, None, None]  # [H, 1, L]
PADDED = torch.zeros(B, 1, L, L).masked_fill(~OPEN, LOWEST)


def beside(x: Tensor) -> Tensor:
    """Heads beside the batch."""
    return x.reshape(B * H, *x.shape[2:])


def apart(x: Tensor) -> Tensor:
    return x.view(B, H, L, -1)


HEADS: dict[str, Function] = {
    "alone": lambda q, k, v: w(apart(beside(q) @ t(beside(k)))) @ v,
    "scaled": lambda q, k, v: w(apart(beside(q) @ t(beside(k)) * 0.3)) @ v,
    "scaled behind": lambda q, k, v: w(apart(beside(q) @ t(beside(k))) * 0.3) @ v,
    "baddbmm": lambda q, k, v: w(
        apart(torch.baddbmm(ALIBI.repeat(B, 1, 1), beside(q), t(beside(k)), alpha=0.3)) + PADDED
    ) @ v,
    "a bias": lambda q, k, v: w(apart(beside(q) @ t(beside(k)) + ALIBI.repeat(B, 1, 1))) @ v,
    "filled": lambda q, k, v: w(apart(torch.bmm(beside(q), t(beside(k)))).masked_fill(~OPEN, LOWEST)) @ v,
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_heads_beside_the_batch(name: str) -> None:
    found = rewritten(HEADS[name], *operands())
    assert names(found).count(SDPA) == 1
    assert not {"softmax", "matmul", "bmm", "baddbmm"} & set(names(found))


def test_heads_beside_a_dynamic_batch() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.shape[0]
        scores = q.reshape(n * H, L, D) @ t(k.reshape(n * H, L, D))
        return w(scores.view(n, H, L, L) * 0.3) @ v

    batch = torch.export.Dim("batch", min=1, max=16)
    found = rewritten(function, *operands(), dynamic_shapes=(({0: batch},) * 3,))
    assert SDPA in names(found)
    q, k, v = operands(3, H, L, D)
    torch.testing.assert_close(found.run(q, k, v), function(q, k, v), rtol=1e-4, atol=1e-5)


JOINED: dict[str, Function] = {
    "added before the scale": lambda q, k, v: w((q @ t(k) + PADDED) * 0.3) @ v,
    "one before and one behind": lambda q, k, v: w((q @ t(k) + ALIBI) * 0.3 + PADDED) @ v,
    "divided": lambda q, k, v: w((q @ t(k) + ALIBI) / math.sqrt(D)) @ v,
    "added, then filled": lambda q, k, v: w((q @ t(k) * 0.3 + ALIBI).masked_fill(~OPEN, LOWEST)) @ v,
    "added, then filled with -inf": lambda q, k, v: w((q @ t(k) + ALIBI).masked_fill(~OPEN, -math.inf)) @ v,
    "filled, then added": lambda q, k, v: w((q @ t(k) * 0.3).masked_fill(~OPEN, LOWEST) + ALIBI) @ v,
    "filled, then padded": lambda q, k, v: w((q @ t(k)).masked_fill(~OPEN, LOWEST) + PADDED) @ v,
    "scaled before and behind": lambda q, k, v: w((q @ t(k) * 0.3 + ALIBI) * 0.5) @ v,
    "two scales": lambda q, k, v: w(q @ t(k) * 0.5 / 3) @ v,
    "masks, then scores": lambda q, k, v: w(ALIBI + (PADDED + q @ t(k) * 0.3)) @ v,
    "softmax in its own dtype": lambda q, k, v: torch.softmax(q @ t(k) * 0.3, -1, dtype=q.dtype) @ v,
}


@pytest.mark.parametrize("name", JOINED)
def test_masks_and_scales_in_another_order(name: str) -> None:
    found = rewritten(JOINED[name], *operands())
    assert names(found).count(SDPA) == 1
    assert not {"softmax", "matmul"} & set(names(found))


@pytest.mark.parametrize("closed", [False, True], ids=["open rows", "a closed row"])
def test_masks_from_outside(closed: bool) -> None:
    mask = OPEN.clone()
    mask[0, 0, 1] = not closed
    for fill in (LOWEST, -math.inf):
        found = rewritten(
            lambda q, k, v, m, fill=fill: w((q @ t(k) * 0.3 + ALIBI).masked_fill(~m, fill)) @ v,
            *operands(),
            mask,
        )
        assert names(found).count(SDPA) == 1


REFUSED: dict[str, tuple[Function, torch.dtype, str]] = {
    "a scale above one": (
        lambda q, k, v: w((q @ t(k) + PADDED) * 8.0) @ v, torch.float32, "times 8 a mask may overflow"),
    "a filling that scores change": (
        lambda q, k, v: w((q @ t(k) + ALIBI).masked_fill(~OPEN, -1e5)) @ v, torch.float32, "beside -100000"),
    "a filling of fp16": (
        lambda q, k, v: w((q @ t(k) + ALIBI.half()).masked_fill(~OPEN, -65504.0)) @ v, torch.float16,
        "scores are seen beside"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_is_refused(name: str) -> None:
    function, dtype, why = REFUSED[name]
    found = rewritten(function, *operands(dtype=dtype))
    assert SDPA not in names(found)
    assert any(why in reason for reason in refusals(found)), refusals(found)


LOOK_ALIKES: dict[str, Function] = {
    "no values": lambda q, k, v: w(apart(beside(q) @ t(beside(k)))).sum() * v,
    "other heads": lambda q, k, v: w((beside(q) @ t(beside(k))).view(H, B, L, L).transpose(0, 1)) @ v,
    "a softmax over heads": lambda q, k, v: torch.softmax(apart(beside(q) @ t(beside(k))), 1) @ v,
    "scores used elsewhere": lambda q, k, v: (lambda s: w(apart(s)) @ v + s.sum())(beside(q) @ t(beside(k))),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_a_look_alike_is_not(name: str) -> None:
    assert SDPA not in names(rewritten(LOOK_ALIKES[name], *operands()))
