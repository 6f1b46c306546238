"""Whole models as generated code: the workloads of models/ and those of the transformers package."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import runtime
from capture import capture
from passes import optimize
from runtime.compile import Compiled, Recipe
from runtime.executables import AtenExecutable
from tests.models.workloads import BATCHED


def made(name: str) -> tuple[nn.Module, Callable[[int], tuple[Any, ...]]]:
    module, factory = name.split(":")
    code = importlib.import_module(f"models.{module}")
    return getattr(code, factory)(), lambda batch: code.example_inputs(batch, factory)


def assert_parity(model: nn.Module, f: Compiled, args: tuple[Any, ...], kwargs: Any = None) -> None:
    parity = runtime.compare(model, f, args, kwargs)
    assert parity.ok, parity.reason
    assert parity.reference == "fp64 model"


@pytest.mark.parametrize("name", BATCHED)
def test_every_level_and_a_dynamic_batch(name: str) -> None:
    model, inputs = made(name)
    axes = {0: torch.export.Dim("N", min=1, max=8)}
    static = capture(model, inputs(2))
    dynamic = capture(model, inputs(3), dynamic_shapes=tuple(axes for _ in inputs(1)))
    for graph, level in itertools.product((static, dynamic), (0, 1, 2)):
        after = optimize(graph, level)
        f = Compiled(graph, after, AtenExecutable(after), Recipe(level), model)
        for batch in [2] if graph is static else [1, 2, 5]:
            assert_parity(model, f, inputs(batch))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_cache_is_written(level: int) -> None:
    from models import gpt2

    ours, eager = gpt2.small_with_cache(2, 8), gpt2.small_with_cache(2, 8)
    token = torch.randint(100, (2, 1))
    f = runtime.compile(ours, (token, torch.tensor([0])), backend="aten", level=level)
    for position in range(4):
        args = torch.randint(100, (2, 1)), torch.tensor([position])
        torch.testing.assert_close(f(*args), eager(*args).detach())
    torch.testing.assert_close(dict(ours.named_buffers()), dict(eager.named_buffers()))
    assert f.recompiles == 0


class Selected(nn.Module):
    """A convolution over a batch that the data decide."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x[mask])))
        return self.fc(y.mean((2, 3)))


class Branching(nn.Module):
    """Convolutions before, inside and after a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        z = torch.cond(
            y.sum() > 0,
            lambda t: torch.relu(self.point(t)) + 1,
            lambda t: self.point(t).tanh(),
            [y],
        )
        return self.point(z)


class Residual(nn.Module):
    """One convolution over and over, each time added to what it read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.same = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for _ in range(2):
            x = self.same(x) + x
        a, b = self.conv(x).chunk(2, 1)
        y = self.same(a) + b
        y.add_(1)
        gated = self.same(y) * torch.sigmoid(b)
        return x.amax((2, 3)).argsort(-1), torch.cat([y, gated], 1).contiguous().view(x.shape[0], -1)


def mask(*chosen: int) -> torch.Tensor:
    return torch.tensor(chosen, dtype=torch.bool)


HANDMADE: dict[str, tuple[type[nn.Module], list[tuple[torch.Tensor, ...]]]] = {
    "selected": (
        Selected,
        [(torch.randn(4, 3, 6, 6), mask(*chosen)) for chosen in ((1, 0, 1, 1), (0, 0, 0, 0), (1, 1, 1, 1))],
    ),
    "branching": (Branching, [(torch.randn(n, 3, 6, 6) + shift,) for n, shift in ((2, 0), (5, -9), (3, 9))]),
    "residual": (Residual, [(torch.randn(n, 4, 6, 6),) for n in (2, 1, 5)]),
}


@pytest.mark.parametrize("name", HANDMADE)
def test_handmade_networks(name: str) -> None:
    make, calls = HANDMADE[name]
    model = make().eval()
    shapes = None if name == "selected" else ({0: torch.export.Dim("N", min=1, max=8)},)
    f = runtime.compile(model, calls[0], backend="aten", dynamic_shapes=shapes)
    for args in calls:
        parity = runtime.compare(model, f, args)
        assert parity.ok, parity.reason
        assert parity.reference == ("fp64 graph" if name == "branching" else "fp64 model")


def transformer(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A tiny model with random weights, and its inputs."""
    import transformers as t

    tokens, image = torch.randint(90, (2, 7)), torch.randn(2, 3, 32, 32)
    match name:
        case "bert":
            sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
            mask = torch.ones(2, 7, dtype=torch.int64)
            mask[1, 4:] = 0
            return t.BertModel(t.BertConfig(vocab_size=100, **sizes)), {
                "input_ids": tokens,
                "attention_mask": mask,
            }
        case "gpt2":
            config = t.GPT2Config(
                vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=32, use_cache=False
            )
            return t.GPT2LMHeadModel(config), {"input_ids": tokens}
        case "vit":
            sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
            config = t.ViTConfig(image_size=32, patch_size=8, **sizes)
            return t.ViTForImageClassification(config), {"pixel_values": image}
        case "t5":
            sizes = dict(d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, decoder_start_token_id=0)
            config = t.T5Config(vocab_size=100, use_cache=False, **sizes)
            return t.T5Model(config), {"input_ids": tokens, "decoder_input_ids": tokens[:, :5]}
        case "swin":
            config = t.SwinConfig(
                image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4
            )
            return t.SwinModel(config), {"pixel_values": image}
    config = t.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=32)
    return t.ConvNextModel(config), {"pixel_values": image}


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "t5", "swin", "convnext"])
def test_transformers(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = transformer(name)
    f = runtime.compile(model.eval(), (), inputs, backend="aten")
    assert_parity(model, f, (), inputs)
    with torch.no_grad():
        want = model(**inputs)
    assert type(f(**inputs)) is type(want)
    assert list(f(**inputs)) == list(want)
