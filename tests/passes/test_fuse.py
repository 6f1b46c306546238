"""Fusion regions: what goes into one, and what must stay out."""

from __future__ import annotations

import importlib
import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings

import models.bert
from capture import capture
from capture.ir import Fusion, Trait, has
from passes import optimize
from passes.fuse import Fuse, is_fusable
from passes.fusion import partition, target_of
from tests.handmade import inputs_of, kernels, kinds, parse, rewritten, run
from tests.random_graphs import Case, assert_same_results, cases

aten = torch.ops.aten


def test_convolution_takes_its_epilogue() -> None:
    before = """
        graph(%x: f32[2, 3, 5, 5], %r: f32[2, 4, 5, 5])
          @w: f32[4, 3, 3, 3]
          @b: f32[4]
          %0: f32[2, 4, 5, 5] = aten.conv2d(%x, @w, @b, [1, 1], [1, 1])
          %1: f32[2, 4, 5, 5] = aten.add.Tensor(%0, %r)
          %2: f32[2, 4, 5, 5] = aten.relu(%1)
          return %2
        """
    assert rewritten(before, "fuse") == (
        "graph(%x: f32[2, 3, 5, 5], %r: f32[2, 4, 5, 5])\n"
        "  @w: f32[4, 3, 3, 3]\n"
        "  @b: f32[4]\n"
        "  %0: f32[2, 4, 5, 5] = fusion.conv(%x, @w, @b, %r) {\n"
        "    ^(%a: f32[2, 3, 5, 5], %b: f32[4, 3, 3, 3], %c: f32[4], %d: f32[2, 4, 5, 5])\n"
        "    %e: f32[2, 4, 5, 5] = aten.conv2d(%a, %b, %c, [1, 1], [1, 1])\n"
        "    %f: f32[2, 4, 5, 5] = aten.add.Tensor(%e, %d)\n"
        "    %g: f32[2, 4, 5, 5] = aten.relu(%f)\n"
        "    return %g\n"
        "  }\n"
        "  return %0\n"
    )


def test_pointwise_operators_gather_into_a_tree() -> None:
    before = """
        graph(%x: f32[N, 4], %y: f32[4]) where N in [1, 64]
          @b: f32[4]
          %0: f32[N, 4] = aten.mul.Tensor(%x, %y)
          %1: f32[4] = aten.exp(@b)
          %2: f32[N, 4] = aten.tanh(%0)
          %3: f32[4] = aten.neg(%1)
          %4: f32[N, 4] = aten.add.Tensor(%2, %2)
          return %4, %3
        """
    assert rewritten(before, "fuse") == (
        "graph(%x: f32[N, 4], %y: f32[4]) where N in [1, 64]\n"
        "  @b: f32[4]\n"
        "  %0: f32[4] = fusion.pointwise(@b) {\n"
        "    ^(%a: f32[4])\n"
        "    %b: f32[4] = aten.exp(%a)\n"
        "    %c: f32[4] = aten.neg(%b)\n"
        "    return %c\n"
        "  }\n"
        "  %1: f32[N, 4] = fusion.pointwise(%x, %y) {\n"
        "    ^(%a: f32[N, 4], %b: f32[4])\n"
        "    %c: f32[N, 4] = aten.mul.Tensor(%a, %b)\n"
        "    %d: f32[N, 4] = aten.tanh(%c)\n"
        "    %e: f32[N, 4] = aten.add.Tensor(%d, %d)\n"
        "    return %e\n"
        "  }\n"
        "  return %1, %0\n"
    )


