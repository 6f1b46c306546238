"""`runtime.compile(..., check_rewrites=True)`: wrong rules are refused, also when it folds again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import passes
import runtime
from runtime.compile import Compiled


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.atan(x) * self.scale


@pytest.fixture(autouse=True)
def wrong() -> Iterator[None]:
    passes.register_rule("wrong", lambda x: x * torch.atan(x), nn.functional.gelu, (torch.ones(2),))
    yield
    passes.remove_rule("wrong")


def compiled(model: nn.Module, x: torch.Tensor, *, check: bool) -> Compiled:
    return runtime.compile(
        model, (x,), backend="aten", passes=["rewrite{rules=wrong}", "lower"], check_rewrites=check
    )


def notes(f: Compiled) -> str:
    return "\n".join(note for record in f.graph.history for note in record.notes)


def test_a_wrong_rule_is_refused_on_the_example_inputs_and_told() -> None:
    model, x = Gate(), torch.tensor([[0.5, 1.0, -2.0]])
    f = compiled(model, x, check=True)
    assert "the rule wrong" in notes(f)
    assert "differs on recorded operands" in notes(f)
    assert runtime.compare(model, f, (x,)).ok
    assert not runtime.compare(model, compiled(model, x, check=False), (x,)).ok


def test_it_is_refused_again_when_weights_change() -> None:
    model, x = Gate(), torch.tensor([[0.5, 1.0, -2.0]])
    f = compiled(model, x, check=True)
    with torch.no_grad():
        model.scale.fill_(3.0)
    assert runtime.compare(model, f, (x,)).ok
    assert f.recompiles == 1
    assert "differs on recorded operands" in notes(f)


def test_it_is_refused_again_after_loading(tmp_path: Path) -> None:
    model, x = Gate(), torch.tensor([[0.5, 1.0, -2.0]])
    compiled(model, x, check=True).save(tmp_path / "gate")
    f = runtime.load(tmp_path / "gate")
    assert runtime.compare(model, f, (x,)).ok
    with torch.no_grad():
        f.captured.constants["scale"].tensor.fill_(3.0)
        model.scale.fill_(3.0)
    assert runtime.compare(model, f, (x,)).ok
    assert f.recompiles == 1
    assert "the rule wrong" in notes(f)


def test_a_graph_without_example_inputs_is_checked_on_random_operands() -> None:
    graph = compiled(Gate(), torch.ones(1, 3), check=True).captured
    f = runtime.compile(graph, backend="aten", passes=["rewrite{rules=wrong}"], check_rewrites=True)
    assert "differs on random operands" in notes(f)
