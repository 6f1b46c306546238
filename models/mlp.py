"""A multilayer perceptron: the least model that has something to capture.

x -> [linear -> relu -> dropout] x 2 -> linear -> logits
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from ._common import lookup, seeded


class MLP(nn.Module):
    """Features [N, sizes[0]] to logits [N, sizes[-1]], through hidden layers of the sizes between."""

    def __init__(self, sizes: tuple[int, ...], dropout: float = 0.1) -> None:
        super().__init__()
        *hidden, last = pairwise(sizes)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(*last)

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.hidden:
            x = linear(x)
            x = torch.relu(x)
            x = self.dropout(x)
        return self.head(x)


SIZES = {"build": (784, 1024, 1024, 10), "small": (16, 32, 32, 4)}


@seeded
def build() -> MLP:
    """An MLP for 28x28 images: 1.9 M parameters."""
    return MLP(SIZES["build"])


@seeded
def small() -> MLP:
    """The same with 32 hidden units: 1,700 parameters."""
    return MLP(SIZES["small"])


def example_inputs(batch: int = 1, factory: str = "build") -> tuple[Tensor]:
    """Features, float32 [batch, sizes[0]]."""
    sizes = lookup(SIZES, factory)
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, sizes[0], generator=generator),)
