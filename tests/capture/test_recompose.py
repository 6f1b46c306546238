"""Composite operators put together again, and the cases in which they must not be."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.fx.experimental.proxy_tensor import make_fx

from capture import Graph, capture
from capture.frontends.recompose import recompose
from capture.ir import op_name
from tests.capture.cases import check_equal


def decomposed(model: nn.Module, args: tuple[torch.Tensor, ...], **options: Any) -> Graph:
    """The forward graph as AOTAutograd decomposes it."""
    graphs: list[Graph] = []

    def compiler(module: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        from functorch.compile import make_boxed_func

        graphs.append(capture(module, example_inputs))
        return make_boxed_func(module.forward)

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=aot_autograd(fw_compiler=compiler), **options)(*args)
    return graphs[0]


def ops(graph: Graph) -> Counter[str]:
    return Counter(op_name(node.op) for node in graph.nodes)


def traced(function: Callable[..., Any], *args: torch.Tensor) -> Graph:
    """The ATen calls of a function, nothing lifted."""
    return capture(make_fx(function)(*args), args)


def check(function: Callable[..., Any], *args: torch.Tensor) -> dict[str, int]:
    """Recompose the function's graph; the results stay what they were."""
    graph = traced(function, *args)
    made = recompose(graph)
    graph.verify()
    check_equal(graph.run(*args), function(*args))
    return made


@pytest.mark.parametrize("name", ["mlp", "vit", "bert", "gpt2", "llama"])
def test_a_decomposed_model_gets_the_vocabulary_of_export_back(name: str) -> None:
    module = importlib.import_module(f"models.{name}")
    model, args = module.small(), module.example_inputs(2, "small")
    graph = decomposed(model, args)
    before = ops(graph)
    made = recompose(graph)
    graph.verify()
    wanted = ops(capture(model, args))
    assert before != wanted
    assert ops(graph) == wanted
    assert made["linear"] == wanted["aten.linear"]


def test_dynamic_sizes_match_as_expressions() -> None:
    """[batch, tokens, 4] is flattened to [batch*tokens, 4] before the product, and unfolded after it."""
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    graph = decomposed(model, (torch.randn(2, 3, 4),), dynamic=True)
    assert ops(graph)["aten.reshape"] == 4
    assert recompose(graph) == {"linear": 2, "layer_norm": 1}
    assert ops(graph.verify()) == {"aten.linear": 2, "aten.layer_norm": 1}


def test_origins_of_what_vanishes_live_on() -> None:
    module = importlib.import_module("models.gpt2")
    graph = decomposed(module.small(), module.example_inputs(2, "small"))
    recompose(graph)
    assert {i for node in graph.nodes for i in node.origin.ids} == set(graph.captured)


