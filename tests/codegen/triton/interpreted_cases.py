"""Models and random graphs on Triton kernels; test_executable.py runs this where the interpreter is on."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import runtime
from codegen.triton import pipeline
from passes import optimize
from runtime.triton_executable import TritonExecutable
from tests.random_graphs import EPSILON, Case, cases, close, coarsest, flat_run


@pytest.mark.parametrize("name", ["mlp", "bert", "gpt2", "llama", "resnet", "vit"])
def test_models_agree_with_eager(name: str) -> None:
    module = importlib.import_module(f"models.{name}")
    model, args = module.small().eval(), module.example_inputs(2, "small")
    compiled = runtime.compile(model, args, backend="triton")
    assert compiled.backend == "triton"
    assert compiled.executable.kernels
    verdict = runtime.compare(model, compiled, args)
    assert verdict.ok, verdict.reason


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases(max_nodes=10))
def test_random_graphs_agree(case: Case) -> None:
    graph = optimize(case.graph, passes=pipeline(2), verify=True)
    want = flat_run(case.graph, case.args())
    got = TritonExecutable(graph)(*case.args())
    own = EPSILON[coarsest(case.graph)]
    for a, b in zip(want, got, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert close(a, b, own), f"{a}\n{b}\n{graph}"


def test_weights_that_change_are_taken_anew() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)).eval()
    x = torch.randn(3, 8)
    compiled = runtime.compile(model, (x,), backend="triton")
    with torch.no_grad():
        model[1].weight.mul_(2)
    torch.testing.assert_close(compiled(x), model(x).detach())


def test_sizes_that_vary() -> None:
    model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Softmax(0)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    compiled = runtime.compile(model, (torch.randn(3, 8),), backend="triton", dynamic_shapes=({0: batch},))
    for count in (1, 3, 50):
        x = torch.randn(count, 8)
        torch.testing.assert_close(compiled(x), model(x).detach())
