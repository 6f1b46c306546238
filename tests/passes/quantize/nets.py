"""Small float networks, their graphs and seeded samples: what the tests of quantisation start from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from capture import Graph, capture


class Residual(nn.Module):
    """conv -> bn -> relu -> pool, a residual block with a projection, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.left, self.right = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 12, 1)
        self.last, self.head = nn.Conv2d(12, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm(self.stem(x)).relu())
        x = (self.left(x) + self.right(x)).relu()
        x = (self.last(x) + x).relu()
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    """norm -> linear -> gelu -> linear -> + : a transformer's MLP, and a layer before it."""

    def __init__(self, outlier: float = 1.0) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        with torch.no_grad():
            self.norm.weight[3] *= outlier

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def seeded(factory: type[nn.Module], *args: object) -> nn.Module:
    torch.manual_seed(0)
    return factory(*args).eval()


def images(count: int, seed: int = 0, size: int = 8, batch: int = 2) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(batch, 3, size, size, generator=generator),) for _ in range(count)]


def rows(count: int, seed: int = 0, tokens: int = 5) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(2, tokens, 16, generator=generator),) for _ in range(count)]


@cache
def residual() -> tuple[Graph, list[tuple[Tensor]]]:
    samples = images(3)
    return capture(seeded(Residual), samples[0]), samples


@cache
def block(outlier: float = 1.0) -> tuple[Graph, list[tuple[Tensor]]]:
    samples = rows(3)
    return capture(seeded(Block, outlier), samples[0]), samples


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance of a from b."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def error(graph: Graph, quantized: Graph, samples: Sequence[tuple[Tensor]]) -> float:
    """The worst relative L2 error over samples."""
    return max(relative(quantized.run(*s), graph.run(*s)) for s in samples)
