"""Each front end on each model: the same numbers as eager, the same graph whichever way it was made."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from capture import CaptureError, Graph, capture
from capture.frontends.dispatch import capture_with_dispatch
from capture.frontends.export import capture_with_export
from capture.frontends.fx import capture_with_fx
from tests.capture.cases import (
    Branches,
    Loops,
    Lowered,
    Modes,
    Numbers,
    Tied,
    check_against_eager,
    check_equal,
)

FRONTENDS: dict[str, Callable[..., Graph]] = {
    "export": capture_with_export,
    "strict": partial(capture_with_export, strict=True),
    "fx": capture_with_fx,
    "dispatch": capture_with_dispatch,
}
MODELS = ["mlp", "resnet", "vit", "bert", "gpt2", "llama"]
# Strict export takes seconds a model, and differs from the other kind before any of our code runs.
PAIRS = [(m, f) for m in MODELS for f in FRONTENDS if f != "strict" or m in ("mlp", "gpt2")]


@cache
def model_and_inputs(name: str, factory: str = "small") -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    module = importlib.import_module(f"models.{name}")
    return getattr(module, factory)(), module.example_inputs(1 if "cache" in factory else 2, factory)


@cache
def captured(name: str, frontend: str, dynamic: bool = False) -> Graph:
    model, args = model_and_inputs(name)
    batch = Dim("batch", min=1, max=64)
    shapes = tuple({0: batch} for _ in args) if dynamic else None
    return FRONTENDS[frontend](model, args, {}, shapes)


@pytest.mark.parametrize(("name", "frontend"), PAIRS)
def test_every_model_through_every_front_end(name: str, frontend: str) -> None:
    model, args = model_and_inputs(name)
    check_against_eager(captured(name, frontend), model, args)


@pytest.mark.parametrize(
    ("name", "dynamic"), [*((m, False) for m in MODELS), ("resnet", True), ("gpt2", True)]
)
def test_the_graph_does_not_depend_on_the_front_end(name: str, dynamic: bool) -> None:
    """Ops, operands, types, names of constants, module paths and source lines are all the same."""
    wanted = str(captured(name, "export", dynamic))
    assert str(captured(name, "dispatch", dynamic)) == wanted
    assert str(captured(name, "fx", dynamic)) == wanted


@pytest.mark.parametrize("name", MODELS)
def test_a_dynamic_batch_serves_every_size_in_its_range(name: str) -> None:
    """Captured from two rows, run on one, three and eleven."""
    graph = captured(name, "export", dynamic=True)
    graph.verify()
    assert {n: (r.lower, r.upper) for n, r in graph.dims.items()} == {"batch": (1, 64)}
    model, _ = model_and_inputs(name)
    module = importlib.import_module(f"models.{name}")
    for batch in (1, 3, 11):
        args = module.example_inputs(batch, "small")
        with torch.no_grad():
            check_equal(graph.run(*args), model(*args))


@pytest.mark.parametrize("frontend", ["export", "strict", "dispatch"])
def test_a_key_value_cache_is_written_back(frontend: str) -> None:
    import models.gpt2

    model, reference = models.gpt2.small_with_cache(), models.gpt2.small_with_cache()
    token, _ = models.gpt2.example_inputs(1, "small_with_cache")
    graph = FRONTENDS[frontend](model, (token, torch.tensor([0])), {}, None)
    written = {target.name for target in graph.writebacks}
    assert written == {f"h.{i}.attn.cache.{kind}" for i in (0, 1) for kind in "kv"}
    for position in range(3):
        at = torch.tensor([position])
        check_equal(graph.run(token, at), reference(token, at))
    check_equal(dict(model.named_buffers()), dict(reference.named_buffers()))


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_batch_norm_in_training_updates_its_statistics(frontend: str) -> None:
    """Two steps: the statistics that the first one wrote are what the second one starts from."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    reference = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    reference.load_state_dict(model.state_dict())
    graph = FRONTENDS[frontend](model, (torch.randn(2, 3, 8, 8),), {}, None)
    assert [str(n.op) for n in graph.nodes if "batch_norm" in str(n.op)] == [
        "aten._native_batch_norm_legit_functional.default"
    ]
    for _ in range(2):
        x = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            check_equal(graph.run(x), reference(x))
    check_equal(dict(model.named_buffers()), dict(reference.named_buffers()))


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_tied_weights_are_one_constant_under_the_first_name(frontend: str) -> None:
    model = Tied()
    graph = FRONTENDS[frontend](model, (torch.tensor([[1, 2, 3]]),), {}, None)
    assert list(graph.constants) == ["embed.weight"]
    assert graph.constants["embed.weight"].num_uses == 2
    check_against_eager(graph, model, (torch.tensor([[1, 2, 3]]),))


