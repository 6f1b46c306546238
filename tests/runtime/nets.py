"""What tests of the runtime compile: small models, and whether a compiled one gives what the model gives."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

BACKENDS = ["aten", "onnx", "eager"]
Pair = namedtuple("Pair", "left right")


def assert_same(f: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Equal results in an equal structure; inputs are as they were."""
    before = pytree.tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, (args, kwargs))
    got = f(*args, **kwargs)
    torch.testing.assert_close(tensors((args, kwargs)), tensors(before), rtol=0, atol=0)
    with torch.no_grad():
        want = model(*args, **kwargs)
    assert pytree.tree_structure(got) == pytree.tree_structure(want)
    torch.testing.assert_close(tensors(got), tensors(want))
    assert rest(got) == rest(want)


def tensors(tree: Any) -> list[torch.Tensor]:
    return [v for v in pytree.tree_leaves(tree) if isinstance(v, torch.Tensor)]


def rest(tree: Any) -> list[Any]:
    return [v for v in pytree.tree_leaves(tree) if not isinstance(v, torch.Tensor)]


class Nested(nn.Module):
    """Nested inputs and results, a flag, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, xs: Any, mask: Any = None, *, scale: float = 1.0, mode: str = "sum") -> Any:
        y = self.fc(xs["a"]) + xs["b"][0]
        if mask is not None:
            y = y.masked_fill(mask, 0.0)
        y = (y.sum(-1) if mode == "sum" else y.mean(-1)) * scale
        return {"y": y, "pair": Pair(y + 1, [xs["b"][1]]), "none": None, "scale": scale}


def nested_inputs() -> tuple[dict[str, Any], torch.Tensor]:
    return {"a": torch.randn(2, 3), "b": [torch.randn(2, 4), torch.randn(1)]}, torch.rand(2, 4) > 0.5


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.Softmax(-1)
    ).eval()


def net_with_arena() -> nn.Module:
    """All that lives inside a call is made by operators that write where they are told."""
    return Attended().eval()


class Attended(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(x @ x.transpose(-1, -2), -1)
        return torch.softmax(weights @ x, 1) + 1


class Running(nn.Module):
    """A mean of what was seen, as a norm keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        self.mean.lerp_(y.mean(0), 0.1)
        return y - self.mean
