"""Dynamic sizes: kept by name, computed once, right for every value; and the sizes of data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from capture import Graph
from capture.errors import CaptureError
from codegen import onnx

N, T = Dim("n", min=1, max=64), Dim("t", min=1, max=64)


def randn(n: int, t: int) -> torch.Tensor:
    return torch.randn(n, t, 6, generator=torch.Generator().manual_seed(n * 100 + t))


FUNCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "reshape": lambda x: (
        x.reshape(-1, 6),
        x.flatten(),
        x.reshape(x.shape[0], -1, 2, 3),
        x.view(x.shape[1], -1),
    ),
    "two sizes at once": lambda x: x.transpose(0, 1).reshape(x.shape[1], x.shape[0], 3, 2).flatten(1, 2),
    "halves": lambda x: x.reshape(-1)[: x.numel() // 4 * 2].view(2, -1),
    "slices": lambda x: (x[:, 1:], x[:, :-1], x[:, ::2], x[-1:], x[x.shape[0] - 1 :]),
    "expand": lambda x: (x[:1].expand(x.shape[0] * 2, -1, -1), x[:, :1].expand(-1, x.shape[0], -1)),
    "created": lambda x: (
        torch.arange(x.shape[1]),
        torch.zeros(x.shape[0], 2),
        x.new_full((x.shape[1],), 1.5),
        torch.ones_like(x),
    ),
    "numbers": lambda x: (x / x.shape[1], x * (x.shape[0] + 1), x - x.shape[0] % 3, x + x.shape[1] // 3),
    "means": lambda x: (x.mean((0, 1)), x.var(1, correction=0), x.sum(1) / x.shape[1]),
    "repeat": lambda x: (x.repeat(1, 2, 1), x.repeat(x.shape[1], 1, 1), x.repeat_interleave(2, 0)),
    "positions": lambda x: x + torch.arange(x.shape[1])[:, None],
    "causal mask": lambda x: torch.full((x.shape[1], x.shape[1]), -1.0).triu(1) + x[:, :, :1].amax(),
    "attention": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True),
    "pad": lambda x: (F.pad(x, (0, 0, 0, 3)), F.pad(x, (1, 0, x.shape[0], 0))),
    "roll": lambda x: (x.roll(1, 1), x.roll(5, 0), x.flip(0)),
    "split": lambda x: (x.split([2, 4], 2), x.unflatten(2, (-1, 2))),
    "sorted": lambda x: (x.sort(1)[0], x.argmax(1), x.cumsum(0), x.cumprod(1)),
    "returned": lambda x: (x.shape[0] * 2, x.shape[1] - 1, x),
    "diagonal": lambda x: (x[0] @ x[0].T).diagonal(),
    "windows": lambda x: x.unfold(1, 1, 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_right_for_every_size(name: str, trace: Callable[..., Graph]) -> None:
    fn = FUNCTIONS[name]
    graph = trace(fn, (randn(3, 5),), ({0: N, 1: T},))
    model = onnx.export(graph)
    for sizes in ((3, 5), (1, 1), (4, 2), (7, 9)):
        assert onnx.check(model, graph, (randn(*sizes),)) < 1e-5


def test_sizes_are_read_once_and_shared(trace: Callable[..., Graph]) -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        n = x.shape[0]
        return x.new_zeros(n + 1), x.new_ones(n + 1, 2), x * (n + 1), x + n // 2

    model = onnx.export(trace(fn, (randn(3, 5),), ({0: N},)))
    made = [n.op_type for n in model.graph.node if n.name.startswith("sizes/")]
    assert [made.count(op_type) for op_type in ("Shape", "Add", "Div")] == [1, 1, 1]


def test_a_dynamic_batch_needs_no_shape_arithmetic(trace: Callable[..., Graph]) -> None:
    graph = trace(lambda x: x.reshape(x.shape[0], 5, 2, 3).flatten(2).mean(1), (randn(3, 5),), ({0: N},))
    assert {n.op_type for n in onnx.export(graph).graph.node} == {"Reshape", "ReduceMean"}


def test_names_of_dims(trace: Callable[..., Graph]) -> None:
    model = onnx.export(trace(lambda x: torch.cat([x, x], 1), (randn(3, 5),), ({0: N, 1: T},)))

    def named(value: Any) -> list[Any]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert named(model.graph.input[0]) == ["n", "t", 6]
    assert named(model.graph.output[0]) == ["n", "2*t", 6]


def test_floored_quotients_of_negative_sizes() -> None:
    text = """\
