"""Scaled dot-product attention, kept whole where ONNX has it (opset 23), else taken apart."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as oir
import torch

from codegen.onnx.builder import Builder
from codegen.onnx.lowerings.view import expand_to
from codegen.onnx.table import lowers

aten = torch.ops.aten


@lowers(aten.scaled_dot_product_attention)
def attention(
    op: Builder, q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, causal: bool = False,
    *, scale: Any = None, enable_gqa: bool = False,
) -> oir.Value:  # fmt: skip
    """softmax(q k^T scale + mask) v over [..., heads, tokens, size]; with GQA, k and v have fewer heads."""
    if dropout:
        raise op.unsupported("attention with dropout; call model.eval() before capture")
    if q.type.shape[-1] == 0 and scale is None:
        raise op.unsupported("heads of size 0")
    if op.opset >= 23 and _whole(q, k, v, mask) and (scale is None or isinstance(scale, (int, float))):
        return op.Attention(
            q,
            k,
            v,
            _full_mask(op, mask, q, k),
            is_causal=int(causal),
            scale=None if scale is None else float(scale),
        )
    return _taken_apart(op, q, k, v, mask, causal, scale)


@lowers(aten._scaled_dot_product_flash_attention_for_cpu)
def flash_attention(
    op: Builder, q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, *, attn_mask: Any = None,
    scale: Any = None,
) -> oir.Value:  # fmt: skip
    return attention(op, q, k, v, attn_mask, dropout, causal, scale=scale)


def _whole(q: Any, k: Any, v: Any, mask: Any) -> bool:
    """ONNX's operator takes [N, heads, tokens, size] without broadcasting, and a scale above 0.

    In doubles, runtimes give NaN to a token that a mask lets look nowhere.
    """
    same_batch = q.type.shape[0] == k.type.shape[0] == v.type.shape[0] if q.type.rank == 4 else False
    same_heads = same_batch and k.type.shape[1] == v.type.shape[1]
    nothing = any(d == 0 for t in (q, k, v) for d in t.type.shape)
    mask_fits = mask is None or (mask.type.rank <= 4 and q.type.dtype != torch.float64)
    return same_heads and k.type.rank == v.type.rank == 4 and not nothing and mask_fits


def _full_mask(op: Builder, mask: Any, q: Any, k: Any) -> Any:
    """Runtimes broadcast the mask over batch and heads, not over tokens."""
    if mask is None:
        return None
    value = mask if mask.type.dtype in (torch.bool, q.type.dtype) else op.cast(mask, q.type.dtype)
    shape = list(mask.type.shape)
    return expand_to(op, value, shape, [*shape[:-2], q.type.shape[-2], k.type.shape[-2]])


def _taken_apart(op: Builder, q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: Any) -> oir.Value:
    dtype = q.type.dtype
    heads, kv_heads = q.type.shape[-3:][0], k.type.shape[-3:][0]
    key, value = op.value(k), op.value(v)
    if q.type.rank >= 3 and heads != kv_heads and kv_heads != 1:
        key, value = (_repeated(op, t, heads // kv_heads) for t in (k, v))
    factor = op.cast(1 / math.sqrt(q.type.shape[-1]) if scale is None else scale, dtype)
    order = [*range(k.type.rank - 2), k.type.rank - 1, k.type.rank - 2]
    scores = op.MatMul(op.Mul(q, factor), op.Transpose(key, perm=order))
    lowest = op.cast(-math.inf, dtype)
    if causal:
        tokens = [op.Range(*(op.cast(d, torch.int64) for d in (0, t.type.shape[-2], 1))) for t in (q, k)]
        allowed = op.GreaterOrEqual(op.Unsqueeze(tokens[0], [1]), tokens[1])
        scores = op.Where(allowed, scores, lowest)
    if mask is not None:
        boolean = mask.type.dtype == torch.bool
        scores = op.Where(mask, scores, lowest) if boolean else op.Add(scores, op.cast(mask, dtype))
    weights = op.Softmax(scores, axis=-1)
    if mask is not None:  # a token that may look nowhere gets nothing, where softmax gives NaN
        hidden = op.Equal(op.ReduceMax(scores, [-1], keepdims=1), lowest)
        weights = op.Where(hidden, op.cast(0.0, dtype), weights)
    return op.MatMul(weights, value)


def _repeated(op: Builder, x: Any, count: int) -> oir.Value:
    """Each head `count` times in a row."""
    shape = list(x.type.shape)
    wide = op.Expand(op.Unsqueeze(x, [-3]), [*[1] * (len(shape) - 2), count, 1, 1])
    return op.Reshape(wide, op.vector([*shape[:-3], shape[-3] * count, *shape[-2:]]))
