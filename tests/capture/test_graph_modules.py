"""GraphModules, as torch.compile backends and torch.fx hand them over, and exported programs."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from capture import Graph, capture
from capture.ir import ScalarType
from tests.capture.cases import Branches, Counter, Nested, Tied, check_against_eager, check_equal


class Piecewise(nn.Module):
    """Two pieces with a break between them; the second one writes to a buffer."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        if x.sum() > 0:
            x = x * 2
        self.seen.add_(x.sum(0))
        return self.second(x.reshape(x.shape[0] * 2, 2).reshape(-1, 4))


def compile_with(graphs: list[Graph], model: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    def backend(module: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(capture(module, example_inputs).verify())
        return graphs[-1].run

    torch._dynamo.reset()
    return torch.compile(model, backend=backend, **options)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_torch_compile_backend(dynamic: bool) -> None:
    """Every piece is captured, buffers are written back, and a dynamic graph serves other sizes."""
    model = Piecewise()
    reference = copy.deepcopy(model)
    graphs: list[Graph] = []
    compiled = compile_with(graphs, model, dynamic=dynamic)
    with torch.no_grad():
        for rows in (3, 5, 7):
            x = torch.randn(rows, 4).abs()
            torch.testing.assert_close(compiled(x), reference(x))
    check_equal(dict(model.named_buffers()), dict(reference.named_buffers()))
    assert len(graphs) == 2 if dynamic else len(graphs) > 2
    first = graphs[0]
    assert first.frontend == "torch.fx (GraphModule)"
    assert [row.module for row in first.captured.values() if row.op == "aten.linear"] == ["first"]
    assert all("test_graph_modules.py" in row.file for row in first.captured.values())


def test_size_inputs_of_a_dynamic_graph_define_its_dims() -> None:
    graphs: list[Graph] = []
    compiled = compile_with(graphs, lambda x: x.reshape(x.shape[0] * 4) + 1, dynamic=True)
    compiled(torch.randn(3, 4))
    (graph,) = graphs
    sizes = [v for v in graph.inputs if isinstance(v.type, ScalarType)]
    assert [(v.name, str(v.type)) for v in sizes] == [("x_dim0", "int(x_dim0)")]
    assert list(graph.dims) == ["x_dim0"]


def test_the_example_backend_runs(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "examples" / "dynamo_backend.py"
    spec = importlib.util.spec_from_file_location("dynamo_backend", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch._dynamo.reset()
    example.main()
    assert capsys.readouterr().out.startswith("2 graphs; the first:\n\ngraph(%first_weight: f32[8, 8]")


def test_graphs_of_aot_autograd_forward_and_backward() -> None:
    """Decomposed, with tangents and saved tensors among the inputs; training with them works."""
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
    reference = copy.deepcopy(model)
    graphs: list[Graph] = []

    def compiler(module: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        from functorch.compile import make_boxed_func

        graphs.append(capture(module, example_inputs).verify())
        return make_boxed_func(graphs[-1].run)

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=aot_autograd(fw_compiler=compiler, bw_compiler=compiler))
    x = torch.randn(3, 4)
    compiled(x).sum().backward()
    reference(x).sum().backward()
    assert len(graphs) == 2
    check_equal(
        {n: p.grad for n, p in model.named_parameters()}, {n: p.grad for n, p in reference.named_parameters()}
    )


def test_a_symbolically_traced_module_keeps_its_paths_and_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    traced = torch.fx.symbolic_trace(model)
    graph = capture(traced, (torch.randn(3, 4),), dynamic_shapes=({0: Dim("rows", min=1, max=9)},))
    check_against_eager(graph, model, (torch.randn(1, 4),))
    assert list(graph.constants) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [row.module for row in graph.captured.values()] == ["0", "1", "2"]


def test_a_graph_module_of_aten_calls() -> None:
    def block(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.layer_norm(x @ weight.t(), (3,))

    args = (torch.randn(2, 4), torch.randn(3, 4))
    traced = make_fx(block)(*args)
    graph = capture(traced, args)
    assert {str(n.op) for n in graph.nodes} == {
        "aten.t.default", "aten.mm.default", "aten.native_layer_norm.default"
    }  # fmt: skip
    check_equal(graph.run(*args), block(*args))


def test_fake_inputs_and_a_fake_model() -> None:
    """Nothing real is needed: constants stay unbound until a state dict comes."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        model = nn.Linear(4, 2)
        x = torch.empty(3, 4)
    for frontend in ("export", "dispatch"):
        graph = capture(model, (x,), frontend=frontend).verify()
        assert {name: c.tensor for name, c in graph.constants.items()} == {"weight": None, "bias": None}
    real = nn.Linear(4, 2)
    graph.bind(real.state_dict())
    check_against_eager(graph, real, (torch.randn(3, 4),))


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_needs_no_arguments(strict: bool) -> None:
    model = Nested()
    args, kwargs = (torch.randn(3, 4), {"h": torch.randn(4)}), {"mode": "b"}
    program = torch.export.export(model, args, kwargs, strict=strict)
    graph = capture(program)
    assert graph.frontend == "torch.export"
    check_against_eager(graph, model, args, kwargs)


@pytest.mark.parametrize(
    ("model", "args"),
    [
        (Counter(), (torch.ones(2, 4),)),
        (Tied(), (torch.tensor([[1, 2]]),)),
        (Branches(), (torch.ones(2, 4),)),
    ],
    ids=["buffers", "tied", "cond"],
)
def test_an_exported_program_with_core_decompositions(
    model: nn.Module, args: tuple[torch.Tensor, ...]
) -> None:
    graph = capture(torch.export.export(model, args).run_decompositions())
    check_against_eager(graph, model, args)
