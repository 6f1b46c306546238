"""Write-backs, sizes known at run time only, modes: what generated code does besides computing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from capture import Graph, capture
from codegen import python
from runtime.executables import AtenExecutable, InterpretedGraph
from tests.handmade import parse, run

LEVELS = [[], ["fuse", "lower"], ["layout", "fuse", "lower", "schedule", "memory"]]


def check(model: nn.Module, calls: list[tuple[Any, ...]], passes: list[str], **options: Any) -> Graph:
    """Calls in a row give what eager gives, and leave the same buffers and inputs behind."""
    state = {k: v.clone() for k, v in model.state_dict(keep_vars=False).items()}
    graph = run(capture(model, tuple(torch.clone(a) for a in calls[0]), **options), passes)
    model.load_state_dict(state)
    want = []
    for args in calls:
        given = [a.clone() for a in args]
        want.append((torch.utils._pytree.tree_leaves(model(*given)), given))
    after = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    f = AtenExecutable(graph)
    for args, (results, changed) in zip(calls, want, strict=True):
        given = [a.clone() for a in args]
        with torch.no_grad():
            got = f(*given)
        torch.testing.assert_close(list(got), results)
        torch.testing.assert_close(given, changed)
    torch.testing.assert_close(dict(model.state_dict()), after)
    return graph


class Swap(nn.Module):
    """Two buffers trade places; a third remembers what is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.arange(3.0))
        self.register_buffer("b", -torch.arange(3.0) - 1)
        self.register_buffer("c", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, c = self.a.clone(), self.c.clone()
        self.a.copy_(self.b)
        self.b.copy_(a)
        self.c.copy_(x)
        return c


class Shift(nn.Module):
    """A line of the last values, moved by one in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("line", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        old = self.line[0].clone()
        self.line.copy_(torch.cat([self.line[1:], x]))
        return old, self.line * 2


class Turn(nn.Module):
    """A buffer that is given a view of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(9.0).reshape(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.table.sum(0)
        self.table.copy_(self.table.clone().t())
        return before + x


class InPlaceInput(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = x + y
        x.mul_(2).add_(1)
        y.copy_(x)
        return z * x


EFFECTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[torch.Tensor, ...]]]] = {
    "swap": (Swap, lambda: (torch.randn(3),)),
    "shift": (Shift, lambda: (torch.randn(1),)),
    "turn": (Turn, lambda: (torch.randn(3),)),
    "inputs": (InPlaceInput, lambda: (torch.randn(3), torch.randn(3))),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).train(),
        lambda: (torch.randn(2, 3, 5, 5),),
    ),
    "batch norm over rows": (
        lambda: nn.BatchNorm1d(4, momentum=0.3).train(),
        lambda: (torch.randn(5, 4),),
    ),
}


@pytest.mark.parametrize("passes", LEVELS, ids=["plain", "fused", "planned"])
@pytest.mark.parametrize("effect", EFFECTS)
def test_effects(effect: str, passes: list[str]) -> None:
    make, example = EFFECTS[effect]
    graph = check(make(), [example() for _ in range(3)], passes)
    assert graph.writebacks


@pytest.mark.parametrize("passes", LEVELS, ids=["plain", "fused", "planned"])
def test_a_key_value_cache(passes: list[str]) -> None:
    from models import gpt2

    model = gpt2.small_with_cache(2, 8)
    calls = [(torch.randint(100, (2, 1)), torch.tensor([i])) for i in range(4)]
    check(model.eval().requires_grad_(False), calls, passes)


@pytest.mark.parametrize("executable", [AtenExecutable, InterpretedGraph])
def test_only_what_is_still_read_is_put_aside(executable: Any) -> None:
    graph = parse(
        """
        graph(%x: f32[3])
          @a: f32[3]
          @b: f32[3]
          %0: f32[3] = aten.add.Tensor(@a, %x)
          %1: f32[1, 3] = aten.unsqueeze(@b, 0)
          %2: f32[3] = aten.neg(%0)
          return %0, %1, @b
          write @a = %2
          write @b = @a
        """
    )
    source = python.emit(graph)
    assert source.count(".clone()") == 3
    assert "w.a.copy_(v2)" in source
    a, b = (graph.constants[n].tensor.clone() for n in "ab")
    x = torch.randn(3)
    got = executable(graph)(x)
    torch.testing.assert_close(list(got), [a + x, b[None], b])
    torch.testing.assert_close([graph.constants[n].tensor for n in "ab"], [-(a + x), a])


