"""What oneDNN computes behind a convolution or linear layer: every epilogue, where it ends, NaN."""

from __future__ import annotations

import pytest
import torch

from capture import Graph
from passes.lower import BINARIES, NAN_LOSING, UNARIES, Lower
from tests.handmade import inputs_of, kernels, kinds, parse, run
from tests.passes.onednn import ANCHORS, EPILOGUES, assert_right, chain, generated

aten = torch.ops.aten


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize(("step", "options"), EPILOGUES)
def test_every_unary_epilogue(dtype: str, anchor: str, step: str, options: str) -> None:
    text = chain(anchor, step).replace("f32", dtype)
    after = run(parse(text), ["fuse", "lower"])
    if dtype == "f32" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert f"via onednn.{anchor}({options})" in str(after)
    assert_right(parse(text), after)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("op", ["add", "mul"])
def test_every_binary_epilogue(dtype: str, anchor: str, op: str) -> None:
    for step in (f"aten.{op}.Tensor(%0, %r)", f"aten.{op}.Tensor(%r, %0)"):
        graph = parse(chain(anchor, step, "aten.relu(%1)").replace("f32", dtype))
        assert_right(graph, run(graph, ["fuse", "lower"]))


def test_the_list_of_epilogues_above_is_whole() -> None:
    assert {Graph.parse(chain("conv", step)).nodes[-1].op for step, _ in EPILOGUES} == set(UNARIES)
    assert set(BINARIES) == {aten.add.Tensor, aten.mul.Tensor}


@pytest.mark.parametrize(
    ("anchor", "steps", "inside", "outside"),
    [
        ("conv", ["aten.add.Tensor(%0, %r)"], ["conv2d", "add"], []),
        ("conv", ["aten.add.Tensor(%r, %0)", "aten.relu(%1)"], ["conv2d", "add", "relu"], []),
        ("conv", ["aten.add.Tensor(%0, %r)", "aten.silu(%1)"], ["conv2d", "add"], ["silu"]),
        ("conv", ["aten.mul.Tensor(%0, %r)", "aten.relu(%1)"], ["conv2d"], ["fusion.pointwise(mul relu)"]),
        ("conv", ["aten.relu(%0)", "aten.add.Tensor(%1, %r)"], ["conv2d", "relu"], ["add"]),
        (
            "conv",
            ["aten.relu(%0)", "aten.tanh(%1)", "aten.neg(%2)"],
            ["conv2d", "relu"],
            ["fusion.pointwise(tanh neg)"],
        ),
        ("conv", ["aten.neg(%0)", "aten.relu(%1)"], ["conv2d"], ["fusion.pointwise(neg relu)"]),
        ("linear", ["aten.add.Tensor(%0, %r)"], ["linear", "add"], []),
        ("linear", ["aten.mul.Tensor(%r, %0)"], ["linear", "mul"], []),
        ("linear", ["aten.add.Tensor(%0, %r)", "aten.relu(%1)"], ["linear", "add"], ["relu"]),
        ("linear", ["aten.gelu(%0)", "aten.mul.Tensor(%1, %r)"], ["linear", "gelu"], ["mul"]),
        ("linear", ["aten.mul.Tensor(%0, 2.0)"], ["linear"], ["mul"]),
        ("linear", ["aten.add.Tensor(%0, %r, alpha=2)"], ["linear"], ["add"]),
        ("linear", ["aten.sub.Tensor(%0, %r)"], ["linear"], ["sub"]),
        ("linear", ['aten.div.Tensor_mode(%0, %r, rounding_mode="floor")'], ["linear"], ["div"]),
    ],
)
def test_an_epilogue_is_cut_where_onednn_ends(
    anchor: str, steps: list[str], inside: list[str], outside: list[str]
) -> None:
    graph = parse(chain(anchor, *steps))
    after = run(graph, ["fuse", "lower"])
    first = after.nodes[0]
    got = [n.op for n in first.region.nodes] if first.region is not None else [first.op]
    assert [str(op).split(".")[1] for op in got] == inside
    assert [k for k in kinds(after)[1:] if k != "clone"] == outside
    assert kernels(after) == [f"onednn.{anchor}"]
    assert_right(graph, after)