LINEAR = """
    graph(%x: f32[2, 3])
      @w: f32[4, 3]
      %0: f32[2, 4] = aten.linear(%x, @w)
"""


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        pytest.param(
            "%1: f32[2, 4] = aten.relu(%0)\n%2: f32[2] = aten.sum.dim_IntList(%0, [1])\nreturn %1, %2",
            ["linear", "relu", "sum"],
            id="used elsewhere",
        ),
        pytest.param("%1: f32[2, 4] = aten.relu(%0)\nreturn %1, %0", ["linear", "relu"], id="returned"),
        pytest.param(
            "%1: f32[5, 2, 4] = aten.add.Tensor(%0, @big)\nreturn %1", ["linear", "add"], id="broadcast"
        ),
        pytest.param(
            "%1: f64[2, 4] = aten.add.Tensor(%0, @wide)\nreturn %1", ["linear", "add"], id="promoted dtype"
        ),
        pytest.param(
            "%1: bf16[2, 4] = aten._to_copy(%0, dtype=torch.bfloat16)\nreturn %1",
            ["linear", "_to_copy"],
            id="cast",
        ),
        pytest.param("%1: bool[2, 4] = aten.gt.Scalar(%0, 0)\nreturn %1", ["linear", "gt"], id="comparison"),
        pytest.param("return %0", ["linear"], id="lone anchor"),
        pytest.param(
            "%1: f32[2, 4] = aten.dropout(%0, 0.5, True)\nreturn %1", ["linear", "dropout"], id="random"
        ),
        pytest.param(
            "%1: f32[2, 4] = aten.softmax.int(%0, 1)\nreturn %1", ["linear", "softmax"], id="not pointwise"
        ),
        pytest.param("%1: f32[2, 4] = aten.clone(%0)\nreturn %1", ["linear", "clone"], id="moves data"),
        pytest.param("%1: f32[4, 2] = aten.t(%0)\nreturn %1", ["linear", "t"], id="view"),
    ],
)
def test_epilogue_stays_out(body: str, kept: list[str]) -> None:
    constants = "  @big: f32[5, 2, 4]\n" * ("@big" in body) + "  @wide: f64[2, 4]\n" * ("@wide" in body)
    head, nodes = LINEAR.split("      %0")
    text = head + "    " + constants.replace("\n", "\n    ") + "  %0" + nodes
    graph = parse(text.rstrip() + "".join(f"\n      {line}" for line in body.split("\n")) + "\n")
    after = run(graph, ["fuse"])
    assert kinds(after) == kept
    assert after.history[-1].changed is False


def test_an_operator_that_takes_the_value_twice_stays_out() -> None:
    after = run(
        parse(
            """
            graph(%x: f32[2, 3])
              @w: f32[4, 3]
              %0: f32[2, 4] = aten.linear(%x, @w)
              %1: f32[2, 4] = aten.mul.Tensor(%0, %0)
              return %1
            """
        ),
        ["fuse"],
    )
    assert kinds(after) == ["linear", "mul"]


def test_written_back_value_stays_out() -> None:
    graph = parse(
        """
        graph(%x: f32[4])
          @cache: f32[4]
          %0: f32[4] = aten.mul.Tensor(%x, 2)
          %1: f32[4] = aten.add.Tensor(%0, 1)
          return %1
          write @cache = %0
        """
    )
    assert kinds(run(graph, ["fuse"])) == ["mul", "add"]


def test_lone_pointwise_operator_and_unlike_shapes_stay_alone() -> None:
    text = """
        graph(%x: f32[4], %y: f32[3, 4])
          %0: f32[4] = aten.exp(%x)
          %1: f32[3, 4] = aten.add.Tensor(%y, %0)
          return %1
        """
    assert kinds(run(parse(text), ["fuse"])) == ["exp", "add"]


def test_a_value_between_two_groups_joins_neither() -> None:
    text = """
        graph(%x: f32[4])
          %0: f32[4] = aten.exp(%x)
          %1: f32[4] = aten.neg(%0)
          %2: f32[4] = aten.abs(%0)
          return %1, %2
        """
    assert kinds(run(parse(text), ["fuse"])) == ["exp", "neg", "abs"]


