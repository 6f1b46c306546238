"""How many attentions and rotary positions are found of those that thirty families of transformers spell."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch

import passes
from capture import capture
from capture.ir import Fusion, op_name
from passes.fuse import Fuse


class Family(NamedTuple):
    """Options of the configuration, and how many operators a model of two layers has."""

    options: dict[str, Any]
    attentions: int = 2
    ropes: int = 0  # of queries and of keys, in each layer
    left: int = 0  # softmaxes that are no scaled_dot_product_attention


SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZES, "intermediate_size": 37}
SHARED = {**WIDE, "num_key_value_heads": 2}
OLD = {
    "vocab_size": 99,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 40,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 32,
    "patch_size": 8,
}
BOTH = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
FALCON = {"new_decoder_architecture": False, "bos_token_id": 1, "eos_token_id": 2}

FAST = {
    "Bloom": Family({"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "Falcon alibi": Family({**SIZES, **FALCON, "alibi": True}),
    "Mpt": Family({"vocab_size": 99, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "GPTNeoX": Family({**WIDE, "max_position_embeddings": 40}, ropes=4),
}
SLOW = {
    "Falcon": Family({**SIZES, **FALCON}, ropes=4),
    "Falcon new": Family({**SIZES, **FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, ropes=4),
    "GPTNeo": Family({"vocab_size": 99, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4,
                      "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 40, **IDS}),
    "CodeGen": Family({**OLD, "rotary_dim": 4}, ropes=4),
    "GPTJ": Family({**OLD, "rotary_dim": 4}, ropes=4),
    "GPTBigCode": Family(OLD),
    "OPT": Family({**SIZES, "ffn_dim": 37, "word_embed_proj_dim": 32, "max_position_embeddings": 40}),
    "Phi": Family(WIDE, ropes=4),
    "Phi3": Family({**SHARED, **IDS}, ropes=4),
    "Qwen2": Family(SHARED, ropes=4),
    "Qwen3": Family({**SHARED, "head_dim": 8}, ropes=4),
    "Gemma": Family({**WIDE, "num_key_value_heads": 1, "head_dim": 8}, ropes=4),
    "Gemma2": Family({**SHARED, "head_dim": 8}, attentions=0, ropes=4, left=2),  # tanh between the two
    "Mistral": Family(SHARED, ropes=4),
    "Cohere": Family({**SHARED, **IDS}, ropes=4),
    "StableLm": Family({**SHARED, **IDS}, ropes=4),
    "Roberta": Family({**WIDE, "max_position_embeddings": 40}),
    "Electra": Family({**WIDE, "embedding_size": 32}),
    "Albert": Family({**WIDE, "embedding_size": 32}),
    "DebertaV2": Family(WIDE),
    "T5": Family({"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4,
                  "decoder_start_token_id": 0}, attentions=6),
    "Bart": Family({**BOTH, **IDS, "max_position_embeddings": 40}, attentions=6),
    "Whisper": Family({**BOTH, **IDS, "num_mel_bins": 8, "max_source_positions": 16,
                       "max_target_positions": 40}, attentions=6),
    "CLIPText": Family({**WIDE, **IDS, "max_position_embeddings": 40}),
    "CLIPVision": Family(IMAGE),
    "SiglipVision": Family(IMAGE, attentions=3),
    "Dinov2": Family({k: v for k, v in IMAGE.items() if k != "intermediate_size"}),
}  # fmt: skip
FAMILIES = {**FAST, **SLOW}
CASES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def built(name: str) -> torch.nn.Module:
    """A small model with attention spelled out, without a key-value cache."""
    import transformers

    family = name.split()[0]
    config = getattr(transformers, family + "Config")(**FAMILIES[name].options, attn_implementation="eager")
    if hasattr(config, "use_cache"):
        config.use_cache = False
    torch.manual_seed(0)
    model: torch.nn.Module = getattr(transformers, family + "Model")(config)
    return model.eval()


def inputs(name: str) -> dict[str, torch.Tensor]:
    """A batch of two, the second padded on the left, so that some rows of its mask are closed."""
    ids, padding = torch.randint(3, 99, (2, 7)), torch.tensor([[1] * 7, [0, 0, *[1] * 5]])
    if "image_size" in FAMILIES[name].options:
        return {"pixel_values": torch.randn(2, 3, 32, 32)}
    if name == "Whisper":
        return {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": ids}
    given = {"input_ids": ids, "attention_mask": padding}
    return {**given, "decoder_input_ids": ids[:, :5]} if name in ("T5", "Bart") else given


@pytest.mark.parametrize("name", CASES)
def test_what_is_found(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kwargs = inputs(name)
        graph = capture(built(name), (), kwargs)
    after = passes.optimize(graph, passes=[*passes.PIPELINES[1], Fuse(target="gpu")], verify=True)
    nodes = [node for outer in after.nodes for node in (outer.region.nodes if outer.region else [outer])]
    found = Counter(op_name(node.op).split(".")[1] for node in nodes)
    family = FAMILIES[name]
    assert found["scaled_dot_product_attention"] == family.attentions
    assert found["softmax"] == family.left
    assert sum(node.op == Fusion("rope") for node in after.nodes) == family.ropes
    torch.testing.assert_close(after.run(**kwargs), graph.run(**kwargs), rtol=1e-4, atol=1e-4)
