"""Plans of whole models, captured and optimised; nothing is run."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

import models.bert
import models.gpt2
import models.llama
import models.mlp
import models.resnet
import models.vit
from capture import Graph, capture
from passes import optimize
from passes.memory import MemoryPlan, plan
from passes.memory_check import Row, lower_bound, problems

FULL = [(models.resnet, "resnet50"), (models.bert, "build"), (models.vit, "build")]
SMALL = [
    (m, "small") for m in (models.resnet, models.bert, models.vit, models.gpt2, models.llama, models.mlp)
]
BOTH = pytest.mark.parametrize("level", ["captured", "optimised"])
ALL = pytest.mark.parametrize(
    ("model", "factory"), FULL + SMALL, ids=[f"{m.__name__}:{f}" for m, f in FULL + SMALL]
)
_GRAPHS: dict[tuple[str, str, str], Graph] = {}


def graph_of(model: ModuleType, factory: str, level: str) -> Graph:
    key = (model.__name__, factory, level)
    if key not in _GRAPHS and level == "captured":
        _GRAPHS[key] = capture(getattr(model, factory)(), model.example_inputs(1, factory))
    elif key not in _GRAPHS:
        _GRAPHS[key] = optimize(graph_of(model, factory, "captured"), level=2)
    return _GRAPHS[key]


def check(made: MemoryPlan) -> None:
    """The plan is valid and as small as its lower bound, all counted by the checker."""
    rows = [Row(b.name, b.first, b.end, b.size, b.offset) for b in made.buffers]
    assert not list(problems(rows, made.arena_bytes))
    bound = lower_bound([(r.lower, r.upper, r.size) for r in rows])
    assert made.lower_bound_bytes == bound
    assert made.arena_bytes == bound
    assert made.in_arena_bytes <= bound
    assert made.callee_allocated_bytes <= bound <= made.expected_peak_bytes <= 1.02 * bound
    assert max(made.live_bytes) == bound == made.live_bytes[made.peak_step]
    assert sum(made.buffers[i].size for i in made.peak_holders) == bound
    assert made.unplanned == ()


@BOTH
@ALL
def test_the_arena_is_exactly_the_lower_bound(model: ModuleType, factory: str, level: str) -> None:
    graph = graph_of(model, factory, level)
    made = plan(graph)
    check(made)
    if level == "optimised":
        assert graph.memory_plan == made


@BOTH
def test_resnet50_without_reuse_would_take_eight_times_the_arena(level: str) -> None:
    made = plan(graph_of(models.resnet, "resnet50", level))
    assert made.naive_bytes >= 8 * made.arena_bytes


def test_the_optimised_resnet50_updates_each_residual_in_place() -> None:
    """Its peak is where the second stage begins: that stage's input, the shortcut, and the block's middle."""
    made = plan(graph_of(models.resnet, "resnet50", "optimised"))
    assert len(made.in_place) == 16
    floats = 256 * 56 * 56 + 512 * 28 * 28 + 128 * 28 * 28
    assert made.arena_bytes == 4 * floats
    holder = made.buffers[made.peak_holders[0]]
    assert holder.location.startswith("models/resnet.py:")


@pytest.mark.parametrize(("model", "factory"), SMALL, ids=[m.__name__ for m, _ in SMALL])
def test_a_dynamic_batch_is_planned_at_its_upper_bound(model: ModuleType, factory: str) -> None:
    args = model.example_inputs(3, factory)
    batch = torch.export.Dim("batch", min=1, max=8)
    module = getattr(model, factory)()
    shapes = {name: {0: batch} for name in list(module.forward.__code__.co_varnames)[1 : len(args) + 1]}
    graph = capture(module, args, dynamic_shapes=shapes)
    made = plan(graph)
    assert made.unplanned == ()
    assert made.lower_bound_bytes == made.arena_bytes
    fixed = plan(graph, sizes=dict.fromkeys(graph.dims, 3))
    assert fixed.arena_bytes == fixed.lower_bound_bytes < made.arena_bytes
