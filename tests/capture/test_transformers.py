"""Other people's models: six architectures of the transformers package, made small, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from capture import Graph, capture
from capture.frontends.dispatch import capture_with_dispatch

SMALL = {"num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32}
IDS = {"input_ids": torch.randint(0, 99, (2, 7), generator=torch.Generator().manual_seed(0))}
IMAGE = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
CASES: dict[str, tuple[Callable[[], Any], str, dict[str, torch.Tensor]]] = {
    "bert": (
        lambda: transformers.BertConfig(vocab_size=99, hidden_size=32, **SMALL),
        "BertModel",
        IDS | {"attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])},
    ),
    "gpt2": (
        lambda: transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4),
        "GPT2LMHeadModel",
        IDS,
    ),
    "vit": (
        lambda: transformers.ViTConfig(hidden_size=32, image_size=32, patch_size=8, **SMALL),
        "ViTModel",
        IMAGE,
    ),
    "t5": (
        lambda: transformers.T5Config(vocab_size=99, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8),
        "T5ForConditionalGeneration",
        IDS | {"decoder_input_ids": IDS["input_ids"][:, :5]},
    ),
    "swin": (
        lambda: transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
        ),
        "SwinModel",
        IMAGE,
    ),
    "convnext": (
        lambda: transformers.ConvNextConfig(
            hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 2, 1], num_stages=4, image_size=32
        ),
        "ConvNextModel",
        IMAGE,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, nn.Module, dict[str, torch.Tensor], Graph]:
    make_config, class_name, inputs = CASES[request.param]
    torch.manual_seed(0)
    config = make_config()
    config.use_cache = False
    model = getattr(transformers, class_name)(config).eval()
    return request.param, model, inputs, capture(model, (), inputs)


def test_results_and_text(case: tuple[str, nn.Module, dict[str, torch.Tensor], Graph]) -> None:
    _, model, inputs, graph = case
    graph.verify()
    assert str(Graph.parse(str(graph))) == str(graph)
    with torch.no_grad():
        expected = model(**inputs)
    result = graph.run(**inputs)
    assert type(result) is type(expected)
    assert result.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(result[key], expected[key], msg=lambda text, key=key: f"{key}: {text}")


def test_places_in_the_librarys_own_code(case: tuple[str, nn.Module, dict[str, torch.Tensor], Graph]) -> None:
    name, model, _, graph = case
    paths = dict(model.named_modules())
    rows = list(graph.captured.values())
    assert all(row.file.startswith("transformers/") for row in rows)
    assert any(row.file == f"transformers/models/{name}/modeling_{name}.py" for row in rows)
    assert {row.module for row in rows} <= set(paths)
    assert all("linear" not in row.op or isinstance(paths[row.module], nn.Linear) for row in rows)


def test_dispatch_tracing_sees_the_same_operators(
    case: tuple[str, nn.Module, dict[str, torch.Tensor], Graph],
) -> None:
    _, model, inputs, graph = case
    traced = capture_with_dispatch(model, (), inputs)
    traced.verify()
    with torch.no_grad():
        torch.testing.assert_close(traced.run(**inputs)[0], model(**inputs)[0])
    assert [str(n.op) for n in traced.nodes] == [str(n.op) for n in graph.nodes]
