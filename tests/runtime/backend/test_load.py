"""Many shapes, many threads: the backend keeps what it needs and no more."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

import runtime

THREADS = 8


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.second(torch.relu(self.first(x))), -1)


def alive() -> int:
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


@torch.no_grad()
def test_2000_calls_with_50_shapes_do_not_grow() -> None:
    model = Net()
    compiled = torch.compile(model, backend="capture")
    shapes = [(batch, 4) for batch in range(1, 51)]

    def calls(count: int) -> None:
        for i in range(count):
            x = torch.full(shapes[i * 7 % 50], 0.5)
            result = compiled(x)
            assert result.shape == x.shape
        torch.testing.assert_close(result, model(x))

    calls(100)
    graphs, tensors, objects = len(runtime.explain(compiled).graphs), alive(), len(gc.get_objects())
    assert graphs <= 3  # one for the first shape, one for any, perhaps one for a batch of one
    calls(1900)
    assert len(runtime.explain(compiled).graphs) == graphs
    assert alive() <= tensors
    assert len(gc.get_objects()) < objects + 500


@torch.no_grad()
def test_weights_that_keep_changing_do_not_grow() -> None:
    model = Net()
    compiled = torch.compile(model, backend="capture")
    x = torch.randn(3, 4)

    def change() -> None:
        for _ in range(12):
            compiled(x)
        model.first.weight.mul_(1.01)
        compiled(x)

    change()
    change()
    tensors = alive()
    for _ in range(5):
        change()
    assert alive() <= tensors
    torch.testing.assert_close(compiled(x), model(x))


@torch.no_grad()
def test_more_modules_than_are_packed_for_share_a_graph() -> None:
    layers = [nn.Linear(4, 4) for _ in range(70)]

    @torch.compile(backend="capture")
    def apply(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(layer(x))

    x = torch.randn(3, 4)
    for layer in [*layers, layers[0]]:
        torch.testing.assert_close(apply(layer, x), torch.relu(layer(x)))
    (graph,) = runtime.explain(apply).graphs
    assert "more than 64 modules share the graph" in graph.events[-1]


def together(work: Callable[[int], None]) -> None:
    """Run in eight threads at once; an error of one is raised here."""
    barrier = threading.Barrier(THREADS)

    def run(index: int) -> None:
        barrier.wait()
        with torch.no_grad():
            work(index)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(run, range(THREADS)))


def test_eight_threads_call_one_model() -> None:
    model = Net()
    compiled = torch.compile(model, backend="capture")

    def work(index: int) -> None:
        generator = torch.Generator().manual_seed(index)
        for batch in (2, 3, index + 1, 5):
            x = torch.randn(batch, 4, generator=generator)
            torch.testing.assert_close(compiled(x), model(x))

    together(work)
    assert not runtime.explain(compiled).fallbacks


def test_eight_threads_compile_different_models() -> None:
    models = [Net(width) for width in range(3, 3 + THREADS)]

    def work(index: int) -> None:
        model = models[index]
        compiled = torch.compile(model, backend="capture")
        x = torch.randn(index + 2, 4)
        for _ in range(20):
            torch.testing.assert_close(compiled(x), model(x))

    with torch._dynamo.config.patch(recompile_limit=64):
        together(work)
    for model in models:
        assert [g.runs for g in runtime.explain(model).graphs] == ["inference"]


def test_eight_threads_while_weights_change() -> None:
    """Each call sees the weights of before or of after a change, and those after the last one see these."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1)
    compiled = torch.compile(model, backend="capture")
    x = torch.ones(2, 4)
    with torch.no_grad():
        compiled(x)
    allowed = {4.0 * factor for factor in range(1, 5)}

    def work(index: int) -> None:
        for turn in range(40):
            if index == 0 and turn % 12 == 11:
                model.weight.add_(1)
            assert compiled(x)[0, 0].item() in allowed
        if index == 0:
            assert compiled(x)[0, 0].item() == 16

    together(work)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