# -- sizes that the data decide ---------------------------------------------------------------------------


class Nonzero(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        where = x.nonzero()
        count = where.shape[0]
        return where * 2, torch.full((count,), 1.5), x[x > 0]


class OnlyItsSize(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(x.nonzero().shape[0] + 1)


class Item(nn.Module):
    def forward(self, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        size = n.item()
        torch._check(size >= 0)
        torch._check(size <= 9)
        return torch.arange(size) * x.sum()


@pytest.mark.parametrize("passes", LEVELS, ids=["plain", "fused", "planned"])
@pytest.mark.parametrize("model", [Nonzero, OnlyItsSize])
def test_data_dependent_sizes(model: type[nn.Module], passes: list[str]) -> None:
    xs = [torch.tensor([1.0, 0.0, 3.0, -2.0]), torch.zeros(4), torch.ones(4)]
    check(model(), [(x,) for x in xs], passes)


@pytest.mark.parametrize("passes", LEVELS, ids=["plain", "fused", "planned"])
def test_a_size_read_out_of_a_tensor(passes: list[str]) -> None:
    check(Item(), [(torch.randn(3), torch.tensor(n)) for n in (4, 0, 9)], passes)


class Sizes(nn.Module):
    """Sizes as operands, in arithmetic, and as results."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, ...]:
        n, m = x.shape
        z = x.reshape(n * m // 2, 2)
        z = torch.cat([z, z.new_zeros(n, 2)])[: z.shape[0] + 1]
        return z * (n - 1), y.expand(max(n, 3), -1), torch.arange(n, n + m), n + m, x.mean() * (n / m)


@pytest.mark.parametrize("passes", LEVELS, ids=["plain", "fused", "planned"])
def test_symbolic_sizes(passes: list[str]) -> None:
    n, m = torch.export.Dim("N", min=2, max=64), torch.export.Dim("M", min=1, max=32)
    shapes = ({0: n, 1: 2 * m}, {1: m})
    calls = [(torch.randn(n, 2 * m), torch.randn(1, m)) for n, m in ((3, 5), (2, 1), (64, 32), (7, 4))]
    check(Sizes(), calls, passes, dynamic_shapes=shapes)


# -- modes ------------------------------------------------------------------------------------------------


def test_one_module_in_every_mode() -> None:
    """The arena and packed weights are made by the first call; others come in other modes."""
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 8), nn.Softmax(-1), nn.LayerNorm(8)).eval()
    x = torch.randn(3, 4)
    want = model(x).detach()
    graph = run(capture(model, (x,)), LEVELS[2])
    modes = [torch.inference_mode, torch.no_grad, torch.enable_grad]
    for first in modes:
        with first():
            f = AtenExecutable(graph)
        for mode in (first, *modes):
            with mode():
                torch.testing.assert_close(list(f(x)), [want])


def test_reshaped_arena_values_and_views_survive() -> None:
    """Results are never views of the arena: a second call leaves the first one's alone."""
    graph = parse(
        """
        graph(%x: f32[4, 6])
          %0: f32[4, 6] = aten.mul.Tensor(%x, 2)
          %1: f32[4, 6] = aten.exp(%0)
          %2: f32[24] = aten.reshape(%1, [24])
          %3: f32[6, 4] = aten.t(%1)
          %4: f32[4, 4] = aten.mm(%x, %3)
          %5: f32[4] = aten.select.int(%4, 0, 1)
          %6: f32[4, 4] = aten.neg(%4)
          return %2, %5, %6
        """
    )
    for passes in (["memory"], ["fuse", "memory"], ["fuse", "schedule", "memory"]):
        f = AtenExecutable(run(graph, passes))
        x, y = torch.randn(4, 6), torch.randn(4, 6)
        first = list(f(x))
        kept = [t.clone() for t in first]
        f(y)
        assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
        torch.testing.assert_close(first, list(graph.run(x)))
