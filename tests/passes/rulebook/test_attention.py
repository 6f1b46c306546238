"""Attention written by hand is found in its common spellings, with its masks; look-alikes are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.passes.rulebook.found import names, refusals, rewritten

B, H, L, D = 2, 4, 5, 8
SDPA = "scaled_dot_product_attention"
Function = Callable[..., Any]


def operands(*shape: int, dtype: torch.dtype = torch.float32, count: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape or (B, H, L, D), generator=generator).to(dtype) for _ in range(count))


def w(scores: Tensor) -> Tensor:
    return torch.softmax(scores, -1)


def t(x: Tensor) -> Tensor:
    return x.transpose(-2, -1)


def attention(graph: Any) -> Any:
    """The one attention in a graph."""
    [node] = [n for n in graph.nodes if n.is_op(torch.ops.aten.scaled_dot_product_attention)]
    return node


SCALED: dict[str, tuple[Function, float]] = {
    "after": (lambda q, k, v: w(q @ t(k) * 0.3) @ v, 0.3),
    "divided": (lambda q, k, v: w(q @ t(k) / math.sqrt(D)) @ v, D**-0.5),
    "divided by a power of two": (lambda q, k, v: w(q @ t(k) / 4) @ v, 0.25),
    "not": (lambda q, k, v: w(q @ t(k)) @ v, 1.0),
    "queries": (lambda q, k, v: w((q * 0.3) @ t(k)) @ v, 0.3),
    "keys": (lambda q, k, v: w(q @ t(k / math.sqrt(D))) @ v, D**-0.5),
    "queries and keys": (lambda q, k, v: w((q * 0.6) @ t(k * 0.5)) @ v, 0.3),
    "softmax in fp32": (
        lambda q, k, v: torch.softmax(q @ t(k) * 0.3, -1, torch.float32).to(q.dtype) @ v,
        0.3,
    ),
    "no dropout": (lambda q, k, v: F.dropout(w(q @ t(k) * 0.3), 0.0, True) @ v, 0.3),
    "dropout in eval": (lambda q, k, v: F.dropout(w(q @ t(k) * 0.3), 0.1, False) @ v, 0.3),
    "einsum": (
        lambda q, k, v: torch.einsum("bhij,bhjd->bhid", w(torch.einsum("bhid,bhjd->bhij", q, k) * 0.3), v),
        0.3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("spelling", SCALED)
def test_scaling(spelling: str, dtype: torch.dtype) -> None:
    function, scale = SCALED[spelling]
    if spelling == "softmax in fp32" and dtype is torch.float64:
        assert "softmax" in names(rewritten(function, *operands(dtype=dtype)))  # it rounds to fp32 on the way
        return
    found = rewritten(function, *operands(dtype=dtype))
    assert names(found) == [SDPA]
    assert attention(found).arg("scale") == pytest.approx(scale)


LAYOUTS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "one head after another": (lambda q, k, v: torch.bmm(w(torch.bmm(q, t(k)) * 0.3), v), (B * H, L, D)),
    "baddbmm": (
        lambda q, k, v: torch.bmm(w(torch.baddbmm(torch.empty(B * H, L, L), q, t(k), beta=0, alpha=0.3)), v),
        (B * H, L, D),
    ),
    "one head": (lambda q, k, v: w(q @ k.T * 0.3) @ v, (L, D)),
    "heads behind": (
        lambda q, k, v: torch.einsum("bhqk,bkhd->bqhd", w(torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.3), v),
        (B, L, H, D),
    ),
    "einsum of one head after another": (
        lambda q, k, v: torch.einsum("bij,bjd->bid", w(torch.einsum("bid,bjd->bij", q, k) * 0.3), v),
        (B * H, L, D),
    ),
    "einsum of transposed keys": (
        lambda q, k, v: torch.einsum(
            "bhqk,bkhd->bhqd",
            w(torch.einsum("bhqd,bhdk->bhqk", q, t(k)) * 0.3),
            v.transpose(1, 2).contiguous(),
        ),
        (B, H, L, D),
    ),
    "einsum with heads behind at the end": (
        lambda q, k, v: torch.einsum("bhqk,bhkd->bqhd", w(q @ t(k) * 0.3), v),
        (B, H, L, D),
    ),
    "keys permuted": (
        lambda q, k, v: w(q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * 0.3) @ v.transpose(1, 2),
        (B, L, H, D),
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    function, shape = LAYOUTS[layout]
    found = names(rewritten(function, *operands(*shape)))
    assert found.count(SDPA) == 1
    assert not {"softmax", "matmul", "bmm", "einsum", "baddbmm"} & set(found)


# -- masks

TRIL = torch.ones(L, L).tril()
OPEN = torch.rand(B, 1, L, L, generator=torch.Generator().manual_seed(1)) > 0.4
OPEN[..., 0] = True
CLOSED_ROW = OPEN.clone()
CLOSED_ROW[0, 0, 1] = False
LOWEST = torch.finfo(torch.float32).min


def by_position(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i = torch.arange(q.shape[2])
    return w((q @ t(k) * 0.3).masked_fill(i[None, :] > i[:, None], -math.inf)) @ v


def by_tril(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    return w((q @ t(k) * 0.3).masked_fill(~mask, -math.inf)) @ v


CAUSAL: dict[str, Function] = {
    "tril": lambda q, k, v: w((q @ t(k) * 0.3).masked_fill(TRIL == 0, -math.inf)) @ v,
    "triu added": lambda q, k, v: w(q @ t(k) * 0.3 + torch.full((L, L), -math.inf).triu(1)) @ v,
    "where": lambda q, k, v: w(torch.where(TRIL.bool(), q @ t(k) * 0.3, LOWEST)) @ v,
    "where a tensor": lambda q, k, v: w(torch.where(TRIL.bool(), q @ t(k) * 0.3, torch.tensor(-1e9))) @ v,
    "positions": by_position,
    "made in the model": by_tril,
}


@pytest.mark.parametrize("spelling", CAUSAL)
def test_causal_masks(spelling: str) -> None:
    found = rewritten(CAUSAL[spelling], *operands())
    assert names(found) == [SDPA]
    assert attention(found).arg("is_causal")
    assert attention(found).arg("attn_mask") is None


@pytest.mark.parametrize("function", [by_position, by_tril])
def test_causal_masks_of_a_dynamic_length(function: Function) -> None:
    length = torch.export.Dim("length", min=2, max=64)
    found = rewritten(function, *operands(), dynamic_shapes=(({2: length},) * 3,))
    assert attention(found).arg("is_causal")
    q, k, v = operands(B, H, 11, D)
    torch.testing.assert_close(found.run(q, k, v), function(q, k, v), rtol=1e-4, atol=1e-5)


def test_a_part_of_a_larger_causal_mask_with_a_dynamic_length() -> None:
    largest = torch.ones(64, 64).tril().bool()

    def function(x: Tensor) -> Tensor:
        length = x.shape[1]
        scores = x @ x.transpose(1, 2)
        return w(scores.masked_fill(~largest[:length, :length], -math.inf)) @ x

    length = torch.export.Dim("length", min=1, max=63)
    found = rewritten(function, torch.randn(2, 9, 8), dynamic_shapes=(({1: length},),))
    assert attention(found).arg("is_causal")
    x = torch.randn(2, 31, 8)
    torch.testing.assert_close(found.run(x), function(x), rtol=1e-4, atol=1e-5)


def test_a_mask_that_is_no_triangle_stays_a_mask() -> None:
    mask = torch.ones(L, L).tril(1)
    found = rewritten(lambda q, k, v: w((q @ t(k) * 0.3).masked_fill(mask == 0, -math.inf)) @ v, *operands())
    assert names(found) == [SDPA]
    assert not attention(found).arg("is_causal")
    assert attention(found).arg("attn_mask").tensor_type.dtype is torch.bool


MASKED: dict[str, Function] = {
    "filled with -inf": lambda q, k, v, m: w((q @ t(k) * 0.3).masked_fill(~m, -math.inf)) @ v,
    "filled with the lowest": lambda q, k, v, m: w((q @ t(k) * 0.3).masked_fill(~m, LOWEST)) @ v,
    "filled with -1e9": lambda q, k, v, m: w((q @ t(k) * 0.3).masked_fill(m == 0, -1e9)) @ v,
    "where": lambda q, k, v, m: w(torch.where(m, q @ t(k) * 0.3, -1e9)) @ v,
    "where the other way": lambda q, k, v, m: w(torch.where(~m, -1e9, q @ t(k) * 0.3)) @ v,
    "added": lambda q, k, v, m: w(q @ t(k) * 0.3 + torch.where(m, 0.0, LOWEST)) @ v,
    "added to unscaled": lambda q, k, v, m: w(q @ t(k) + (1.0 - m.to(q.dtype)) * -1e4) @ v,
}


@pytest.mark.parametrize("mask", [OPEN, CLOSED_ROW], ids=["open rows", "a closed row"])
@pytest.mark.parametrize("spelling", MASKED)
def test_masks_of_which_nothing_is_known(spelling: str, mask: Tensor) -> None:
    """Closed rows are what they were, NaN or uniform: `rewritten` compares."""
    found = names(rewritten(MASKED[spelling], *operands(), mask))
    assert found.count(SDPA) == 1
    assert not {"softmax", "matmul"} & set(found)
    assert ("amax" in found) == (spelling == "filled with -inf")


@pytest.mark.parametrize("low", [0.0, -math.inf])
def test_an_additive_mask_from_outside(low: float) -> None:
    added = torch.zeros(B, 1, L, L).masked_fill(~CLOSED_ROW, low)
    found = names(rewritten(lambda q, k, v, m: w(q @ t(k) * 0.3 + m) @ v, *operands(), added))
    assert found == [SDPA, "amax", "eq", "masked_fill"]


def test_a_constant_mask_with_open_rows_needs_no_care() -> None:
    found = rewritten(lambda q, k, v: w((q @ t(k)).masked_fill(~OPEN, -math.inf)) @ v, *operands())
    assert names(found) == [SDPA]
    found = rewritten(lambda q, k, v: w((q @ t(k)).masked_fill(~CLOSED_ROW, -math.inf)) @ v, *operands())
    assert names(found) == [SDPA, "masked_fill"]  # NaN is put back


def test_a_mask_given_to_baddbmm() -> None:
    mask = operands(B * H, L, L, count=1)[0]
    for alpha in (0.3, 1):
        found = rewritten(
            lambda q, k, v, alpha=alpha: torch.bmm(w(torch.baddbmm(mask, q, t(k), alpha=alpha)), v),
            *operands(B * H, L, D),
        )
        assert {SDPA, "reshape"} == set(names(found))


def test_two_masks_are_joined() -> None:
    one, other = operands(1, H, L, L, count=2)
    found = rewritten(lambda q, k, v: w(q @ t(k) * 0.3 + one + other) @ v, *operands())
    assert names(found) == [SDPA]
    found = rewritten(lambda q, k, v: w(q @ t(k) + one + other) @ v, *operands())
    assert names(found) == [SDPA]


def test_a_closed_row_in_fp16_is_refused() -> None:
    found = rewritten(MASKED["filled with -1e9"], *operands(dtype=torch.bfloat16), OPEN)
    assert SDPA in names(found)
    low = torch.finfo(torch.float16).min
    found = rewritten(
        lambda q, k, v, m: w((q @ t(k) * 0.3).masked_fill(~m, low)) @ v, *operands(dtype=torch.float16), OPEN
    )
    assert SDPA not in names(found)
    assert any("fp16 has no number" in reason for reason in refusals(found))


# -- heads shared by several queries


def expanded(x: Tensor) -> Tensor:
    return x[:, :, None].expand(B, 2, 2, L, D).reshape(B, H, L, D)


SHARED: dict[str, Callable[[Tensor], Tensor]] = {
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "expand": expanded,
    "repeat": lambda x: x.unsqueeze(2).repeat(1, 1, 2, 1, 1).flatten(1, 2),
}
MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "no mask": lambda s: s,
    "causal": lambda s: s.masked_fill(TRIL == 0, -math.inf),
    "constant": lambda s: s.masked_fill(~OPEN, -math.inf),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("spelling", SHARED)
def test_shared_heads(spelling: str, mask: str) -> None:
    share, masked = SHARED[spelling], MASKS[mask]
    k, v = operands(B, 2, L, D, count=2)
    found = rewritten(lambda q, k, v: w(masked(q @ t(share(k)) * 0.3)) @ share(v), operands()[0], k, v)
    assert names(found) == [SDPA]
    assert attention(found).arg("enable_gqa")
    assert attention(found).arg("is_causal") == (mask == "causal")


@pytest.mark.parametrize("mask", MASKS)
def test_one_head_of_keys_for_all_queries(mask: str) -> None:
    k, v = operands(B, 1, L, D, count=2)
    found = rewritten(lambda q, k, v: w(MASKS[mask](q @ t(k) * 0.3)) @ v, operands()[0], k, v)
    assert names(found) == [SDPA]
    assert attention(found).arg("enable_gqa")


def test_heads_repeated_as_a_whole_are_not_shared() -> None:
    k, v = operands(B, 2, L, D, count=2)
    found = rewritten(
        lambda q, k, v: w(q @ t(k.repeat(1, 2, 1, 1)) * 0.3) @ v.repeat(1, 2, 1, 1), operands()[0], k, v
    )
    assert names(found) == ["repeat", "repeat", SDPA]


# -- what is no attention

UNLIKE: dict[str, Function] = {
    "another axis": lambda q, k, v: torch.softmax(q @ t(k) * 0.3, -2) @ v,
    "used elsewhere": lambda q, k, v: (lambda p: (p @ v, p))(w(q @ t(k) * 0.3)),
    "scores used elsewhere": lambda q, k, v: (lambda s: w(s) @ v + s.sum())(q @ t(k) * 0.3),
    "a number that closes nothing": lambda q, k, v: w((q @ t(k)).masked_fill(TRIL == 0, -5.0)) @ v,
    "a product of weights": lambda q, k, v: (w(q @ t(k)) * 0.5) @ v,
    "weights behind": lambda q, k, v: t(v) @ w(q @ t(k)),
    "broadcast keys": lambda q, k, v: w(q @ t(k[:, :1])) @ v,
    "a broadcast batch": lambda q, k, v: w(q @ t(k[:1])) @ v[:1],
    "a scale per head": lambda q, k, v: w(q @ t(k) * torch.arange(1.0, 5.0)[:, None, None]) @ v,
    "a sigmoid": lambda q, k, v: torch.sigmoid(q @ t(k) * 0.3) @ v,
}


@pytest.mark.parametrize("name", UNLIKE)
def test_a_look_alike_is_not(name: str) -> None:
    check = name != "used elsewhere"
    assert SDPA not in names(rewritten(UNLIKE[name], *operands(), check=check))


def test_dropout_in_training_is_not() -> None:
    from capture import capture
    from passes import PIPELINES, optimize
    from tests.passes.rulebook.found import Spelled

    graph = capture(Spelled(lambda q, k, v: F.dropout(w(q @ t(k)), 0.5, True) @ v), operands())
    assert SDPA not in names(optimize(graph, passes=PIPELINES[1]))


def test_a_division_that_belongs_to_no_attention_stays() -> None:
    assert names(rewritten(lambda x: torch.softmax(x / 3.0, -1), operands()[0])) == ["div", "softmax"]
    assert names(rewritten(lambda x, y: torch.bmm(x, t(y)), *operands(B, L, D, count=2))) == [
        "transpose",
        "bmm",
    ]


def test_a_dynamic_batch() -> None:
    batch = torch.export.Dim("batch", min=1, max=16)
    function = SCALED["divided"][0]
    found = rewritten(function, *operands(), dynamic_shapes=(({0: batch},) * 3,))
    assert names(found) == [SDPA]
    q, k, v = operands(3, H, L, D)
    torch.testing.assert_close(found.run(q, k, v), function(q, k, v), rtol=1e-4, atol=1e-5)
