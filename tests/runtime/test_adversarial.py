"""Inputs, models and files that are out to get a wrong answer, or code run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import runtime
from capture.errors import GuardError
from capture.ir import Graph, Impl
from codegen import python
from runtime.executables import AtenExecutable


class Sum(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * 2 + b


class Writes(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a.add_(1)
        return a * b


class Scaled(nn.Module):
    def forward(self, x: Tensor, factor: float) -> Tensor:
        return x * factor


def test_one_tensor_as_two_example_inputs_stays_two_inputs() -> None:
    x = torch.ones(3)
    f = runtime.compile(Sum(), (x, x), backend="aten")
    assert f(torch.ones(3), torch.zeros(3)).tolist() == [2.0, 2.0, 2.0]


def test_an_input_that_is_written_to_may_share_memory_with_no_other() -> None:
    f = runtime.compile(Writes(), (torch.ones(3), torch.ones(3)), backend="aten")
    y = torch.ones(4)
    with pytest.raises(GuardError, match="the inputs a and b share memory"):
        f(y[:3], y[1:])
    assert f(torch.ones(6)[:3], torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
    columns = torch.ones(3, 2).unbind(1)  # one storage, no element in common
    with pytest.raises(GuardError, match="the input a has a strided memory layout, captured contiguous"):
        f(*columns)
    f = runtime.compile(Writes(), columns, backend="aten")
    assert f(*torch.ones(3, 2).unbind(1)).tolist() == [2.0, 2.0, 2.0]


def test_nan_that_a_kernel_would_lose_is_noticed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 8, 8)
    x[0, 0, 0, 0] = math.nan
    f = runtime.compile(model, (x,))
    assert f.backend == "eager"
    assert any("where eager has nan" in c.reason for c in f.candidates)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_number_where_eager_has_none_is_wrong(wrong: float) -> None:
    parity = runtime.compare(lambda x: torch.tensor([wrong, 1.0]), lambda x: torch.tensor([0.0, 1.0]), (1,))
    assert not parity.ok
    assert "finite at [0], where eager has" in parity.reason


def test_another_mode_than_the_captured_one_is_refused() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval(), torch.randn(2, 4)
    f = runtime.compile(model, (x,), backend="aten")
    model.train()
    with pytest.raises(GuardError, match="captured in evaluation mode"):
        f(x)


def test_a_baked_in_nan_is_itself() -> None:
    f = runtime.compile(Scaled(), (torch.ones(2), math.nan), backend="aten")
    assert f(torch.ones(2), math.nan).isnan().all()
    with pytest.raises(GuardError, match="factor was nan when captured"):
        f(torch.ones(2), 1.0)


PAYLOAD = 'none", [], "")\n    return [v0]\n\n\nopen({path!r}, "w")\n\n\ndef unused():\n    v0 = ("'


@pytest.mark.parametrize("option", ["unary", "algorithm"])
def test_options_of_a_kernel_are_never_code(option: str, tmp_path: Path) -> None:
    """A file may hold any option; what is printed of it is a literal."""
    f = runtime.compile(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), backend="aten")
    trap = tmp_path / "trap"
    options: dict[str, Any] = {"unary": "none", option: PAYLOAD.format(path=str(trap))}
    node = next(n for n in f.graph.nodes if n.impl is not None)
    node.set_impl(Impl("onednn.linear", options))
    f.graph.save(tmp_path / "hostile.safetensors")
    loaded = Graph.load(tmp_path / "hostile.safetensors")
    compile(python.emit(loaded), "source", "exec")
    AtenExecutable(loaded)
    assert not trap.exists()


def test_the_arena_lies_where_its_values_lie() -> None:
    """Whatever device is the default one when it is made."""
    model, x = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).eval(), torch.randn(4, 8)

    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = (x * 2).sin()
            return model(y) + y

    f = runtime.compile(Chain(), (x,), backend="aten")
    assert f.source is not None
    for line in f.source.splitlines():
        if "memory = torch.empty" in line:
            assert 'device="cpu"' in line
    torch.testing.assert_close(f(x), Chain()(x))
