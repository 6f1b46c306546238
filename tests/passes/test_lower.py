"""oneDNN recipes: how they are written, what gets none, and that the meaning stays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from capture import Graph, capture
from capture.ir import Fusion, Impl
from codegen import python
from tests.handmade import kernels, kinds, parse, rewritten, run
from tests.passes.onednn import assert_right, chain
from tests.random_graphs import Case, assert_same_results, cases

aten = torch.ops.aten


def test_recipes_are_written_beside_the_meaning() -> None:
    before = """
        graph(%x: f32[2, 3, 5, 5], %r: f32[2, 4, 5, 5])
          @w: f32[4, 3, 3, 3]
          @b: f32[4]
          @v: f32[7, 5]
          %0: f32[2, 4, 5, 5] = fusion.conv(%x, @w, @b, %r) {
            ^(%a: f32[2, 3, 5, 5], %b: f32[4, 3, 3, 3], %c: f32[4], %d: f32[2, 4, 5, 5])
            %e: f32[2, 4, 5, 5] = aten.conv2d(%a, %b, %c, [1, 1], [1, 1])
            %f: f32[2, 4, 5, 5] = aten.add.Tensor(%d, %e)
            %g: f32[2, 4, 5, 5] = aten.relu(%f)
            return %g
          }
          %1: f32[2, 4, 5, 7] = aten.linear(%0, @v)
          return %1
        """
    assert rewritten(before, "lower") == (
        "graph(%x: f32[2, 3, 5, 5], %r: f32[2, 4, 5, 5])\n"
        "  @w: f32[4, 3, 3, 3]\n"
        "  @b: f32[4]\n"
        "  @v: f32[7, 5]\n"
        "  %0: f32[2, 4, 5, 5] channels_last = fusion.conv(%x, @w, @b, %r)"
        ' via onednn.conv(unary="relu", binary="add", other=3, inplace=3) {\n'
        "    ^(%a: f32[2, 3, 5, 5], %b: f32[4, 3, 3, 3], %c: f32[4], %d: f32[2, 4, 5, 5])\n"
        "    %e: f32[2, 4, 5, 5] = aten.conv2d(%a, %b, %c, [1, 1], [1, 1])\n"
        "    %f: f32[2, 4, 5, 5] = aten.add.Tensor(%d, %e)\n"
        "    %g: f32[2, 4, 5, 5] = aten.relu(%f)\n"
        "    return %g\n"
        "  }\n"
        "  %1: f32[2, 4, 5, 5] = aten.clone(%0, memory_format=torch.contiguous_format)\n"
        '  %2: f32[2, 4, 5, 7] = aten.linear(%1, @v) via onednn.linear(unary="none")\n'
        "  return %2\n"
    )


def test_channels_last_results_need_no_copy() -> None:
    text = """
        graph(%x: f32[2, 3, 5, 5] channels_last, %y: f32[2, 3, 3, 3])
          @w: f32[4, 3, 3, 3]
          %0: f32[2, 4, 3, 3] channels_last = aten.conv2d(%x, @w)
          %1: f32[2, 4, 1, 1] = aten.conv2d(%y, @w)
          return %0, %1
        """
    assert kinds(run(parse(text), ["lower"])) == ["conv2d", "conv2d"]


REFUSED = {
    "computed weight": """
        graph(%x: f32[2, 3], %s: f32[4, 3])
          @w: f32[4, 3]
          %0: f32[4, 3] = aten.mul.Tensor(@w, %s)
          %1: f32[2, 4] = aten.linear(%x, %0)
          return %1
        """,
    "weight among the inputs": """
        graph(%x: f32[2, 3], %w: f32[4, 3])
          %0: f32[2, 4] = aten.linear(%x, %w)
          return %0
        """,
    "computed bias": """
        graph(%x: f32[2, 3], %b: f32[4])
          @w: f32[4, 3]
          %0: f32[2, 4] = aten.linear(%x, @w, %b)
          return %0
        """,
    "written weight": """
        graph(%x: f32[2, 3])
          @w: f32[4, 3]
          %0: f32[2, 4] = aten.linear(%x, @w)
          %1: f32[4, 3] = aten.mul.Tensor(@w, 0.5)
          return %0
          write @w = %1
        """,
    "written bias": """
        graph(%x: f32[2, 3])
          @w: f32[4, 3]
          @b: f32[4]
          %0: f32[2, 4] = aten.linear(%x, @w, @b)
          %1: f32[4] = aten.mul.Tensor(@b, 0.5)
          return %0
          write @b = %1
        """,
    "fp64": """
        graph(%x: f64[2, 3])
          @w: f64[4, 3]
          %0: f64[2, 4] = aten.linear(%x, @w)
          return %0
        """,
    "integers": """
        graph(%x: i64[2, 3])
          @w: i64[4, 3]
          %0: i64[2, 4] = aten.linear(%x, @w)
          return %0
        """,
    "padding given as a word": """
        graph(%x: f32[2, 3, 5, 5])
          @w: f32[4, 3, 3, 3]
          %0: f32[2, 4, 5, 5] = aten.conv2d.padding(%x, @w, None, [1, 1], "same")
          return %0
        """,
    "no batch dimension": """
        graph(%x: f32[3, 5, 5])
          @w: f32[4, 3, 3, 3]
          %0: f32[4, 3, 3] = aten.conv2d(%x, @w)
          return %0
        """,
    "one dimension": """
        graph(%x: f32[2, 3, 9])
          @w: f32[4, 3, 3]
          %0: f32[2, 4, 7] = aten.conv1d(%x, @w)
          return %0
        """,
    "a vector": """
        graph(%x: f32[3])
          @w: f32[4, 3]
          %0: f32[4] = aten.linear(%x, @w)
          return %0
        """,
    "a vector as weight": """
        graph(%x: f32[2, 3])
          @w: f32[3]
          %0: f32[2] = aten.linear(%x, @w)
          return %0
        """,
    "nothing to sum over": """
        graph(%x: f32[2, 0])
          @w: f32[4, 0]
          %0: f32[2, 4] = aten.linear(%x, @w)
          return %0
        """,
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused(why: str) -> None:
    graph = parse(REFUSED[why])
    after = run(graph, ["lower"])
    assert kernels(after) == []
    assert after.history[-1].changed is False
    assert_right(graph, after)


def test_unbound_weights_are_refused() -> None:
    graph = parse(chain("linear", "aten.relu(%0)"), bind=False)
    assert kernels(run(graph, ["fuse", "lower"])) == []


def test_half_precision_only_where_the_machine_has_it() -> None:
    graph = parse(chain("linear", "aten.relu(%0)").replace("f32", "bf16"))
    after = run(graph, ["fuse", "lower"])
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert kernels(after) == ["onednn.linear"] * fast
    assert_right(graph, after)


def test_a_recipe_is_not_written_twice() -> None:
    graph = parse(chain("conv", "aten.relu(%0)", "aten.neg(%1)"))
    once = run(graph, ["fuse", "lower"])
    twice = run(once, ["lower"])
    assert str(twice) == str(once)
    assert twice.history[-1].changed is False
    node = once.nodes[0]
    node.set_impl(Impl("theirs", {}))
    assert kernels(run(once, ["lower"])) == ["theirs"]


def test_one_weight_in_two_geometries() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = nn.functional.conv2d(x, self.weight, padding=1)
            z = nn.functional.conv2d(y, self.weight, padding=2, dilation=2)
            return nn.functional.conv2d(z, self.weight, padding=1) + self.weight.sum()

    x = torch.randn(2, 4, 9, 9)
    graph = capture(Twice(), (x,))
    after = run(graph, ["layout", "fuse", "lower"])
    assert kernels(after) == ["onednn.conv"] * 3
    assert python.emit(after).count("pack_conv(") == 2
    assert_right(graph, after, [x])


@settings(max_examples=40)
@given(cases(dtypes=[torch.float32, torch.bfloat16], families=["linear", "conv_norm", "unary", "binary"]))
def test_any_graph_keeps_its_meaning(case: Case) -> None:
    after = run(case.graph, ["fuse", "lower"])
    assert_same_results(case, after)
    assert str(Graph.parse(str(after))) == str(after)
    regions = {n.op.kind for n in after.nodes if isinstance(n.op, Fusion)}
    assert regions <= {"conv", "linear", "matmul", "pointwise"}
