"""`runtime.compile`: what is given to it, and that what it returns takes and gives what the model did."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import runtime
from capture import capture
from capture.errors import CaptureError, GuardError, UnsupportedOpError, UsageError
from tests.runtime.nets import BACKENDS, Nested, assert_same, nested_inputs, small_net


@pytest.mark.parametrize("backend", BACKENDS)
def test_nested_inputs_and_results(backend: str) -> None:
    model = Nested().eval()
    xs, mask = nested_inputs()
    f = runtime.compile(model, (xs,), {"mask": mask, "scale": 2.0, "mode": "mean"}, backend=backend)
    assert f.backend == backend
    xs, mask = nested_inputs()
    assert_same(f, model, xs, mask=mask, scale=2.0, mode="mean")
    assert_same(f, model, {"b": xs["b"], "a": xs["a"]}, mode="mean", scale=2.0, mask=mask)
    if backend == "eager":  # the model looks after its own inputs
        return
    with pytest.raises(GuardError, match=r"the input scale was 2\.0 when captured, it is 3\.0 now"):
        f(xs, mask=mask, scale=3.0, mode="mean")
    with pytest.raises(GuardError, match="the input mode was 'mean' when captured, it is 'sum' now"):
        f(xs, mask=mask, scale=2.0, mode="sum")
    with pytest.raises(GuardError, match="4 inputs are needed, 2 given"):
        f(xs, mask=mask)
    with pytest.raises(GuardError, match="has another structure: a dict of 'a', not a dict of 'a', 'b'"):
        f({"a": xs["a"]}, mask=mask, scale=2.0, mode="mean")
    with pytest.raises(GuardError, match="the input mask has the wrong dtype"):
        f(xs, mask=mask.float(), scale=2.0, mode="mean")


@pytest.mark.parametrize("backend", BACKENDS)
def test_structures_of_results(backend: str) -> None:
    class Results(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: torch.Tensor) -> Any:
            y = x + 1
            return {"one": y, "tuple": (y,), "list": [y, x], "empty": (), "twice": (y, y), "input": x}[
                self.kind
            ]

    x = torch.randn(3)
    for kind in ("one", "tuple", "list", "twice", "input"):
        model = Results(kind)
        assert_same(runtime.compile(model, (x,), backend=backend), model, x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dynamic_shapes(backend: str) -> None:
    model, batch = small_net(), torch.export.Dim("N", min=1, max=6)
    x = torch.randn(3, 3, 6, 6)
    f = runtime.compile(model, (x,), backend=backend, dynamic_shapes=({0: batch},))
    for n in (1, 3, 6):
        assert_same(f, model, torch.randn(n, 3, 6, 6))
    if backend == "eager":
        return
    with pytest.raises(GuardError, match=r"the size N is 7, outside of its range \[1, 6\]"):
        f(torch.randn(7, 3, 6, 6))
    with pytest.raises(GuardError, match="the input input has size 5 in dimension 2, 6 is needed"):
        f(torch.randn(3, 3, 5, 6))


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_levels(level: int) -> None:
    model, x = small_net(), torch.randn(2, 3, 6, 6)
    f = runtime.compile(model, (x,), level=level, backend="aten")
    assert_same(f, model, x)
    assert [r.name for r in f.graph.history] == [r.name for r in f.recipe.optimize(f.captured).history]
    assert f.source is not None
    assert {"capture", "optimize", "compile"} == set(f.seconds)


def test_disabled_and_own_passes_titles_and_progress() -> None:
    model, x, phases = small_net(), torch.randn(2, 3, 6, 6), []
    f = runtime.compile(
        model, (x,), backend="aten", disable=["layout", "memory"], title="a title", progress=phases.append
    )
    ran = [r.name for r in f.graph.history]
    assert "fuse" in ran
    assert not {"layout", "memory"} & set(ran)
    assert phases[0] == "capture"
    assert phases[-1] == "compile"
    assert [p for p in phases if p.startswith("optimize: ")] == [f"optimize: {name}" for name in ran]
    assert (f.source or "").startswith("# a title, captured by torch.export")
    assert_same(f, model, x)
    assert f(x).is_contiguous()
    mine = runtime.compile(model, (x,), backend="aten", passes=["fuse", "lower"])
    assert [r.name for r in mine.graph.history] == ["fuse", "lower"]
    assert_same(mine, model, x)


def test_wrong_options() -> None:
    model, x = nn.Linear(3, 4), torch.randn(2, 3)
    with pytest.raises(UsageError, match="there is no backend 'cuda'") as caught:
        runtime.compile(model, (x,), backend="cuda")
    assert caught.value.hint == "one of auto, aten, triton, onnx, eager"
    with pytest.raises(UsageError, match="there is no optimisation level 9"):
        runtime.compile(model, (x,), level=9)
    with pytest.raises(UsageError, match="there is no pass named 'fusion'"):
        runtime.compile(model, (x,), disable=["fusion"])


def test_a_graph_and_an_exported_program() -> None:
    model, x = small_net(), torch.randn(2, 3, 6, 6)
    graph = capture(model, (x,))
    text = str(graph)
    for given in (graph, torch.export.export(model, (x,))):
        for backend in ("aten", "eager"):
            f = runtime.compile(given, (x,), backend=backend)
            assert f.module is None
            torch.testing.assert_close(f(x), model(x).detach())
    assert str(graph) == text
    assert graph.history == []


def test_a_graph_with_unbound_weights() -> None:
    graph = type(capture(nn.Linear(3, 4), (torch.ones(2, 3),))).parse(
        "graph(%x: f32[2, 3])\n  @w: f32[4, 3]\n  %0: f32[2, 4] = aten.linear(%x, @w)\n  return %0\n"
    )
    for backend in ("aten", "auto"):
        with pytest.raises(CaptureError, match=re.escape("the constant @w has no value")):
            runtime.compile(graph, (torch.ones(2, 3),), backend=backend)


def test_a_backend_that_cannot_run_the_graph_says_so() -> None:
    class Rows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            from torch._higher_order_ops.map import map

            return map(lambda row: row.sin() + 1, x)

    with pytest.raises(UnsupportedOpError, match=r"higher_order\.map_impl has no Python form"):
        runtime.compile(Rows(), (torch.ones(2, 3),), backend="aten")
    f = runtime.compile(Rows(), (torch.ones(2, 3),))
    assert f.backend == "eager"
    reasons = {c.backend: c.reason for c in f.candidates}
    assert reasons["aten"] == "higher_order.map_impl has no Python form"
    assert reasons["onnx"]