def test_regions_are_bounded() -> None:
    lines = "".join(f"  %{i}: f32[4] = aten.neg(%{i - 1 if i else 'x'})\n" for i in range(9))
    graph = parse(f"graph(%x: f32[4])\n{lines}  return %8\n")
    after = run(graph, [Fuse(max_ops=4)])
    assert kinds(after) == ["neg", "fusion.pointwise(neg neg neg neg)", "fusion.pointwise(neg neg neg neg)"]
    anchored = parse(
        "graph(%y: f64[4, 4])\n  @w: f64[4, 4]\n  %a: f64[4, 4] = aten.linear(%y, @w)\n"
        + "".join(f"  %{i}: f64[4, 4] = aten.neg(%{i - 1 if i else 'a'})\n" for i in range(6))
        + "  return %5\n"
    )
    assert kinds(run(anchored, [Fuse(max_ops=4)])) == [
        "fusion.linear(linear neg neg neg)",
        "fusion.pointwise(neg neg neg)",
    ]


def test_dropout_in_training_is_never_fused_and_not_drawn_twice() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Tanh()
    )
    graph = capture(model.train(), (torch.randn(4, 8),))
    after = run(graph, ["fuse"])
    assert [n.op for n in after.nodes if isinstance(n.op, Fusion)] == [Fusion("linear")]
    x = torch.randn(4, 8)
    torch.manual_seed(3)
    want = graph.run(x)
    torch.manual_seed(3)
    assert torch.equal(after.run(x), want)


@pytest.mark.parametrize(
    "op", [aten.to.dtype, aten.to.other, aten.positive.default, aten.conj_physical.default]
)
def test_operators_that_may_return_their_operand_are_not_fused(op: object) -> None:
    """A region's temporaries are overwritten; one that is the input itself must not be."""
    graph = parse("graph(%x: f32[4])\n  %0: f32[4] = aten.neg(%x)\n  return %0\n")
    x = graph.inputs[0]
    more = {aten.to.dtype: [torch.float32], aten.to.other: [x]}.get(op, [])
    node = graph.add_node(op, [x, *more])
    assert not is_fusable(node)


def test_origins_are_united_and_options_name_the_report() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    graph = capture(model, (torch.randn(1, 3, 8, 8),))
    after = run(graph, ["fuse"])
    (node,) = after.nodes
    assert set(node.origin.ids) == set(graph.captured)
    assert after.history[-1].stats == {"conv+relu": 1}


def test_sizes_inside_a_region_are_the_graphs_own() -> None:
    text = """
        graph(%x: f32[N, 4]) where N in [1, 64]
          %0: f32[N, 4] = aten.mul.Tensor(%x, N)
          %1: f32[N, 4] = aten.add.Tensor(%0, N + 1)
          return %1
        """
    graph = parse(text)
    after = run(graph, ["fuse"])
    assert kinds(after) == ["fusion.pointwise(mul add)"]
    for n in (1, 3, 64):
        (x,) = inputs_of(graph, N=n)
        torch.testing.assert_close(after.run(x), x * n + n + 1)


