"""Whole models: static, and with a dynamic batch run at three batch sizes; captured and optimised."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch.export import Dim

import passes
from capture import capture
from codegen import onnx

MODELS = ["mlp", "resnet", "vit", "bert", "gpt2", "llama"]


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_static(name: str, level: int) -> None:
    module = importlib.import_module(f"models.{name}")
    args = module.example_inputs(factory="small")
    graph = passes.optimize(capture(module.small(), args), level=level)
    assert onnx.check(onnx.export(graph), graph, args) < 1e-5


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("name", MODELS)
def test_dynamic_batch(name: str, level: int) -> None:
    module = importlib.import_module(f"models.{name}")
    args = module.example_inputs(batch=2, factory="small")
    dynamic = ({0: Dim("batch")},) * len(args)
    graph = passes.optimize(capture(module.small(), args, dynamic_shapes=dynamic), level=level)
    model = onnx.export(graph)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for batch in (1, 2, 5):
        assert onnx.check(model, graph, module.example_inputs(batch=batch, factory="small")) < 1e-5


@pytest.mark.parametrize("level", [0, 2])
def test_a_cache_goes_in_and_out(level: int) -> None:
    from models import gpt2

    args = gpt2.example_inputs(factory="small_with_cache")
    graph = passes.optimize(capture(gpt2.small_with_cache(), args), level=level)
    model = onnx.export(graph)
    caches = [f"h.{i}.attn.cache.{kind}" for i in (0, 1) for kind in "kv"]
    assert [i.name for i in model.graph.input] == ["token", "position", *caches]
    assert [o.name for o in model.graph.output] == ["output", *(f"{c}.updated" for c in caches)]
    for position in (0, 5, 15):
        assert onnx.check(model, graph, (args[0], torch.tensor([position]))) < 1e-5


def _transformer(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A tiny model of the transformers package, with example inputs for a batch of two."""
    import transformers as hf

    ids = torch.randint(50, (2, 7))
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config: Any
    if name == "bert":
        mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
        config = hf.BertConfig(vocab_size=50, max_position_embeddings=32, **sizes)
        return hf.BertModel(config), dict(input_ids=ids, attention_mask=mask)
    if name == "gpt2":
        tokens = dict(bos_token_id=0, eos_token_id=0, use_cache=False)
        config = hf.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, **tokens)
        return hf.GPT2LMHeadModel(config), dict(input_ids=ids)
    if name == "t5":
        config = hf.T5Config(
            vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, use_cache=False
        )
        return hf.T5Model(config), dict(input_ids=ids, decoder_input_ids=ids[:, :5])
    if name == "vit":
        config = hf.ViTConfig(image_size=16, patch_size=4, **sizes)
        return hf.ViTModel(config), dict(pixel_values=torch.randn(2, 3, 16, 16))
    if name == "swin":
        config = hf.SwinConfig(
            image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4
        )
        return hf.SwinModel(config), dict(pixel_values=torch.randn(2, 3, 32, 32))
    config = hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, image_size=32)
    return hf.ConvNextModel(config), dict(pixel_values=torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "t5", "swin", "convnext"])
def test_models_of_others(name: str) -> None:
    model, inputs = _transformer(name)
    dynamic = {key: {0: Dim("batch")} for key in inputs}
    graph = capture(model.eval(), (), inputs, dynamic_shapes=dynamic)
    optimized = passes.optimize(graph, level=2)
    exported, exported_optimized = onnx.export(graph), onnx.export(optimized)
    for batch in (1, 2, 5):
        given = {key: value.repeat(3, *[1] * (value.dim() - 1))[:batch] for key, value in inputs.items()}
        assert onnx.check(exported, graph, (), given) < 1e-5
        assert onnx.check(exported_optimized, optimized, (), given) < 1e-5
