"""Values in the arena and over dying operands: right for any input, and never over what others need."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from capture import Graph, capture
from codegen import python
from passes.destinations import out_form
from runtime.executables import AtenExecutable
from tests.handmade import inputs_of, parse, run

PLANNED = ["fuse", "lower", "memory"]


def forward_of(graph: Graph) -> list[str]:
    lines = python.emit(graph).split("def forward(")[1].splitlines()[2:]
    return [line.split("  #")[0].strip() for line in lines]


def assert_right(graph: Graph, after: Graph, *calls: list[torch.Tensor]) -> None:
    """Each call in turn; memory of the call before must not shine through."""
    f = AtenExecutable(after)
    for args in calls:
        before = [a.clone() for a in args]
        with torch.no_grad():
            got = list(f(*args))
        want = graph.run(*before)
        want = list(want) if isinstance(want, tuple) else [want]
        torch.testing.assert_close(got, want, equal_nan=True)
        torch.testing.assert_close(args, before, rtol=0, atol=0, equal_nan=True)


def test_an_arena_holds_what_the_plan_says() -> None:
    graph = parse(
        """
        graph(%x: f32[8, 16])
          %0: f32[8, 16] = aten.exp(%x)
          %1: f32[16, 8] = aten.t(%0)
          %2: f32[8, 8] = aten.mm(%x, %1)
          %3: f32[8] = aten.sum.dim_IntList(%2, [1])
          return %3
        """
    )
    after = run(graph, ["memory"])
    assert forward_of(after) == [
        "m = take_arena()",
        "v0 = torch.exp(x, out=m.v0)",
        "v1 = torch.t(v0); del v0",
        "v2 = torch.mm(x, v1, out=m.v2); del v1",
        "v3 = torch.sum(v2, [1]); del v2",
        "arenas.append(m)",
        "return [v3]",
    ]
    size = re.search(r"memory = torch\.empty\((\d+), dtype=torch\.uint8", python.emit(after))
    assert size is not None
    assert int(size[1]) == after.memory_plan.in_arena_bytes
    assert_right(graph, after, *([torch.randn(8, 16)] for _ in range(2)))


def test_a_vector_times_a_matrix_is_not_put_into_the_arena() -> None:
    graph = parse(
        """
        graph(%x: f32[4])
          @w: f32[4, 5]
          %0: f32[5] = aten.matmul(%x, @w)
          %1: f32[] = aten.sum(%0)
          return %1
        """
    )
    assert_right(graph, run(graph, PLANNED), [torch.randn(4)], [torch.randn(4)])


@pytest.mark.parametrize("op", ["gelu", "silu", "tanh", "relu", "hardswish", "mish", "sigmoid", "elu", "erf"])
@pytest.mark.parametrize("captured", [torch.contiguous_format, torch.channels_last])
def test_inputs_of_other_strides_than_captured(op: str, captured: torch.memory_format) -> None:
    """gelu.out leaves the buffer as it was where operand and buffer are strided differently."""

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = getattr(torch.ops.aten, op).default(x)
            z = getattr(torch.ops.aten, op).default(x) * 2
            return y.sum((2, 3)), (z.flip(0) - 1).sum(1)

    x = torch.randn(2, 8, 16, 16)
    graph = capture(Model(), (x.contiguous(memory_format=captured),))
    wide = torch.stack([x, x], dim=-1)[..., 0]
    given = [
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.mT.contiguous().mT,
        wide,
        x[:1].expand_as(x),
    ]
    for passes in (["memory"], PLANNED):
        assert_right(graph, run(graph, passes), *([g * (i + 1)] for i, g in enumerate(given)))


def test_accumulation_over_the_other_operand() -> None:
    """conv + y goes over y where y dies: not where it is an input, a constant, a result or read later."""

    def graph(body: str) -> Graph:
        return parse(
            f"""
            graph(%x: f32[2, 8, 6, 6], %y: f32[2, 8, 6, 6])
              @w: f32[8, 8, 3, 3]
              @c: f32[2, 8, 6, 6]
{body}
            """
        )

    def conv(line: int, other: str) -> str:
        return (
            f"%{line}: f32[2, 8, 6, 6] = aten.conv2d(%x, @w, None, [1, 1], [1, 1])\n"
            f"%{line + 1}: f32[2, 8, 6, 6] = aten.add.Tensor(%{line}, {other})\n"
        )

    first = "%0: f32[2, 8, 6, 6] = aten.conv2d(%y, @w, None, [1, 1], [1, 1])\n"
    bodies = {
        "dies": (first + conv(1, "%0") + "return %2", True),
        "input": (conv(0, "%y") + "return %1", False),
        "constant": (conv(0, "@c") + "return %1", False),
        "result": (first + conv(1, "%0") + "return %2, %0", False),
        "later": (first + conv(1, "%0") + "%3: f32[2, 8, 6, 6] = aten.mul.Tensor(%2, %0)\nreturn %3", False),
    }
    for name, (body, in_place) in bodies.items():
        captured = graph(body)
        after = run(captured, ["layout", "fuse", "lower", "memory"])
        assert ("conv_add_(" in python.emit(after)) is in_place, name
        assert_right(captured, after, inputs_of(captured), inputs_of(captured, seed=2))


def test_accumulation_where_the_convolution_reads_a_view_of_it() -> None:
    graph = parse(
        """
        graph(%x: f32[2, 8, 6, 6])
          @w: f32[8, 8, 3, 3]
          %0: f32[2, 8, 6, 6] = aten.avg_pool2d(%x, [3, 3], [1, 1], [1, 1])
          %1: f32[2, 8, 6, 6] = aten.transpose.int(%0, 2, 3)
          %2: f32[2, 8, 6, 6] = aten.conv2d(%1, @w, None, [1, 1], [1, 1])
          %3: f32[2, 8, 6, 6] = aten.add.Tensor(%2, %0)
          return %3
        """.replace("%1: f32[2, 8, 6, 6] =", "%1: f32[2, 8, 6, 6] strided =")
    )
    for passes in (["fuse", "lower", "memory"], ["layout", "fuse", "lower", "memory"]):
        after = run(graph, passes)
        assert_right(graph, after, inputs_of(graph), inputs_of(graph, seed=2))


def test_a_result_that_is_a_view_is_not_in_the_arena() -> None:
    graph = parse(
        """
        graph(%x: f32[4, 6])
          %0: f32[4, 6] = aten.exp(%x)
          %1: f32[6, 4] = aten.t(%0)
          %2: f32[3, 4] = aten.slice.Tensor(%1, 0, 0, 3)
          return %2
        """
    )
    after = run(graph, ["memory"])
    assert "m." not in "".join(forward_of(after))
    assert_right(graph, after, [torch.randn(4, 6)])


def test_the_table_of_destinations_is_used() -> None:
    """Every operator with an honest out= prints one that runs: `relu` goes through clamp_min."""
    graph = parse(
        """
        graph(%x: f32[4, 4])
          %0: f32[4, 4] = aten.relu(%x)
          %1: f32[4, 4] = aten.mm(%0, %x)
          %2: f32[4, 4] = aten.masked_fill.Scalar(%1, @mask, -inf)
          %3: f32[4, 4] = aten.softmax.int(%2, 1)
          %4: f32[4, 8] = aten.cat([%3, %x], 1)
          %5: f32[8] = aten.amax(%4, [0])
          return %5
        """.replace("          %0:", "          @mask: bool[4, 4]\n          %0:", 1)
    )
    after = run(graph, ["memory"])
    assert out_form(torch.ops.aten.relu.default) is not None
    lines = forward_of(after)
    assert any("clamp_min" in line and "out=m." in line for line in lines)
    assert any("masked_fill_.Scalar(" in line for line in lines)
    assert_right(graph, after, [torch.randn(4, 4)], [torch.full((4, 4), float("nan"))])
