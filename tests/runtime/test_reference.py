"""What a model is judged by: its outcome in fp64, what it writes, and that it is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import runtime
from capture import capture
from models import gpt2
from runtime.compare import compare, judge
from runtime.reference import reference


class Counter(nn.Module):
    """Writes to a buffer and to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x
        x.mul_(2)
        return self.seen * 2


def test_a_model_that_writes_is_left_as_it_was() -> None:
    model, x = Counter(), torch.ones(3)
    parity = compare(model, model, (x,))
    assert parity.ok
    assert [row.name for row in parity.outputs] == ["out", "buffer seen", "input [0]"]
    assert torch.equal(x, torch.ones(3))
    assert torch.equal(model.seen, torch.zeros(3))


def test_a_write_that_is_forgotten_fails() -> None:
    model, x = Counter(), torch.ones(3)

    def pure(x: Tensor) -> Tensor:
        return (model.seen + x) * 2

    reason = compare(model, pure, (x,)).reason
    assert reason == "input [0]: eager writes to it, ours does not"


def test_a_wrong_write_fails() -> None:
    model = Counter()

    def wrong(x: Tensor) -> Tensor:
        model.seen += 2 * x
        x.mul_(2)
        return model.seen

    parity = compare(model, wrong, (torch.ones(3),))
    assert {row.name for row in parity.outputs if not row.ok} == {"buffer seen"}
    assert torch.equal(model.seen, torch.zeros(3))


def test_a_cache_is_compared() -> None:
    model = gpt2.small_with_cache()
    parity = compare(model, model, gpt2.example_inputs(1, "small_with_cache"))
    assert parity.ok
    assert any(row.name.startswith("buffer h.0") for row in parity.outputs)


def test_random_ops_see_the_same_numbers_and_the_state_is_kept() -> None:
    model = nn.Dropout(0.5).train()
    x = torch.randn(64)
    before = torch.get_rng_state()
    made = reference(lambda x: model(x), (x,))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(made.eager.leaves[0], reference(lambda x: model(x), (x,)).eager.leaves[0])


class Running(nn.Module):
    """A mean over calls: what it gives depends on how often it was called before."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("sum", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.sum = self.sum + x
        return self.sum / (self.count + 1)


@pytest.mark.parametrize("frontend", ["auto", "dispatch"])
def test_calls_between_the_two_sides_do_not_matter(frontend: str) -> None:
    model, args = Running(), (torch.ones(4),)
    f = runtime.compile(model, args, backend="aten", frontend=frontend)
    made = reference(model, args)
    for _ in range(3):
        f(*args)
        model(*args)
    count, total = model.count.clone(), model.sum.clone()
    assert judge(made, f)
    assert torch.equal(model.count, count)
    assert torch.equal(model.sum, total)


class CastsInside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[-1], dtype=torch.float32)
        return (x.float() * torch.exp(positions / 7)).to(torch.float32) / 3


def test_fp64_reaches_casts_and_factories_inside_the_model() -> None:
    x = torch.randn(5)
    made = reference(CastsInside(), (x,))
    positions = torch.arange(5, dtype=torch.float64)
    exact = x.double() * torch.exp(positions / 7) / 3
    assert made.source == "fp64 model"
    assert torch.allclose(made.fp64.leaves[0], exact, rtol=1e-15, atol=0)


class RefusesDouble(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.linear.weight.dtype == torch.float64:
            raise TypeError("float32 only")
        return self.linear(x)


def test_the_graph_is_the_reference_where_the_model_refuses_fp64() -> None:
    model, x = RefusesDouble().eval(), torch.randn(2, 4)
    parity = compare(model, model, (x,), graph=capture(model, (x,)))
    assert parity.ok
    assert parity.reference == "fp64 graph"
    assert parity.error_vs_fp64 > 0


def test_without_fp64_eager_is_the_reference() -> None:
    model, x = RefusesDouble().eval(), torch.randn(2, 4)
    parity = compare(model, model, (x,))
    assert parity.ok
    assert parity.reference == "eager"
    assert parity.error_vs_fp64 is None
    assert "float32 only" in parity.reason
    assert not compare(model, lambda x: model(x) + 0.1, (x,)).ok
