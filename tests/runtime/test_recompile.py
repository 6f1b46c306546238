"""What happens when weights change and folding and packing again fails."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import runtime
from capture.ir import Graph
from passes.base import Pass, PassResult


def test_a_failed_recompile_leaves_all_as_it_was() -> None:
    class Fails(Pass):
        name = "fails-when-told"
        now = False

        def run(self, graph: Graph) -> PassResult:
            if Fails.now:
                raise RuntimeError("told so")
            return PassResult(False)

    model, x = nn.Linear(3, 3), torch.randn(2, 3)
    f = runtime.compile(model, (x,), backend="aten", passes=[Fails()])
    before, graph = f.captured.run(x), f.graph
    with torch.no_grad():
        model.weight = nn.Parameter(model.weight * 2)
    Fails.now = True
    for _ in range(2):
        with pytest.raises(RuntimeError, match="told so"):
            f(x)
        assert torch.equal(f.captured.run(x), before)
        assert f.graph is graph
        assert f.recompiles == 0
    Fails.now = False
    torch.testing.assert_close(f(x), model(x).detach())
    assert f.recompiles == 1


def test_statistics_of_a_norm_are_folded_again() -> None:
    """Training updates them without a new version."""
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), torch.randn(2, 3, 8, 8)
    f = runtime.compile(model, (x,), backend="aten")
    f(x)
    model.train()(x * 3 + 1)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(f(x), model(x), rtol=1e-4, atol=1e-5)
    assert f.recompiles == 1


def test_an_update_through_data_is_noticed() -> None:
    model, x = nn.Linear(3, 3), torch.randn(2, 3)
    f = runtime.compile(model, (x,), backend="aten")
    f(x)
    model.weight.data.mul_(2)
    torch.testing.assert_close(f(x), model(x).detach())


def test_an_update_of_an_inference_tensor_is_noticed() -> None:
    with torch.inference_mode():
        model, x = nn.Linear(3, 3), torch.randn(2, 3)
    f = runtime.compile(model, (x,), backend="aten")
    f(x)
    with torch.inference_mode():
        model.weight.mul_(2)
        torch.testing.assert_close(f(x), model(x))
