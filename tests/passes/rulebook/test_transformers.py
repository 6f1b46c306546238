"""Attention, norms and activations of transformers' models in their eager spelling are found, all of them."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passes
from capture import capture
from capture.ir import op_name

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Bert": {**SIZES, "intermediate_size": 37},
    "DistilBert": {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37},
    "GPT2": {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 20, "bos_token_id": 0,
             "eos_token_id": 0},
    "Llama": {**SIZES, "num_key_value_heads": 2, "intermediate_size": 37},
    "Gemma": {**SIZES, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 37},
    "T5Encoder": {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4,
                  "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False},
    "OPT": {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "ffn_dim": 37, "word_embed_proj_dim": 32, "max_position_embeddings": 40},
    "ViT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37,
            "image_size": 32, "patch_size": 8},
    "Swin": {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
             "window_size": 4},
}  # fmt: skip
FOUND = {
    "Bert": {"scaled_dot_product_attention": 2, "layer_norm": 5, "gelu": 2},
    "DistilBert": {"scaled_dot_product_attention": 2, "layer_norm": 5, "gelu": 2},
    "GPT2": {"scaled_dot_product_attention": 2, "layer_norm": 5, "gelu": 2},
    "Llama": {"scaled_dot_product_attention": 2, "rms_norm": 5, "silu": 2},
    "Gemma": {"scaled_dot_product_attention": 2, "rms_norm": 5, "gelu": 2},
    "T5Encoder": {"scaled_dot_product_attention": 2, "rms_norm": 5, "gelu": 2},
    "OPT": {"scaled_dot_product_attention": 2, "layer_norm": 5, "relu": 2},
    "ViT": {"scaled_dot_product_attention": 2, "layer_norm": 5, "gelu": 2},
    "Swin": {"scaled_dot_product_attention": 4, "layer_norm": 11, "gelu": 4},
}
SPELLED_OUT = {"softmax", "bmm", "matmul", "erf", "tanh", "pow", "rsqrt", "sqrt", "var", "sigmoid", "amax"}


def built(name: str) -> tuple[nn.Module, Tensor]:
    """A small model with attention spelled out, and an input for it."""
    import transformers

    config = getattr(transformers, name.removesuffix("Encoder") + "Config")
    options = CONFIGS[name] if name in ("ViT", "Swin") else {**CONFIGS[name], "use_cache": False}
    if name in ("Bert", "DistilBert"):
        options = CONFIGS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name + "Model")(config(**options, attn_implementation="eager")).eval()
    x = torch.randn(2, 3, 32, 32) if name in ("ViT", "Swin") else torch.randint(99, (2, 7))
    return model, x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_one_is_found(name: str, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, x = built(name)
        x = x.to(dtype) if x.is_floating_point() else x
        graph = capture(model.to(dtype), (x,))
    after = passes.optimize(graph, passes=passes.PIPELINES[1], verify=True)
    found = Counter(op_name(node.op).split(".")[1] for node in after.nodes)
    assert {op: found[op] for op in FOUND[name]} == FOUND[name]
    poolers = 1 if name in ("Bert", "ViT") else 0  # a tanh of their own
    assert sum(found[op] for op in SPELLED_OUT) == poolers
    one, other = (
        next(v for v in (r.values() if isinstance(r, dict) else r) if isinstance(v, Tensor))
        for r in (after.run(x), graph.run(x))
    )
    limit = 1e-5 if dtype is torch.float32 else 1e-1
    torch.testing.assert_close(one, other, rtol=limit, atol=limit)
