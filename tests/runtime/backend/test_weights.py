"""Frozen weights are never stale: whatever changes them, the next call computes with what they are now."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

import runtime


class Net(nn.Module):
    """A convolution with a norm to fold into it, and a linear layer to pack."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def load(model: Net) -> None:
    other = Net()
    other.norm.running_mean.fill_(0.5)
    model.load_state_dict(other.state_dict())


def load_by_assignment(model: Net) -> None:
    model.load_state_dict(Net().state_dict(), assign=True)


def update_in_place(model: Net) -> None:
    with torch.no_grad():
        model.conv.weight.mul_(2)


def update_through_data(model: Net) -> None:
    model.conv.weight.data.mul_(2)


def replace_data(model: Net) -> None:
    model.fc.weight.data = torch.randn(5, 8)


def step(model: Net) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()


def swap_module(model: Net) -> None:
    model.fc = nn.Linear(8, 5)


def swap_parameter(model: Net) -> None:
    model.fc.weight = nn.Parameter(torch.randn(5, 8))


def flip_requires_grad(model: Net) -> None:
    model.requires_grad_(False)
    with torch.no_grad():
        model.fc.bias.add_(1)


def update_statistics(model: Net) -> None:
    """What calibration of batch norms does: no weight changes, and no version either."""
    model.train()
    with torch.no_grad():
        model(torch.randn(4, 3, 8, 8) + 3)
    model.eval()


@pytest.mark.parametrize(
    "change",
    [
        load, load_by_assignment, update_in_place, update_through_data, replace_data, step, swap_module,
        swap_parameter, flip_requires_grad, update_statistics,
    ],
)  # fmt: skip
@torch.no_grad()
def test_a_change_of_the_weights_is_seen_by_the_next_call(change: Callable[[Net], None]) -> None:
    model = Net().eval()
    compiled = torch.compile(model, backend="capture")
    x = torch.randn(2, 3, 8, 8)
    before = compiled(x)
    torch.testing.assert_close(before, model(x))
    with torch.enable_grad():
        change(model)
    after = compiled(x)
    torch.testing.assert_close(after, model(x))
    assert not torch.allclose(before, after)
    assert all(graph.frozen for graph in runtime.explain(compiled).graphs)


@torch.no_grad()
def test_each_of_many_changes_is_seen_and_at_last_the_weights_are_not_frozen() -> None:
    model = nn.Linear(4, 4)
    compiled = torch.compile(model, backend="capture")
    x = torch.randn(3, 4)
    for _ in range(6):
        torch.testing.assert_close(compiled(x), model(x))
        model.weight.mul_(1.5)
    torch.testing.assert_close(compiled(x), model(x))
    (graph,) = runtime.explain(compiled).graphs
    assert graph.packed_again == 3
    assert graph.frozen == 1
    assert "1 weight is no longer frozen: it changed 3 times" in graph.events[-1]


@torch.no_grad()
def test_weights_that_change_now_and_then_stay_frozen() -> None:
    model = nn.Linear(4, 4)
    compiled = torch.compile(model, backend="capture")
    x = torch.randn(3, 4)
    for _ in range(5):
        for _ in range(11):
            torch.testing.assert_close(compiled(x), model(x))
        model.weight.mul_(1.5)
    (graph,) = runtime.explain(compiled).graphs
    assert (graph.frozen, graph.packed_again) == (2, 4)


@torch.no_grad()
def test_modules_that_share_a_graph_keep_their_own_weights() -> None:
    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))

    @torch.compile(backend="capture")
    def apply(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(layer(x))

    x = torch.randn(3, 4)
    for layer in [*layers, *layers]:
        torch.testing.assert_close(apply(layer, x), torch.relu(layer(x)))
    (graph,) = runtime.explain(apply).graphs
    assert graph.packed_again == 0
    layers[1].weight.fill_(2)
    for layer in layers:
        torch.testing.assert_close(apply(layer, x), torch.relu(layer(x)))


@torch.no_grad()
def test_tied_weights_follow_each_other() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embedding(ids))

    model = Tied()
    compiled = torch.compile(model, backend="capture")
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(compiled(ids), model(ids))
    model.embedding.weight.mul_(3)
    torch.testing.assert_close(compiled(ids), model(ids))
    model.head.weight = nn.Parameter(torch.randn(10, 4))  # no longer tied
    torch.testing.assert_close(compiled(ids), model(ids))


@torch.no_grad()
def test_an_inference_tensor_is_not_frozen() -> None:
    with torch.inference_mode():
        model = nn.Linear(4, 4)
    compiled = torch.compile(model, backend="capture")
    x = torch.randn(3, 4)
    torch.testing.assert_close(compiled(x), model(x))
    with torch.inference_mode():
        model.weight.mul_(2)
    torch.testing.assert_close(compiled(x), model(x))
    assert runtime.explain(compiled).graphs[0].frozen == 0


@torch.no_grad()
def test_freeze_false_keeps_weights_as_inputs() -> None:
    model = Net().eval()
    compiled = torch.compile(model, backend="capture", options={"freeze": False})
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(compiled(x), model(x))
    assert runtime.explain(compiled).graphs[0].frozen == 0


@torch.no_grad()
def test_a_model_that_is_gone_leaves_no_weights_behind() -> None:
    @torch.compile(backend="capture")
    def apply(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(layer(x))

    x = torch.randn(3, 4)
    layers = [nn.Linear(4, 4) for _ in range(3)]
    for layer in layers:
        apply(layer, x)
    weights = [weakref.ref(layer.weight) for layer in layers]
    del layer, layers[:2]
    gc.collect()
    assert [weight() is not None for weight in weights] == [False, False, True]
    torch.testing.assert_close(apply(layers[0], x), torch.relu(layers[0](x)))
    (graph,) = runtime.explain(apply).graphs
    assert graph.packed_again == 0
