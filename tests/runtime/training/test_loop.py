"""Training loops: the loss falls as eager's does, whatever the optimizer does between the calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.gpt2 import GPT2, Config
from tests.runtime.training.steps import compiled, graphs_of

SMALL = Config(vocabulary=32, positions=16, width=16, depth=2, heads=2, tokens=16)


def batches(count: int) -> Iterator[Tensor]:
    """Token ids [4, 17]: sequences that count up in steps of their own."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.arange(17) * torch.randint(1, 5, (4, 1), generator=generator) % SMALL.vocabulary


def next_token_loss(call: Any, ids: Tensor) -> Tensor:
    return F.cross_entropy(call(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def losses(
    model: nn.Module, call: Any, steps: int, accumulate: int = 1, clip: float | None = None
) -> list[float]:
    """The loss of each step of AdamW, which is taken after every `accumulate` of them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found = []
    for number, ids in enumerate(batches(steps), start=1):
        loss = next_token_loss(call, ids)
        loss.backward()
        found.append(loss.item())
        if number % accumulate == 0:
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return found


def assert_curves_agree(steps: int, **how: Any) -> None:
    model = GPT2(SMALL)
    eager = copy.deepcopy(model)
    call = compiled(model)
    curve = losses(model, call, steps, **how)
    torch.testing.assert_close(curve, losses(eager, eager, steps, **how), rtol=1e-3, atol=1e-4)
    assert curve[-1] < curve[0]
    (record,) = graphs_of(call)
    assert record.optimized_nodes < record.nodes


def test_a_small_gpt_learns_as_in_eager() -> None:
    assert_curves_agree(20)


@pytest.mark.slow
def test_a_small_gpt_learns_as_in_eager_for_long() -> None:
    assert_curves_agree(200)


def test_gradients_may_add_up_and_be_clipped() -> None:
    assert_curves_agree(8, accumulate=2, clip=0.5)


def test_evaluation_between_steps_sees_the_new_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))
    call, x = compiled(model), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model.train()
        call(x).square().sum().backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(call(x), model(x))


def test_checkpointed_blocks_train_as_in_eager() -> None:
    from torch.utils.checkpoint import checkpoint

    def through(block: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: checkpoint(block, x, use_reentrant=False)

    block = nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 6))
    x = torch.randn(5, 6, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    compiled(through(block))(x).square().sum().backward()
    block(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
