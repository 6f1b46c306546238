"""Gradients of compiled models agree with eager's, and are as near to fp64's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.backend_records import records_of
from tests.runtime.training.steps import assert_alike, assert_trains_alike, compiled, step


class Attention(nn.Module):
    """A norm, causal attention with three heads, and a residual."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return x + self.out(
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        )


class Tied(nn.Module):
    """The embedding is the output matrix too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.fc = nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return F.log_softmax(F.linear(torch.tanh(self.fc(self.embedding(ids))), self.embedding.weight), -1)


class Broken(nn.Module):
    """A graph break in the middle, and a branch on the data behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        torch._dynamo.graph_break()
        if h.sum() > 0:
            h = h * 2
        return self.second(h)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 9), nn.GELU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 3))


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3, stride=2),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def norms() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(4, 6, 3), nn.GroupNorm(3, 6), nn.Mish(), nn.Flatten(), nn.Linear(42, 8), nn.RMSNorm(8)
    )


def image(*shape: int, **how: Any) -> Tensor:
    return torch.randn(*shape).to(**how).requires_grad_()


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (mlp, [lambda: torch.randn(7, 5)]),
        (mlp, [lambda: torch.randn(5, 7).t().requires_grad_()]),
        (convolutions, [lambda: image(3, 3, 11, 9)]),
        (convolutions, [lambda: image(3, 3, 11, 9, memory_format=torch.channels_last)]),
        (norms, [lambda: image(3, 4, 9)]),
        (Attention, [lambda: image(2, 7, 12)]),
        (Tied, [lambda: torch.randint(0, 11, (2, 5))]),
    ],
    ids=["mlp", "transposed input", "conv", "channels-last", "norms", "attention", "tied"],
)
def test_gradients_agree(model: Any, inputs: Any) -> None:
    assert_trains_alike(model(), *(make() for make in inputs))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo looks at it
def test_gradients_flow_through_a_graph_break() -> None:
    model = Broken()
    f = compiled(model)
    eager = copy.deepcopy(model)
    for seed in range(2):
        x = torch.randn(4, 5)
        assert_alike(step(f, model, x, seed=seed), step(eager, eager, x, seed=seed))
    runs = [(record.runs, record.fell_back) for record in records_of(f)]
    assert runs == [
        ("training", ""),
        ("inference", ""),
        ("training", ""),
    ]  # before, the condition, and behind it


def test_results_lie_in_memory_as_eagers_do() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    f = compiled(copy.deepcopy(model))
    for how in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 7, 7).contiguous(memory_format=how)
        assert f(x).stride() == model(x).stride()


def test_batches_of_any_size_take_two_compilations() -> None:
    model = nn.Sequential(Attention(), nn.Flatten(0, 1), nn.Linear(12, 3))
    eager = copy.deepcopy(model)
    f = compiled(model)
    torch._dynamo.utils.counters.clear()
    for batch in (2, 3, 5, 8):
        x = torch.randn(batch, 4, 12)
        assert_alike(step(f, model, x), step(eager, eager, x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_dropout_draws_eagers_masks() -> None:
    model = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.4), nn.ReLU(), nn.Linear(32, 32), nn.Dropout(0.2))
    eager = copy.deepcopy(model)
    f, x = compiled(model), torch.randn(5, 6)
    first = step(f, model, x, seed=1)
    assert_alike(first, step(eager, eager, x, seed=1))
    model.zero_grad()
    assert not torch.equal(first["result"], step(f, model, x, seed=2)["result"])


def test_attention_with_dropout_draws_eagers_masks() -> None:
    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.3)

    x = torch.randn(2, 3, 6, 8, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    nothing = nn.Module()
    assert_alike(step(compiled(attend), nothing, x), step(attend, nothing, y))


def test_what_is_frozen_by_the_user_has_no_gradient() -> None:
    model = mlp()
    model[2].requires_grad_(False)
    model[0].bias.requires_grad_(False)
    assert_trains_alike(model, torch.randn(7, 5))
    assert model[2].weight.grad is None
    assert model[0].bias.grad is None
    assert model[0].weight.grad is not None


def test_a_parameter_that_is_unfrozen_gets_its_gradient() -> None:
    model = mlp()
    model[2].requires_grad_(False)
    f, x = compiled(model), torch.randn(7, 5)
    step(f, model, x)
    model[2].requires_grad_(True)
    model.zero_grad()
    eager = copy.deepcopy(model)
    assert_alike(step(f, model, x), step(eager, eager, x))


def test_autocast_computes_in_eagers_dtypes() -> None:
    model = mlp()
    eager = copy.deepcopy(model)

    def under_autocast(call: Any) -> Any:
        def run(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return call(x)

        return run

    x = torch.randn(7, 5)
    seen = step(under_autocast(compiled(model)), model, x)
    assert seen["result"].dtype == torch.bfloat16
    expected = step(under_autocast(eager), eager, x)
    fp64 = copy.deepcopy(eager).double()
    fp64.zero_grad()
    rounding = torch.finfo(torch.bfloat16).eps
    for name, reference in step(fp64, fp64, x.double()).items():
        scale = reference.abs().max()
        errors = [((side[name].double() - reference).abs().max() / scale).item() for side in (seen, expected)]
        assert errors[0] <= max(2 * errors[1], 2 * rounding), name


def test_a_result_that_is_a_view_carries_gradients() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = self.fc(x)
            return y, y[:, 2:5], x.t()

    model = Views()
    eager = copy.deepcopy(model)
    results = []
    for call in (compiled(model), eager):
        x = torch.ones(3, 6, requires_grad=True)
        y, part, turned = call(x)
        assert part._is_view()
        assert turned._is_view()
        part.mul_(2)
        ((y**2).sum() + turned.sum()).backward()
        results.append([y.detach(), x.grad])
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(model.fc.weight.grad, eager.fc.weight.grad)


def test_an_input_written_to_is_written_to() -> None:
    def forward(x: Tensor, count: Tensor) -> Tensor:
        count.add_(1)
        return torch.sin(x) * count

    seen = []
    for call in (compiled(forward), forward):
        x, count = torch.arange(4.0).requires_grad_(), torch.zeros(())
        for _ in range(2):
            call(x, count).sum().backward()
        assert count == 2
        seen.append(x.grad)
    torch.testing.assert_close(*seen)


def test_integers_and_unused_inputs_need_no_gradient() -> None:
    def forward(x: Tensor, index: Tensor, unused: Tensor) -> Tensor:
        return x[index] * 2

    seen = []
    for call in (compiled(forward), forward):
        x, unused = torch.arange(6.0).requires_grad_(), torch.ones(2, requires_grad=True)
        call(x, torch.tensor([1, 1, 4]), unused).sum().backward()
        assert unused.grad is None
        seen.append(x.grad)
    torch.testing.assert_close(*seen)


def test_an_empty_batch_has_gradients_of_zero() -> None:
    model = mlp()
    compiled(model)(torch.randn(0, 5)).sum().backward()
    assert all((p.grad == 0).all() for p in model.parameters())