@pytest.mark.parametrize("frontend", ["export", "strict", "dispatch"])
def test_cond_keeps_both_branches(frontend: str) -> None:
    model = Branches()
    rows = Dim("rows", min=2, max=9)
    graph = FRONTENDS[frontend](model, (torch.ones(2, 4),), {}, ({0: rows},))
    (cond,) = graph.find(torch.ops.higher_order.cond)
    assert [len(region.nodes) for region in cond.regions] == [1, 3]
    for x in (torch.ones(3, 4), -torch.ones(5, 4)):
        check_against_eager(graph, model, (x,))


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_numbers_computed_from_a_dynamic_size(frontend: str) -> None:
    model = Numbers()
    shapes = ({0: Dim("rows", min=4, max=50)},)
    graph = FRONTENDS[frontend](model, (torch.ones(5, 4),), {}, shapes)
    assert not [n for n in graph.nodes if "sym_" in str(n.op)]
    for rows in (4, 7, 12):
        check_against_eager(graph, model, (torch.randn(rows, 4),))


@pytest.mark.parametrize("frontend", ["export", "dispatch"])
def test_modes_of_autograd_leave_no_trace(frontend: str) -> None:
    graph = FRONTENDS[frontend](Modes(), (torch.ones(2, 4),), {}, None)
    assert [str(n.op) for n in graph.nodes] == ["aten.linear.default"] * 2 + ["aten.add.Tensor"]


def test_autocast_regions_become_casts_or_are_refused() -> None:
    model = Lowered()
    graph = capture(model, (torch.ones(2, 4),))
    check_against_eager(graph, model, (torch.randn(2, 4),))
    assert torch.bfloat16 in {v.tensor_type.dtype for n in graph.nodes for v in n.results}
    for frontend in ("fx", "dispatch"):
        with pytest.raises(CaptureError, match="autocast"):
            capture(model, (torch.ones(2, 4),), frontend=frontend)


@pytest.mark.parametrize("frontend", ["export", "fx", "dispatch"])
def test_the_callers_autocast_stays_outside(frontend: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        graph = capture(nn.Linear(4, 2), (torch.ones(2, 4),), frontend=frontend)
    assert [n.result.tensor_type.dtype for n in graph.nodes] == [torch.float32]


@pytest.mark.parametrize("frontend", ["export", "dispatch"])
def test_loops_with_regions(frontend: str) -> None:
    model = Loops()
    graph = FRONTENDS[frontend](model, (torch.randn(3, 4),), {}, None)
    assert {str(n.op) for n in graph.nodes if n.regions} == {"scan", "map_impl"}
    check_against_eager(graph, model, (torch.randn(3, 4),))


def test_a_function_is_captured_like_a_model() -> None:
    def attention(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.softmax(q @ k.mT, -1)

    q, k = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    graph = capture(attention, (q, k))
    assert [v.name for v in graph.inputs] == ["q", "k"]
    check_equal(graph.run(q, k), attention(q, k))


@pytest.mark.parametrize("frontend", ["export", "fx", "dispatch"])
def test_capture_leaves_the_model_and_the_random_state_alone(frontend: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attributes = [set(m.__dict__) for m in model.modules()]
    state = torch.random.get_rng_state()
    capture(model, (torch.ones(2, 3, 8, 8),), frontend=frontend)
    assert torch.equal(torch.random.get_rng_state(), state)
    check_equal(dict(model.state_dict()), before)
    assert [set(m.__dict__) for m in model.modules()] == attributes
    assert model.training


def described(graph: Graph) -> list[Any]:
    return [(row.op, row.module, row.location, row.code) for row in graph.captured.values()]


def test_the_ledger_has_a_row_for_every_node() -> None:
    graph = captured("gpt2", "export")
    assert [node.origin.ids for node in graph.nodes] == [(i,) for i in graph.captured]
    rows = described(graph)
    assert rows == described(captured("gpt2", "dispatch"))
    assert ("aten.linear", "h.1.attn.c_attn", "models/gpt2.py", "qkv = self.c_attn(x)") in [
        (op, module, place.partition(":")[0], code) for op, module, place, code in rows
    ]


def test_lines_in_helper_functions_are_found() -> None:
    """Llama's rotation is a function beside the model, called from two lines of forward."""
    graph = captured("llama", "export")
    codes = {row.code for row in graph.captured.values() if row.op == "aten.cat"}
    assert codes
    assert all("cat" in code for code in codes)
