"""What goes in and comes out: dicts, keyword arguments, numbers, None, tensors that are written to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from capture import CaptureError, Graph, capture
from capture.errors import GuardError
from capture.ir import LiteralType, ScalarType
from tests.capture.cases import (
    Counter,
    Nested,
    Remembering,
    ThroughView,
    Unknown,
    check_against_eager,
    check_equal,
)

FRONTENDS = ["export", "fx", "dispatch"]


def nested_inputs() -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randn(3, 4), {"h": torch.randn(4)}), {
        "mode": "b",
        "mask": torch.rand(3, 4) > 0.5,
        "times": 3,
    }


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_nested_inputs_and_outputs(frontend: str) -> None:
    model = Nested()
    args, kwargs = nested_inputs()
    graph = capture(model, args, kwargs, frontend=frontend)
    check_against_eager(graph, model, args, kwargs)
    assert {v.name: v.type.value for v in graph.inputs if isinstance(v.type, LiteralType)} == {
        "mode": "b",
        "times": 3,
    }
    assert {v.name for v in graph.inputs} == {"x", "state_h", "mode", "mask", "times"}
    assert "scale" in graph.constants


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_keyword_arguments_in_another_order(frontend: str) -> None:
    model = Nested()
    args, kwargs = nested_inputs()
    graph = capture(model, args, kwargs, frontend=frontend)
    turned = dict(reversed(kwargs.items()))
    check_equal(graph.run(*args, **turned), model(*args, **turned))


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_an_input_that_is_none_and_defaults(frontend: str) -> None:
    model = Nested()
    args = (torch.randn(3, 4), {"h": torch.randn(4)}, 2, None)
    check_against_eager(capture(model, args, frontend=frontend), model, args)
    check_against_eager(capture(model, args[:2], frontend=frontend), model, args[:2])


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_size_is_returned_for_the_size_given(frontend: str) -> None:
    model = Nested()
    args = (torch.randn(3, 4), {"h": torch.randn(4)})
    shapes = {"x": {0: Dim("rows", min=2, max=20)}}
    graph = capture(model, args, dynamic_shapes=shapes, frontend=frontend)
    for rows in (2, 5):
        x = torch.randn(rows, 4)
        assert graph.run(x, args[1])["rows"] == 2 * rows
        check_against_eager(graph, model, (x, args[1]))


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_one_tensor_given_for_two_inputs(frontend: str) -> None:
    """The graph has two inputs all the same, and another call may give two tensors."""
    x = torch.randn(3, 4)

    def difference(a: torch.Tensor, b: torch.Tensor, *, c: torch.Tensor) -> torch.Tensor:
        return a - b * c

    graph = capture(difference, (x, x), {"c": x}, frontend=frontend)
    a, b, c = torch.randn(3, 3, 4)
    check_equal(graph.run(a, b, c=c), difference(a, b, c=c))


@pytest.mark.parametrize("frontend", ["auto", "dispatch"])
def test_an_input_that_no_graph_can_hold(frontend: str) -> None:
    def picked(x: torch.Tensor, where: slice) -> torch.Tensor:
        return x[where]

    with pytest.raises(CaptureError, match="the input where is a slice"):
        capture(picked, (torch.ones(4), slice(0, 2)), frontend=frontend)


@pytest.mark.parametrize("frontend", ["export", "dispatch"])
def test_an_int_that_varies_is_a_scalar_input(frontend: str) -> None:
    class Window(nn.Module):
        def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
            return x.reshape(n, -1) * n

    model = Window()
    shapes = {"x": None, "n": Dim.DYNAMIC}
    if frontend == "dispatch":  # 12 elements make n rows for divisors of 12 only
        with pytest.raises(CaptureError, match="cannot vary as asked"):
            capture(model, (torch.ones(12), 3), dynamic_shapes=shapes, frontend=frontend)
        return

    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
            return (x + n)[:, : n // 2]

    graph = capture(Shifted(), (torch.ones(3, 9), 4), dynamic_shapes={"x": None, "n": Dim("n", min=4, max=9)})
    assert graph.inputs[1].type == ScalarType("int", graph.inputs[1].type.expr)
    for n in (4, 7):
        check_against_eager(graph, Shifted(), (torch.randn(3, 9), n))


@pytest.mark.parametrize("frontend", ["export", "dispatch"])
def test_buffers_changed_in_place_and_by_assignment(frontend: str) -> None:
    model = Counter()
    reference = copy.deepcopy(model)
    graph = capture(model, (torch.randn(3, 4),), frontend=frontend)
    assert {target.name for target in graph.writebacks} == {"count", "mean"}
    for _ in range(3):
        x = torch.randn(3, 4)
        check_equal(graph.run(x), reference(x))
    assert model.count == 3
    check_equal(dict(model.named_buffers()), dict(reference.named_buffers()))


def test_buffers_may_carry_state_through_torch_fx() -> None:
    class Running(nn.Module):
        total: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.total.add_(x.sum(0)) + x

    model, reference = Running(), Running()
    graph = capture(model, (torch.ones(2, 4),), frontend="fx")
    for _ in range(2):
        x = torch.randn(2, 4)
        check_equal(graph.run(x), reference(x))


@pytest.mark.parametrize("frontend", ["export", "dispatch"])
def test_an_input_written_to_through_a_view(frontend: str) -> None:
    graph = capture(ThroughView(), (torch.ones(2, 4),), frontend=frontend)
    graph.verify()
    ours, theirs = torch.arange(8.0).reshape(2, 4), torch.arange(8.0).reshape(2, 4)
    check_equal(graph.run(ours), ThroughView()(theirs))
    check_equal(ours, theirs)
    assert not any(node.op._schema.is_mutable for node in graph.nodes)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_an_attribute_that_is_only_written_does_no_harm(frontend: str) -> None:
    model = Remembering()
    check_against_eager(capture(model, (torch.ones(2, 4),), frontend=frontend), model, (torch.randn(2, 4),))
    assert model.seen is None


def test_a_data_dependent_size_and_the_models_own_check() -> None:
    graph = capture(Unknown(), (torch.ones(3, 3),))
    assert str(graph).splitlines()[0].endswith("where u0 in [0, 7]")
    asserts = list(graph.find(torch.ops.aten._assert_scalar))
    assert [node.operands[1] for node in asserts] == ["the sizes do not fulfil u0 <= 7"]
    for x in (torch.eye(3), -torch.eye(3)):
        check_against_eager(graph, Unknown(), (x,))
    with pytest.raises(CaptureError, match="u0 <= 7"):
        graph.run(torch.ones(3, 3))


def test_another_structure_is_refused() -> None:
    graph = capture(Nested(), (torch.randn(3, 4), {"h": torch.randn(4)}))
    with pytest.raises(GuardError, match="2 inputs are needed, 1 given"):
        graph.run(torch.randn(3, 4))


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_gradients_off_does_not_swap_layers_for_fast_paths(frontend: str) -> None:
    """In inference mode nn.TransformerEncoderLayer calls one opaque operator; capture sees its parts."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    x = torch.randn(2, 3, 8)
    with torch.inference_mode():
        graph: Graph = capture(layer, (x.clone(),), frontend=frontend if frontend != "fx" else "export")
    assert list(graph.find(torch.ops.aten.scaled_dot_product_attention))
    check_against_eager(graph, layer, (x,))