@pytest.mark.parametrize("anchor", ANCHORS)
def test_another_operand_that_broadcasts_is_left_to_pytorch(anchor: str) -> None:
    other = {"conv": "f32[2, 4, 1, 1]", "linear": "f32[4]"}[anchor]
    graph = parse(chain(anchor, "aten.add.Tensor(%0, %r)", other=other))
    after = run(graph, ["fuse", "lower"])
    assert [k for k in kinds(after)[1:] if k != "clone"] == ["add"]
    assert_right(graph, after)


def test_value_added_to_itself_is_no_binary() -> None:
    graph = parse(chain("linear", "aten.add.Tensor(%0, %0)"))
    after = run(graph, ["fuse", "lower"])
    assert kinds(after) == ["linear", "add"]
    assert_right(graph, after)


@pytest.mark.parametrize("name", ["relu", "hardsigmoid", "hardtanh"])
@pytest.mark.parametrize("anchor", ANCHORS)
def test_nan_is_lost_in_onednn_unless_kept(anchor: str, name: str) -> None:
    assert name in NAN_LOSING
    graph = parse(chain(anchor, f"aten.{name}(%0)"))
    x, r = inputs_of(graph)
    x[0] = float("nan")
    assert graph.run(x, r)[0].isnan().all()
    fast, kept = run(graph, ["fuse", "lower"]), run(graph, ["fuse", Lower(keep_nan=True)])
    assert not generated(fast, [x, r])[0].isnan().any()
    assert generated(kept, [x, r])[0].isnan().all()
    assert [k for k in kinds(kept) if k != "clone"][1:] == [name]


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("step", [s for s, o in EPILOGUES if not any(f'"{n}"' in o for n in NAN_LOSING)])
def test_other_epilogues_keep_nan_and_infinities(anchor: str, step: str) -> None:
    graph = parse(chain(anchor, step))
    x, r = inputs_of(graph)
    x[0, :, 0] = float("nan")
    x[1, :, 1] = float("inf")
    want, got = graph.run(x, r), generated(run(graph, ["fuse", "lower"]), [x, r])
    assert want.isnan().any()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_fusions_without_a_kernel_keep_their_epilogue() -> None:
    graph = parse(chain("linear", "aten.relu(%0)").replace("f32", "f64"))
    after = run(graph, ["fuse", "lower"])
    assert kinds(after) == ["fusion.linear(linear relu)"]
    assert kernels(after) == []
    assert_right(graph, after)


def test_accumulating_into_the_convolutions_own_input_is_not_offered() -> None:
    """conv(x) + x written over x would be read while it is overwritten."""
    text = """
        graph(%x: f32[2, 4, 5, 5])
          @w: f32[4, 4, 3, 3]
          %0: f32[2, 4, 5, 5] = aten.conv2d(%x, @w, None, [1, 1], [1, 1])
          %1: f32[2, 4, 5, 5] = aten.add.Tensor(%0, %x)
          return %1
        """
    graph = parse(text)
    after = run(graph, ["fuse", "lower"])
    impl = after.nodes[0].impl
    assert impl is not None
    assert impl.options == {"unary": "none", "binary": "add", "other": 0}
    assert_right(graph, after)


def test_another_operand_made_inside_the_region_is_no_binary() -> None:
    text = """
        graph(%x: f32[2, 3], %y: f32[2, 4])
          @w: f32[4, 3]
          %0: f32[2, 4] = fusion.linear(%x, @w, %y) {
            ^(%a: f32[2, 3], %b: f32[4, 3], %c: f32[2, 4])
            %d: f32[2, 4] = aten.linear(%a, %b)
            %e: f32[2, 4] = aten.relu(%c)
            %f: f32[2, 4] = aten.add.Tensor(%d, %e)
            return %f
          }
          return %0
        """
    graph = parse(text)
    assert_right(graph, run(graph, ["lower"]))
