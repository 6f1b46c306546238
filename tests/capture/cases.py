"""Small models with one awkward trait each, and how a captured graph is compared with its model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from capture import Graph


def line_of(cls: type, code: str) -> str:
    """``tests/capture/cases.py:42`` for the line of a class that holds `code`."""
    lines, first = inspect.getsourcelines(cls)
    offset = next(i for i, line in enumerate(lines) if code in line)
    return f"cases.py:{first + offset}"


def check_against_eager(
    graph: Graph, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> None:
    """The graph verifies, its text round-trips, and a run gives what a copy of the model gives."""
    graph.verify()
    assert str(Graph.parse(str(graph))) == str(graph)
    reference, kwargs = copy.deepcopy(model), dict(kwargs or {})
    given, named = pytree.tree_map(fresh, (args, kwargs))
    with torch.no_grad():
        expected = reference(*given, **named)
    check_equal(graph.run(*pytree.tree_map(fresh, args), **pytree.tree_map(fresh, kwargs)), expected)


def check_equal(result: Any, expected: Any) -> None:
    left, tree = pytree.tree_flatten(result)
    right, expected_tree = pytree.tree_flatten(expected)
    assert tree == expected_tree
    for a, b in zip(left, right, strict=True):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b)
        else:
            assert a == b


def fresh(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


class Router(nn.Module):
    """Asks a tensor which way to go."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.threshold = 0.5

    def forward(self, x: Tensor) -> Tensor:
        scores = self.layer(x)
        if scores.max() > self.threshold:
            return scores * 2
        return scores


class Repeated(nn.Module):
    """Reads a number out of a tensor in a function that is not called forward, and loops over it."""

    def forward(self, x: Tensor) -> Tensor:
        return repeat(x)


def repeat(x: Tensor) -> Tensor:
    count = int(x.sum())
    for _ in range(count):
        x = x + 1
    return x


class Bounded(nn.Module):
    """Holds for at most 16 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 16:
            x = x[:16]
        return x + self.table[: x.shape[0]]


class Broken(nn.Module):
    """Fails in plain PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(7, 2)


class Stash(nn.Module):
    """Carries a tensor from call to call in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(4)

    def forward(self, x: Tensor) -> Tensor:
        self.last = x + self.last
        return self.last * 2


class Remembering(nn.Module):
    """Keeps a result for whoever wants to look at it, and never reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.layer(x)
        return self.seen + 1


class Counter(nn.Module):
    """Buffers changed in place, and by assignment."""

    count: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.mean = self.mean * 0.9 + x.mean(0) * 0.1
        return x - self.mean


class ThroughView(nn.Module):
    """Writes to its input through a view of it."""

    def forward(self, x: Tensor) -> Tensor:
        x[:, 0].mul_(3)
        row = x.view(-1)
        row[1:3] = 0
        return x.sum(0)


class Branches(nn.Module):
    """torch.cond, with a weight that both branches use."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda v: self.layer(v), lambda v: self.layer(v) * 2 + v, (x,))


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


class Nested(nn.Module):
    """Dicts, tuples, None, numbers and names in; dicts, tuples, None and numbers out."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor([1.0, 2.0, 3.0, 4.0])  # neither parameter nor buffer

    def forward(
        self,
        x: Tensor,
        state: dict[str, Tensor],
        times: int = 2,
        mask: Tensor | None = None,
        *,
        mode: str = "a",
    ) -> dict[str, Any]:
        y = x * times * self.scale + state["h"]
        if mask is not None:
            y = y.masked_fill(mask, 0.0)
        if mode == "b":
            y = y + torch.tensor([0.5, 0.5, 0.5, 0.5])
        best, where = y.max(dim=1)
        return {"y": y, "pair": (best, None, times), "where": where, "x": x, "rows": x.shape[0] * 2}


class Numbers(nn.Module):
    """Real and whole numbers computed from sizes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.shape[0]
        y = x / (rows**0.5) + 1.0 / rows
        return y.reshape(2 * rows, 2) * (3 * rows - 1), x.new_ones((rows // 2, 1))


class Unknown(nn.Module):
    """A data-dependent size, with the model's own check of it."""

    def forward(self, x: Tensor) -> Tensor:
        rows = (x > 0).nonzero()
        torch._check(rows.shape[0] <= 7, lambda: "too many")
        return rows.float() * 2


class Modes(nn.Module):
    """Parts without gradients, and a checkpointed one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.layer(x)
        with torch.enable_grad():
            z = torch.utils.checkpoint.checkpoint(self.layer, y, use_reentrant=False)
        return y + z


class Lowered(nn.Module):
    """One layer in bfloat16, by autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.layer(x)
        return y.float() + self.layer(x)


class Loops(nn.Module):
    """Higher-order ops that stack and carry what their regions return."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from torch._higher_order_ops import map as mapped
        from torch._higher_order_ops.scan import scan

        last, products = scan(lambda carry, v: (carry + v, carry * v), torch.zeros(4), x, dim=0)
        return last, products, mapped(lambda row: row.sin() + 1, x)


class Plain:
    """A class that nobody has told pytree about."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class Opaque(nn.Module):
    """Returns an object that is not a tensor."""

    def forward(self, x: Tensor) -> Any:
        return Plain(x + 1)


class Sniffing(nn.Module):
    """Does something else where it is not given a real tensor, as symbolic tracing gives it."""

    def forward(self, x: Any) -> Tensor:
        if isinstance(x, Tensor):
            return x + 1
        return x - 1


class ToNumPy(nn.Module):
    """Goes through NumPy: torch.export follows it in strict mode only."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)
