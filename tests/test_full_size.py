"""The models as users run them, in full size: text from every front end, ONNX at several batch sizes."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch.export import Dim

from capture import CaptureError, Graph, capture
from codegen import onnx
from passes import PIPELINES, optimize

pytestmark = pytest.mark.slow

FACTORIES = [
    ("mlp", "build"),
    ("resnet", "resnet18"),
    ("resnet", "resnet34"),
    ("resnet", "resnet50"),
    ("resnet", "resnet101"),
    ("vit", "build"),
    ("bert", "build"),
    ("gpt2", "build"),
    ("gpt2", "with_cache"),
    ("llama", "build"),
]
NOT_TRACEABLE = {("gpt2", "with_cache")}  # by torch.fx


def made(name: str, factory: str, batch: int = 1) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...], Any]:
    module = importlib.import_module(f"models.{name}")
    return getattr(module, factory)(), module.example_inputs(batch, factory), module


@pytest.mark.parametrize("frontend", ["export", "fx", "dispatch"])
@pytest.mark.parametrize(("name", "factory"), FACTORIES)
def test_text_round_trips(name: str, factory: str, frontend: str) -> None:
    model, args, _ = made(name, factory)
    if frontend == "fx" and (name, factory) in NOT_TRACEABLE:
        with pytest.raises(CaptureError):
            capture(model, args, frontend=frontend)
        return
    graph = capture(model, args, frontend=frontend)
    for stage in (graph, *(optimize(graph, level, verify=True) for level in sorted(PIPELINES))):
        parsed = Graph.parse(str(stage))
        assert str(parsed) == str(stage)
        parsed.verify()


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize(("name", "factory"), FACTORIES)
def test_onnx_static(name: str, factory: str, level: int) -> None:
    model, args, _ = made(name, factory)
    graph = optimize(capture(model, args), level)
    exported = onnx.export(graph)
    assert onnx.check(exported, graph, args) < 1e-4
    with torch.no_grad():  # last: a cache is written to
        torch.testing.assert_close(graph.run(*args), model(*args), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize(("name", "factory"), [f for f in FACTORIES if f[1] != "with_cache"])
def test_onnx_dynamic_batch(name: str, factory: str, level: int) -> None:
    model, args, module = made(name, factory, batch=2)
    graph = optimize(capture(model, args, dynamic_shapes=({0: Dim("batch")},) * len(args)), level)
    exported = onnx.export(graph)
    for batch in (1, 2, 3):
        given = module.example_inputs(batch, factory)
        assert onnx.check(exported, graph, given) < 1e-4
        with torch.no_grad():
            torch.testing.assert_close(graph.run(*given), model(*given), rtol=1e-4, atol=1e-4)
