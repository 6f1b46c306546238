"""Channels-last: what is converted, what comes back contiguous, and what is left alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from capture import Graph, capture
from tests.handmade import inputs_of, kinds, parse, rewritten, run
from tests.random_graphs import Case, assert_same_results, cases


def test_a_chain_is_converted_once_and_its_result_back() -> None:
    before = """
        graph(%x: f32[2, 3, 9, 9], %r: f32[2, 4, 9, 9])
          @w: f32[4, 3, 3, 3]
          @v: f32[4, 4, 3, 3]
          %0: f32[2, 4, 9, 9] = aten.conv2d(%x, @w, None, [1, 1], [1, 1])
          %1: f32[2, 4, 9, 9] = aten.add.Tensor(%0, %r)
          %2: f32[2, 4, 9, 9] = aten.conv2d(%1, @v, None, [1, 1], [1, 1])
          %3: f32[2, 4, 9, 9] = aten.conv2d(%1, @v, None, [1, 1], [2, 2], [2, 2])
          %4: f32[2, 4, 9, 9] = aten.mul.Tensor(%2, %3)
          return %4
        """
    assert rewritten(before, "layout") == (
        "graph(%x: f32[2, 3, 9, 9], %r: f32[2, 4, 9, 9])\n"
        "  @w: f32[4, 3, 3, 3]\n"
        "  @v: f32[4, 4, 3, 3]\n"
        "  %0: f32[2, 3, 9, 9] channels_last = aten.clone(%x, memory_format=torch.channels_last)\n"
        "  %1: f32[2, 4, 9, 9] channels_last = aten.conv2d(%0, @w, None, [1, 1], [1, 1])\n"
        "  %2: f32[2, 4, 9, 9] channels_last = aten.add.Tensor(%1, %r)\n"
        "  %3: f32[2, 4, 9, 9] channels_last = aten.conv2d(%2, @v, None, [1, 1], [1, 1])\n"
        "  %4: f32[2, 4, 9, 9] channels_last = aten.conv2d(%2, @v, None, [1, 1], [2, 2], [2, 2])\n"
        "  %5: f32[2, 4, 9, 9] channels_last = aten.mul.Tensor(%3, %4)\n"
        "  %6: f32[2, 4, 9, 9] = aten.clone(%5, memory_format=torch.contiguous_format)\n"
        "  return %6\n"
    )


def test_three_dimensions() -> None:
    before = """
        graph(%x: f32[N, 3, 5, 5, 5]) where N in [1, 64]
          @w: f32[4, 3, 3, 3, 3]
          %0: f32[N, 4, 3, 3, 3] = aten.conv3d(%x, @w)
          return %0
        """
    after = rewritten(before, "layout")
    assert "f32[N, 4, 3, 3, 3] channels_last_3d = aten.conv3d(%0, @w)" in after
    assert after.endswith("= aten.clone(%1, memory_format=torch.contiguous_format)\n  return %2\n")


def test_one_input_of_two_convolutions_is_converted_once() -> None:
    before = """
        graph(%x: f32[2, 3, 5, 5])
          @w: f32[4, 3, 1, 1]
          %0: f32[2, 4, 5, 5] = aten.conv2d(%x, @w)
          %1: f32[2, 4, 5, 5] = aten.conv2d(%x, @w)
          %2: f32[2, 4, 5, 5] = aten.add.Tensor(%0, %1)
          %3: f32[2, 5, 5] = aten.sum.dim_IntList(%2, [1])
          return %3
        """
    after = run(parse(before), ["layout"])
    assert kinds(after) == ["clone", "conv2d", "conv2d", "add", "sum"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "graph(%x: f32[2, 3, 5, 5])\n  %0: f32[2, 3, 5, 5] = aten.relu(%x)\n  return %0\n",
            id="no convolution",
        ),
        pytest.param(
            "graph(%x: f32[2, 3, 9])\n  @w: f32[4, 3, 3]\n  %0: f32[2, 4, 7] = aten.conv1d(%x, @w)\n"
            "  return %0\n",
            id="one dimension",
        ),
        pytest.param(
            "graph(%x: f32[2, 3, 5, 5] channels_last)\n  @w: f32[4, 3, 1, 1]\n"
            "  %0: f32[2, 4, 5, 5] channels_last = aten.conv2d(%x, @w)\n  return %0\n",
            id="channels-last already",
        ),
        pytest.param(
            "graph(%x: f32[3, 5, 5])\n  @w: f32[4, 3, 1, 1]\n  %0: f32[4, 5, 5] = aten.conv2d(%x, @w)\n"
            "  return %0\n",
            id="no batch, two dimensions",
        ),
        pytest.param(
            "graph(%x: f32[3, 5, 5, 5])\n  @w: f32[4, 3, 1, 1, 1]\n"
            "  %0: f32[4, 5, 5, 5] = aten.conv3d(%x, @w)\n  return %0\n",
            id="no batch, three dimensions",
        ),
    ],
)
def test_left_alone(text: str) -> None:
    after = run(parse(text), ["layout"])
    assert str(after) == text
    assert after.history[-1].changed is False


class Views(nn.Module):
    """What follows a convolution here gives a view of it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if self.kind == "flatten":
            return y.flatten(2)
        if self.kind == "complex":
            return torch.view_as_complex(y.reshape(*y.shape[:-1], y.shape[-1] // 2, 2))
        if self.kind == "strided":
            return y.as_strided((2, 3), (1, 2))
        if self.kind == "bits":
            return y.view(torch.int32)
        if self.kind == "wide bits":
            return y.view(torch.int64)
        return y.permute(0, 2, 3, 1)


@pytest.mark.parametrize("kind", ["flatten", "complex", "strided", "bits", "wide bits", "permute"])
def test_operators_that_read_strides_see_those_they_were_captured_with(kind: str) -> None:
    model = Views(kind).eval()
    x = torch.randn(2, 3, 6, 6)
    graph = capture(model, (x,))
    after = run(graph, ["layout"])
    want, got = model(x), after.run(x)
    if got.dtype in (torch.int32, torch.int64):  # the bits of floats
        got, want = got.view(torch.float32), want.view(torch.float32)
    torch.testing.assert_close(got, want)
    if want.is_contiguous():
        assert got.is_contiguous()


def test_a_result_that_was_contiguous_stays_so_behind_a_view() -> None:
    before = """
        graph(%x: f32[2, 3, 5, 5])
          @w: f32[4, 3, 1, 1]
          %0: f32[2, 4, 5, 5] = aten.conv2d(%x, @w)
          %1: f32[2, 4, 25] = aten.reshape(%0, [2, 4, 25])
          return %1
        """
    graph = parse(before)
    (x,) = inputs_of(graph)
    after = run(graph, ["layout"])
    assert kinds(after)[-1] == "clone"
    assert after.run(x).is_contiguous()
    torch.testing.assert_close(after.run(x), graph.run(x))


def test_buffers_are_written_whatever_their_format() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    x = torch.randn(4, 3, 6, 6)
    graph = capture(model, (x,))
    assert graph.writebacks
    start = {k: c.tensor.clone() for k, c in graph.constants.items() if c.tensor is not None}
    after = run(graph, ["layout"])
    results = []
    for each in (graph, after):
        each.bind({k: t.clone() for k, t in start.items()})
        results.append((each.run(x), {k: c.tensor for k, c in each.constants.items()}))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_symbolic_batch(n: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.randn(2, 3, 6, 6)
    batch = torch.export.Dim("N", min=1, max=8)
    graph = capture(model, (x,), dynamic_shapes=({0: batch},))
    after = run(graph, ["layout"])
    x = torch.randn(n, 3, 6, 6)
    torch.testing.assert_close(after.run(x), model(x))


def test_transposed_convolutions() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    x = torch.randn(2, 3, 5, 5)
    after = run(capture(model, (x,)), ["layout"])
    assert kinds(after) == ["clone", "conv_transpose2d", "relu", "conv2d", "clone"]
    torch.testing.assert_close(after.run(x), model(x))


@settings(max_examples=40)
@given(cases(dtypes=[torch.float32, torch.bfloat16]))
def test_any_graph_keeps_its_meaning(case: Case) -> None:
    after = run(case.graph, ["layout"])
    assert_same_results(case, after)
    assert Graph.parse(str(after)).verify()
