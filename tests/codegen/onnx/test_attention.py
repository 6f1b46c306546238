"""Attention: whole at opset 23, taken apart before, and where ONNX's operator does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from capture.errors import UnsupportedOpError
from codegen import onnx


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


Q, K, V = randn(2, 4, 5, 8), randn(2, 4, 7, 8) + 0.1, randn(2, 4, 7, 8)
GROUPED = randn(2, 2, 7, 8)
MASK = torch.arange(35).view(5, 7) % 3 != 0
NO_LOOKS = MASK & (torch.arange(5)[:, None] != 2)  # the third token may look nowhere

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(),
    "causal": dict(is_causal=True),
    "scale": dict(scale=0.3),
    "large scale": dict(scale=2),
    "causal with a scale": dict(is_causal=True, scale=0.7),
    "boolean mask": dict(attn_mask=MASK),
    "boolean mask for keys": dict(attn_mask=MASK[:1].expand(2, 1, 1, 7)),
    "boolean mask for each": dict(attn_mask=MASK.expand(2, 1, 5, 7)),
    "mask that hides all": dict(attn_mask=NO_LOOKS),
    "added mask": dict(attn_mask=randn(5, 7)),
    "added mask for heads": dict(attn_mask=randn(4, 5, 7)),
    "added mask for keys": dict(attn_mask=randn(2, 1, 1, 7)),
    "added mask for queries": dict(attn_mask=randn(1, 4, 5, 1)),
    "infinite mask": dict(attn_mask=torch.zeros(5, 7).masked_fill(~MASK, -torch.inf)),
}


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("name", CASES)
def test_attention(name: str, opset: int, same: Callable[..., None]) -> None:
    same(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **CASES[name]), Q, K, V, opset=opset)


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"attn_mask": MASK}], ids=str)
def test_grouped_queries(options: dict[str, Any], opset: int, same: Callable[..., None]) -> None:
    same(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options),
        Q,
        GROUPED,
        GROUPED.flip(2),
        opset=opset,
    )


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("tokens", [(5, 5), (3, 7), (7, 3), (1, 1)], ids=str)
def test_causal_counts_from_the_first_token(
    tokens: tuple[int, int], opset: int, same: Callable[..., None]
) -> None:
    q, k = randn(1, 2, tokens[0], 4), randn(1, 2, tokens[1], 4)
    same(lambda q, k: F.scaled_dot_product_attention(q, k, k + 1, is_causal=True), q, k, opset=opset)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_types(dtype: torch.dtype, same: Callable[..., None]) -> None:
    given = [t.to(dtype) for t in (Q, K, V)]
    same(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
        *given,
        atol=5e-3 if dtype == torch.float16 else 1e-6,
    )


@pytest.mark.parametrize("shape", [(3, 5, 8), (5, 8), (2, 2, 3, 5, 8)], ids=str)
def test_other_ranks(shape: tuple[int, ...], same: Callable[..., None]) -> None:
    q, k = randn(*shape), randn(*shape).flip(-1)
    same(lambda q, k: F.scaled_dot_product_attention(q, k, q + k), q, k)


def test_values_of_another_size_and_broadcast_keys(same: Callable[..., None]) -> None:
    same(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), Q, K, V[..., :3])
    same(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), Q, K[:1], V[:1])
    same(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), Q[:0], K[:0], V[:0])


@pytest.mark.parametrize(("opset", "whole"), [(20, 0), (22, 0), (23, 1), (24, 1)])
def test_it_is_one_node_from_opset_23_on(opset: int, whole: int, trace: Callable[..., Any]) -> None:
    graph = trace(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), (Q, K, V))
    model = onnx.export(graph, opset=opset)
    assert [n.op_type for n in model.graph.node].count("Attention") == whole
    assert onnx.check(model, graph, (Q, K, V)) < 1e-5


def test_multi_head_attention(same: Callable[..., None]) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = randn(2, 5, 8)
    same(lambda x: layer(x, x, x, need_weights=False)[0], x)
    same(lambda x: layer(x, x, x), x)


def test_transformer_layer(same: Callable[..., None]) -> None:
    same(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), randn(2, 5, 8))


def test_dropout_is_refused(trace: Callable[..., Any]) -> None:
    graph = trace(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.1), (Q, K, V))
    with pytest.raises(UnsupportedOpError, match="attention with dropout"):
        onnx.export(graph)