SIZES = [pytest.param("small", 2, id="small"), pytest.param("build", 12, id="base", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("factory", "depth"), SIZES)
def test_a_layer_of_bert_is_few_kernels(factory: str, depth: int) -> None:
    """Each layer: projections, attention, output and residual, norm, GELU's layer, the last one, norm."""
    graph = capture(getattr(models.bert, factory)(), models.bert.example_inputs(1, factory))
    after = optimize(graph, 2)
    kernels_of: Counter[str] = Counter()
    for node in after.nodes:
        assert not is_fusable(node), f"{node} stands alone"
        layer = re.search(r"encoder\.layer\.\d+", str(node.origin))
        if layer is not None and (isinstance(node.op, Fusion) or not has(node.op, Trait.VIEW)):
            kernels_of[layer[0]] += 1
    assert set(kernels_of.values()) == {7}
    assert len(kernels_of) == depth


SWIGLU = """
    graph(%x: f32[3, 8])
      @gate: f32[16, 8]
      @up: f32[16, 8]
      @down: f32[8, 16]
      %0: f32[3, 16] = aten.linear(%x, @gate)
      %1: f32[3, 16] = aten.silu(%0)
      %2: f32[3, 16] = aten.linear(%x, @up)
      %3: f32[3, 16] = aten.mul.Tensor(%1, %2)
      %4: f32[3, 8] = aten.linear(%3, @down)
      %5: f32[3, 8] = aten.add.Tensor(%4, %x)
      return %5
    """


def test_swiglu_is_three_calls() -> None:
    """What the first kernel cannot take in, the second one does."""
    graph = parse(SWIGLU)
    after = run(graph, ["fuse", "lower"])
    inside = ["linear silu", "linear mul", "linear add"]
    assert kinds(after) == [f"fusion.linear({ops})" for ops in inside]
    assert kernels(after) == ["onednn.linear"] * 3
    assert_same_results(Case(graph, 1), after)


ONE_BUFFER = {
    "a second temporary": (
        "%0: f32[9] = aten.mul.Tensor(%x, 2)\n%1: f32[9] = aten.mul.Tensor(%y, 3)\n"
        "%2: f32[9] = aten.add.Tensor(%0, %1)\nreturn %2",
        ["mul", "fusion.pointwise(mul add)"],
        "on a CPU a second temporary would need memory beside the result's",
    ),
    "a temporary of another type": (
        "%0: f32[9] = aten.exp(%x)\n%1: bool[9] = aten.gt.Scalar(%0, 1)\nreturn %1",
        ["exp", "gt"],
        "on a CPU a temporary of another type would need memory beside the result's",
    ),
    "an operator that allocates its result": (
        "%0: f32[9] = aten.exp(%x)\n%1: f32[9] = aten.celu(%0)\nreturn %1",
        ["exp", "celu"],
        "aten.celu allocates its own result",
    ),
    "a reduction": (
        "%0: f32[9] = aten.exp(%x)\n%1: f32[9] = aten.softmax.int(%0, 0)\nreturn %1",
        ["exp", "softmax"],
        "on a CPU a reduction is a call of its own",
    ),
    "what is returned": (
        "%0: f32[9] = aten.exp(%x)\n%1: f32[9] = aten.neg(%0)\nreturn %1, %0",
        ["exp", "neg"],
        "the graph returns its result",
    ),
    "what is used twice": (
        "%0: f32[9] = aten.exp(%x)\n%1: f32[9] = aten.neg(%0)\n%2: f32[9] = aten.cumsum(%0, 0)\n"
        "return %1, %2",
        ["exp", "neg", "cumsum"],
        "its result is used elsewhere too, and computing it twice costs more than reading it",
    ),
}


@pytest.mark.parametrize("why", ONE_BUFFER)
def test_on_a_cpu_a_region_needs_no_memory_beside_its_result(why: str) -> None:
    body, kept, reason = ONE_BUFFER[why]
    lines = "".join(f"  {line}\n" for line in body.split("\n"))
    graph = parse(f"graph(%x: f32[9], %y: f32[9])\n{lines}")
    after = run(graph, ["fuse"])
    assert kinds(after) == kept
    assert_same_results(Case(graph, 1), after, exact=True)
    _, alone = partition(graph, target_of(graph, "cpu"))
    assert reason in alone.values()


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "llama", "resnet", "mlp"])
def test_fusion_never_raises_the_arena_on_a_cpu(name: str) -> None:
    module = importlib.import_module(f"models.{name}")
    graph = capture(module.small(), module.example_inputs(2, "small"))
    fused, apart = optimize(graph, 2), optimize(graph, 2, disable=["fuse"])
    assert fused.memory_plan.arena_bytes <= apart.memory_plan.arena_bytes


@settings(max_examples=25)
@given(cases(dynamic=True))
def test_any_graph_keeps_its_meaning(case: Case) -> None:
    after = run(case.graph, ["fuse"])
    assert_same_results(case, after, exact=True)
    assert run(after, ["fuse"]).history[-1].changed is False
