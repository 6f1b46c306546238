"""A boxed module takes its inputs in a list, and lets go of each after its last use."""

from __future__ import annotations

import weakref

import torch

from capture import capture
from capture.ir import Graph
from codegen import python
from runtime.executables import load_module

TEXT = """\
graph(%inputs: f32[2, 3], %y: f32[2, 3], %unread: f32[2, 3], %kept: f32[2, 3])
  %0: f32[2, 3] = aten.relu(%inputs)
  %1: f32[2, 3] = aten.add.Tensor(%0, %y)
  %2: f32[2, 3] = aten.mul.Tensor(%1, %kept)
  return %2, %kept
"""


def test_inputs_go_after_their_last_use() -> None:
    module = load_module(python.emit(Graph.parse(TEXT), boxed=True), "boxed")
    x, y, unread, kept = (torch.randn(2, 3) for _ in range(4))
    expected = (x.relu() + y) * kept
    gone = [weakref.ref(t) for t in (x, y, unread)]
    given = [x, y, unread, kept]
    seen: list[list[bool]] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append([each() is None for each in gone])
            return func(*args, **(kwargs or {}))

    del x, y, unread
    with Watch():
        result, same = module.forward(given)
    assert given == []
    assert same is kept
    assert seen == [[False, False, True], [True, False, True], [True, True, True]]
    torch.testing.assert_close(result, expected)


def test_what_is_written_to_stays_until_it_is_written() -> None:
    class Counter(torch.nn.Module):
        def forward(self, x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
            count.add_(1)
            return x * count

    graph = capture(Counter(), (torch.ones(3), torch.zeros(())))
    module = load_module(python.emit(graph, boxed=True), "boxed")
    count = torch.zeros(())
    assert module.forward([torch.ones(3), count])[0].tolist() == [1, 1, 1]
    assert count == 1


def test_a_graph_without_inputs_takes_an_empty_list() -> None:
    graph = Graph.parse("graph()\n  %0: f32[2] = aten.ones([2])\n  return %0\n")
    assert load_module(python.emit(graph, boxed=True), "boxed").forward([])[0].tolist() == [1, 1]
