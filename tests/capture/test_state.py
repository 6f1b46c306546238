"""What a call may leave changed in a model is put back, and what it did not change is not touched."""

import pytest
import torch
from torch import nn

from capture.frontends.state import Kept, same_values


class Counter(nn.Module):
    def __init__(self, start: torch.Tensor):
        super().__init__()
        self.register_buffer("count", start)
        self.inner = nn.BatchNorm1d(2)


def test_puts_back_what_was_written_to_and_what_was_replaced():
    model = Counter(torch.zeros(2))
    count, mean = model.count, model.inner.running_mean
    kept = Kept(model, model.buffers())
    mean.add_(3)
    model.count = torch.ones(2)
    assert kept.replaced == ["count"]
    assert torch.equal(kept.buffers["count"], torch.ones(2))
    kept.restore()
    assert kept.replaced == []
    assert model.count is count
    assert torch.equal(mean, torch.zeros(2))


def test_is_resumed_and_then_as_it_has_become():
    model = Counter(torch.zeros(2))
    kept = Kept(model, model.buffers())
    model.inner.running_var.mul_(5)
    now = model.count = torch.ones(2)
    with kept.resumed():
        assert torch.equal(model.inner.running_var, torch.ones(2))
        assert torch.equal(model.count, torch.zeros(2))
    assert torch.equal(model.inner.running_var, torch.full((2,), 5.0))
    assert model.count is now


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.0, float("nan"), -0.0]),
        torch.ones(1).expand(3),
        torch.empty(0, 3),
        torch.tensor([True, False]),
        torch.ones(3).to(torch.float8_e4m3fn),
        torch.ones(3, dtype=torch.complex64) * float("nan"),
        torch.zeros(3, dtype=torch.uint16),
    ],
    ids=["nan", "expanded", "empty", "bool", "float8", "complex", "uint16"],
)
def test_does_not_write_what_is_the_same(tensor):
    before = tensor._version
    Kept(None, [tensor]).restore()
    assert tensor._version == before


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_puts_back_a_parameter_a_sparse_and_a_half_complex_tensor():
    weight = nn.Parameter(torch.ones(2))
    sparse = torch.eye(2).to_sparse()
    half = torch.ones(2, dtype=torch.complex32)
    meta = torch.empty(2, device="meta")
    kept = Kept(None, [weight, sparse, half, meta])
    with torch.no_grad():
        weight.zero_()
    sparse.zero_()
    half.zero_()
    kept.restore()
    assert torch.equal(weight, torch.ones(2))
    assert torch.equal(sparse.to_dense(), torch.eye(2))
    assert torch.equal(torch.view_as_real(half)[:, 0], torch.ones(2, dtype=torch.float16))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor([1.0, float("nan")]), torch.tensor([float("nan"), 1.0]), False),
        (torch.tensor([float("inf")]), torch.tensor([-float("inf")]), False),
        (torch.zeros(2), torch.zeros(2, 1), False),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), False),
        (torch.zeros(0), torch.zeros(0), True),
    ],
    ids=["nan", "moved-nan", "infinite", "shape", "dtype", "empty"],
)
def test_same_values(one, other, same):
    assert same_values(one, other) is same
