"""Every model through every pipeline: graphs verify after each pass, text round-trips, the numbers stay."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import pytest
import torch
from torch.export import Dim

from capture import Graph, capture
from passes import PIPELINES, ledger, optimize

FACTORIES = [
    ("mlp", "small"),
    ("resnet", "small"),
    ("vit", "small"),
    ("bert", "small"),
    ("bert", "small_masked"),
    ("gpt2", "small"),
    ("gpt2", "small_with_cache"),
    ("llama", "small"),
]
FRONTENDS = ["export", "fx", "dispatch"]
NOT_TRACEABLE = {("gpt2", "small_with_cache")}  # by torch.fx alone


@cache
def captured(name: str, factory: str, frontend: str, dynamic: bool) -> tuple[Graph, tuple[torch.Tensor, ...]]:
    module = importlib.import_module(f"models.{name}")
    args = module.example_inputs(1 if "cache" in factory else 2, factory)
    batch = Dim("batch", min=1, max=64)
    shapes = tuple({0: batch} for _ in args) if dynamic else None
    return capture(getattr(module, factory)(), args, frontend=frontend, dynamic_shapes=shapes), args


def check(graph: Graph, optimized: Graph, args: tuple[Any, ...]) -> None:
    """The optimised graph is sound, and gives what the captured one gives, in its own dtype and in fp64."""
    text = str(optimized)
    parsed = Graph.parse(text)
    assert str(parsed) == text
    parsed.verify()
    for dtype, tolerance in ((None, 1e-5), (torch.float64, 1e-6)):  # folded weights are rounded to fp32
        wanted, found = run(graph, args, dtype), run(optimized, args, dtype)
        assert len(wanted) == len(found)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def run(graph: Graph, args: tuple[Any, ...], dtype: torch.dtype | None) -> list[torch.Tensor]:
    """The graph's results; what it writes back is put to where it was."""
    held = [target.tensor for target in graph.writebacks]
    before = [t.clone() for t in held]
    results = torch.utils._pytree.tree_leaves(graph.run(*(a.clone() for a in args), dtype=dtype))
    for tensor, old in zip(held, before, strict=True):
        tensor.copy_(old)
    return results


@pytest.mark.parametrize("level", sorted(PIPELINES))
@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(("name", "factory"), FACTORIES)
def test_static(name: str, factory: str, frontend: str, level: int) -> None:
    if frontend == "fx" and (name, factory) in NOT_TRACEABLE:
        frontend = "auto"
    graph, args = captured(name, factory, frontend, dynamic=False)
    check(graph, optimize(graph, level, verify=True), args)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize(("name", "factory"), [f for f in FACTORIES if "cache" not in f[1]])
def test_dynamic_batch(name: str, factory: str, level: int) -> None:
    graph, _ = captured(name, factory, "auto", dynamic=True)
    optimized = optimize(graph, level, verify=True)
    module = importlib.import_module(f"models.{name}")
    for batch in (1, 3, 5):
        check(graph, optimized, module.example_inputs(batch, factory))


@pytest.mark.parametrize(("name", "factory"), FACTORIES)
def test_every_captured_op_has_a_fate(name: str, factory: str) -> None:
    graph, _ = captured(name, factory, "auto", dynamic=False)
    rows = ledger(optimize(graph, 2))
    assert {row.id for row in rows} == set(graph.captured)
    assert all(row.kind for row in rows)
