"""Training of the few models whose accuracy is real: seconds on a CPU, the same at every call."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Loss = Callable[[nn.Module, tuple[Tensor, ...]], Tensor]


def train(
    model: nn.Module, batches: Iterable[tuple[Tensor, ...]], loss: Loss, steps: int, rate: float
) -> None:
    """AdamW with one warm-up and cosine decay (`OneCycleLR`) over `steps` batches, in place.

    On one thread, so that sums are made in one order wherever it runs.

    Args:
        loss: (model, batch) to a scalar.
        rate: the highest learning rate.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.enable_grad():
            for batch in batches:
                optimizer.zero_grad()
                loss(model, batch).backward()
                optimizer.step()
                schedule.step()
    finally:
        torch.set_num_threads(threads)


def shuffled(tensors: tuple[Tensor, ...], batch: int, epochs: int) -> Iterator[tuple[Tensor, ...]]:
    """Whole batches of rows, in an order of its own each epoch, from the global generator."""
    count = len(tensors[0])
    for _ in range(epochs):
        order = torch.randperm(count)
        for start in range(0, count - batch + 1, batch):
            rows = order[start : start + batch]
            yield tuple(t[rows] for t in tensors)


def trained(factory: Callable[[], ModuleT], weights: Mapping[str, Tensor]) -> ModuleT:
    """A model of its own with these weights, in eval mode; the random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        model = factory()
    model.load_state_dict(weights)
    return model.eval()