graph(%x: f32[n]) where n in [1, 64]
  %0: i64[] = aten.full([], (3 - n)//2)
  %1: i64[] = aten.full([], (3 - n) % 4)
  return %0, %1
"""
    graph = Graph.parse(text)
    model = onnx.export(graph)
    assert all(onnx.check(model, graph, (torch.zeros(n),)) == 0 for n in range(1, 9))


def test_slices_by_expressions() -> None:
    text = """\
graph(%x: f32[n, m]) where n in [1, 64], m in [1, 64]
  %0: f32[n//2, m] = aten.slice.Tensor(%x, 0, 0, n//2)
  %1: f32[n - n//2, m] = aten.slice.Tensor(%x, 0, n//2, 9223372036854775807)
  %2: f32[min(m, n)] = aten.full([min(m, n)], 2.0)
  %3: f32[max(3, n)] = aten.full([max(3, n)], 2.0)
  return %0, %1, %2, %3
"""
    graph = Graph.parse(text)
    model = onnx.export(graph)
    assert all(onnx.check(model, graph, (torch.randn(n, m),)) == 0 for n in range(1, 6) for m in (1, 4))


def test_a_dim_is_solved_from_an_expression() -> None:
    text = """\
graph(%x: f32[2*n + 1]) where n in [1, 64]
  %0: f32[n] = aten.full([n], 1.0)
  return %0
"""
    graph = Graph.parse(text)
    model = onnx.export(graph)
    assert all(onnx.check(model, graph, (torch.zeros(2 * n + 1),)) == 0 for n in (1, 4, 7))


def test_numbers_are_inputs() -> None:
    text = """\
graph(%x: f32[4], %n: int(n), %scale: float) where n in [1, 64]
  %0: f32[4] = aten.mul.Tensor(%x, %scale)
  %1: f32[n] = aten.full([n], 1.0)
  %2: f32[4] = aten.add.Tensor(%0, n)
  return %2, %1
"""
    graph = Graph.parse(text)
    model = onnx.export(graph)
    assert [i.name for i in model.graph.input] == ["x", "n", "scale"]
    assert onnx.check(model, graph, (torch.randn(4), 3, 0.1)) < 1e-6


def test_a_dim_that_nothing_tells() -> None:
    text = """\
graph(%x: f32[n*m]) where n in [1, 64], m in [1, 64]
  %0: f32[n] = aten.full([n], 1.0)    # head  net.py:3
  return %0
"""
    with pytest.raises(CaptureError, match=r"no input tells the size n\n  head  net.py:3"):
        onnx.export(Graph.parse(text))


def test_sizes_that_depend_on_data(trace: Callable[..., Graph]) -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = x[x > 0]
        return found, found.sum() / found.shape[0], torch.arange(found.shape[0]), x.nonzero()

    graph = trace(fn, (randn(3, 5),))
    assert onnx.check(onnx.export(graph), graph, (randn(3, 5),)) < 1e-5


def test_a_number_read_from_a_tensor(trace: Callable[..., Graph]) -> None:
    def fn(x: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count = n.item()
        torch._check(count >= 0)
        torch._check(count <= 5)
        return torch.zeros(count), x[:, :2] * count

    args = (randn(3, 5), torch.tensor(4))
    graph = trace(fn, args, ({}, {}))
    assert onnx.check(onnx.export(graph), graph, args) == 0