aten = torch.ops.aten
bmm, mm, view = aten.bmm, aten.mm, aten.view
X = torch.randn(2, 3, 8, 8)
ONE, NONE = [1, 1], [0, 0]
W = torch.randn(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("name", "function", "args"),
    [
        ("conv2d", lambda x, w: aten.convolution(x, w, None, ONE, ONE, ONE, False, NONE, 1), (X, W)),
        (
            "conv_transpose2d",
            lambda x, w: aten.convolution(x, w, None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
            (X, W.transpose(0, 1)),
        ),
        (
            "conv1d",
            lambda x, w: aten.convolution(x, w, None, [2], [1], [1], False, [0], 1),
            (X[:, :, 0], W[:, :, 0]),
        ),
        ("layer_norm", lambda x: aten.native_layer_norm(x, [8], None, None, 1e-5)[0], (X,)),
        ("group_norm", lambda x: aten.native_group_norm(x, None, None, 2, 3, 64, 3, 1e-5)[0], (X,)),
        ("softmax", lambda x: aten._softmax(x, -1, False), (X,)),
        ("log_softmax", lambda x: aten._log_softmax(x, 1, False), (X,)),
        ("max_pool2d", lambda x: aten.max_pool2d_with_indices(x, [2, 2], [2, 2])[0], (X,)),
        ("adaptive_avg_pool2d", lambda x: aten._adaptive_avg_pool2d(x, [3, 3]), (X,)),
        ("index", lambda x: aten._unsafe_index(x, [torch.tensor([1, 0])]), (X,)),
        (
            "_native_batch_norm_legit_no_training",
            lambda x, w, v: aten.native_batch_norm(x, w, w, w, v, False, 0.1, 1e-5)[0],
            (X, torch.randn(3), torch.rand(3)),
        ),
        (
            "scaled_dot_product_attention",
            lambda q: aten._scaled_dot_product_flash_attention_for_cpu(q, q, q, 0.0, True, scale=0.2)[0],
            (X,),
        ),
        ("linear", lambda x, w, b: aten.addmm(b, x, aten.t(w)), (X[0, 0], torch.rand(5, 8), torch.ones(5))),
        ("linear", lambda x, w: aten.mm(x, aten.permute(w, [1, 0])), (X[0, 0], torch.randn(5, 8))),
        (
            "linear",
            lambda x, w: aten.view(aten.mm(aten.view(x, [6, 64]), aten.transpose(w, -1, -2)), [2, 3, 5]),
            (X.flatten(2), torch.randn(5, 64)),
        ),
        (
            "matmul",
            lambda x, w: aten.view(aten.mm(aten.view(x, [6, 64]), w), [2, 3, 5]),
            (X.flatten(2), torch.randn(64, 5)),
        ),
        ("matmul", lambda a, b: torch.matmul(a, b), (X, X.mT.contiguous())),
    ],
)  # fmt: skip
def test_it_is_put_together(name: str, function: Callable[..., Any], args: tuple[torch.Tensor, ...]) -> None:
    assert check(function, *args) == {name: 1}


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (lambda x: aten.native_layer_norm(x, [8], None, None, 1e-5)[:2], (X,)),  # the mean is used
        (lambda x: aten.native_group_norm(x, None, None, 2, 3, 64, 3, 1e-5)[2], (X,)),  # and the deviation
        (lambda x: aten.max_pool2d_with_indices(x, [2, 2], [2, 2]), (X,)),  # and the indices
        (lambda x: aten._softmax(x.bfloat16().float(), -1, False) * 0 + aten.exp(x), (X.double(),)),
        (lambda q: aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)[1], (X,)),  # the log-sum-exp is
        (lambda x, w, b: aten.addmm(b, x, aten.t(w), beta=2), (X[0, 0], torch.ones(5, 8), torch.ones(5))),
        (lambda x, w, b: aten.addmm(b, x, aten.t(w)), (X[0, 0], torch.ones(5, 8), torch.ones(8, 5))),
        (lambda x, w: aten.mm(x, aten.t(aten.relu(w))), (X[0, 0], torch.ones(5, 8))),  # no weight, a result
        (lambda x, w: aten.mm(x, aten.permute(w, [0, 1])), (X[0, 0], torch.ones(8, 8))),  # not a transpose
        (lambda x, w: view(mm(view(x, [48, 8]), w), [12, 4, 8]), (X, torch.ones(8, 8))),
        (lambda a, b: view(bmm(view(a, [6, 8, 8]), view(b, [6, 8, 8])), [3, 2, 8, 8]), (X, X)),
    ],
)  # fmt: skip
def test_it_is_left_alone(function: Callable[..., Any], args: tuple[torch.Tensor, ...]) -> None:
    made = check(function, *args)
    assert made in ({}, {"softmax": 1})


def test_a_flat_result_that_is_used_elsewhere_stays() -> None:
    def function(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = aten.mm(aten.view(x, [6, 64]), w)
        return aten.view(flat, [2, 3, 5]), flat

    assert check(function, X.flatten(2), torch.randn(64, 5)) == {}


def test_dropout_in_attention_stays() -> None:
    def function(q: torch.Tensor) -> torch.Tensor:
        return aten._scaled_dot_product_attention_math(q, q, q, dropout_p=0.5)[0]

    graph = traced(function, X)
    assert "scaled_dot_product_attention" not in recompose(graph)
