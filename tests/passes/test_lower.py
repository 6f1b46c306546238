"""oneDNN recipes: what gets one, what must not, and that the meaning stays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from capture import Graph, capture
from capture.ir import Fusion, Impl
from capture.ir.interpreter import run_flat
from codegen import python
from passes.lower import BINARIES, NAN_LOSING, UNARIES, Lower
from runtime.executables import bound_constants, load_module
from tests.handmade import inputs_of, kernels, kinds, parse, rewritten, run
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


EPILOGUES = [
    ("aten.relu(%0)", 'unary="relu"'),
    ("aten.sigmoid(%0)", 'unary="sigmoid"'),
    ("aten.tanh(%0)", 'unary="tanh"'),
    ("aten.silu(%0)", 'unary="swish"'),
    ("aten.hardswish(%0)", 'unary="hardswish"'),
    ("aten.hardsigmoid(%0)", 'unary="hardsigmoid"'),
    ("aten.leaky_relu(%0)", 'unary="leaky_relu", scalars=[0.01]'),
    ("aten.leaky_relu(%0, 0.2)", 'unary="leaky_relu", scalars=[0.2]'),
    ("aten.hardtanh(%0)", 'unary="hardtanh", scalars=[-1.0, 1.0]'),
    ("aten.hardtanh(%0, 0, 6)", 'unary="hardtanh", scalars=[0.0, 6.0]'),
    ("aten.gelu(%0)", 'unary="gelu", algorithm="none"'),
    ('aten.gelu(%0, approximate="tanh")', 'unary="gelu", algorithm="tanh"'),
]
ANCHORS = {
    "conv": ("%x: f32[2, 3, 9, 9]", "f32[4, 3, 3, 3]", "aten.conv2d(%x, @w)", "f32[2, 4, 7, 7]"),
    "linear": ("%x: f32[2, 5, 3]", "f32[4, 3]", "aten.linear(%x, @w)", "f32[2, 5, 4]"),
}


def chain(anchor: str, *steps: str, other: str = "") -> str:
    """A graph: the anchor, then each step on %0, %1, ... in turn; %r is of the anchor's own type."""
    x, weight, call, made = ANCHORS[anchor]
    lines = [f"graph({x}, %r: {other or made})", f"  @w: {weight}", f"  %0: {made} = {call}"]
    lines += [f"  %{i}: {made} = {step}" for i, step in enumerate(steps, start=1)]
    return "\n".join([*lines, f"  return %{len(steps)}", ""])


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


def test_fusions_without_a_kernel_keep_their_epilogue() -> None:
    graph = parse(chain("linear", "aten.relu(%0)").replace("f32", "f64"))
    after = run(graph, ["fuse", "lower"])
    assert kinds(after) == ["fusion.linear(linear relu)"]
    assert kernels(after) == []
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


def generated(graph: Graph, args: list[torch.Tensor]) -> torch.Tensor:
    """What the generated module returns."""
    module = load_module(python.emit(graph), "test")
    module.load(bound_constants(graph))
    with torch.no_grad():
        (result,) = module.forward(*args)
    return result


def assert_right(graph: Graph, after: Graph, args: list[torch.Tensor] | None = None) -> None:
    """The generated code of `after` is as near to `graph` in fp64 as its dtype lets it be; inputs stay."""
    args = inputs_of(graph) if args is None else args
    for constant in after.constants.values():  # one that is written is written once
        constant.tensor = None if constant.tensor is None else constant.tensor.clone()
    before = [a.clone() for a in args]
    got = generated(after, args)
    ((want,), _), ((own,), _) = run_flat(graph, args, dtype=torch.float64), run_flat(graph, args)
    assert (got.dtype, got.shape) == (own.dtype, own.shape)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}.get(got.dtype, 0)
    scale = max(1.0, float(want.double().abs().max())) if want.numel() else 1.0
    assert ((got.double() - want.double()).abs() <= tolerance * scale).all()
    for a, b in zip(args, before, strict=True):
        assert torch.equal(a, b)
