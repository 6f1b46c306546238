"""Type inference: what a fake call says of sizes, formats and scalars, and what it must not let in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from capture.errors import CaptureError
from capture.ir import Fusion, Graph, LiteralType, Range, RegionRef, ScalarType, TensorType, symbol
from capture.ir.dims import parse_dim
from capture.ir.infer import FakeContext, FakeRun, context_for
from capture.ir.parse import parse_type

aten = torch.ops.aten


def graph_of(*types: str, **ranges: tuple[int, int | None]) -> Graph:
    """A graph with inputs of these types, and dims with these ranges."""
    graph = Graph()
    graph.dims.update({name: Range(*bounds) for name, bounds in ranges.items()})
    for i, text in enumerate(types):
        graph.add_input(f"x{i}", parse_type(text))
    return graph


def inferred(graph: Graph, op: Any, *operands: Any, **kwargs: Any) -> str:
    given = [graph.inputs[int(v[1:])] if isinstance(v, str) and v[0] == "x" else v for v in operands]
    return ", ".join(str(v.type) for v in graph.add_node(op, given, kwargs).results)


@pytest.mark.parametrize(
    ("types", "op", "operands", "expected"),
    [
        (["f32[N, 3]", "f32[3]"], aten.add.Tensor, ["x0", "x1"], "f32[N, 3]"),
        (["f32[N, 3]", "i64[1]"], aten.mul.Tensor, ["x0", "x1"], "f32[N, 3]"),
        (["f32[N, 3]", "f32[5, 3]"], aten.linear.default, ["x0", "x1"], "f32[N, 5]"),
        (["f32[N, M]", "f32[M, N]"], aten.mm.default, ["x0", "x1"], "f32[N, N]"),
        (["f32[N, 4]", "f32[M, 4]"], aten.cat.default, [["x0", "x1"]], "f32[M + N, 4]"),
        (["f32[N, 3, H, H]"], aten.max_pool2d.default, ["x0", [2, 2]], "f32[N, 3, H//2, H//2]"),
        (["f32[N, 3, H, H]", "f32[8, 3, 3, 3]"], aten.conv2d.default, ["x0", "x1", None, [2, 2], [1, 1]],
         "f32[N, 8, (H - 1)//2 + 1, (H - 1)//2 + 1]"),
        (["f32[N, M, 8]"], aten.reshape.default, ["x0", [symbol("N") * symbol("M"), 8]], "f32[M*N, 8]"),
        (["f32[N, M, 8]"], aten.reshape.default, ["x0", [-1, 8]], "f32[M*N, 8]"),
        (["f32[N, 8]"], aten.reshape.default, ["x0", [-1]], "f32[8*N]"),
        (["f32[N, 8]"], aten.slice.Tensor, ["x0", 1, 2, -1], "f32[N, 5] strided"),
        (["f32[N, 8]"], aten.t.default, ["x0"], "f32[8, N] strided"),
        (["f32[N, 8]"], aten.max.dim, ["x0", 0], "f32[8], i64[8]"),
        (["f32[N, 8]"], aten.split.Tensor, ["x0", 4, 1], "f32[N, 4] strided, f32[N, 4] strided"),
        ([], aten.full.default, [[symbol("N"), 2], 1.0], "f32[N, 2]"),
        ([], aten.full.default, [[parse_dim("max(N, 4)")], 1], "i64[max(4, N)]"),
        (["f32[N, 3]"], aten.sym_size.int, ["x0", 0], "int(N)"),
        (["bool[2] @meta"], aten.any.default, ["x0"], "bool[] @meta"),
    ],
)  # fmt: skip
def test_sizes(types: list[str], op: Any, operands: list[Any], expected: str) -> None:
    graph = graph_of(*types, N=(1, 64), M=(2, None), H=(16, 512))
    operands = [
        [graph.inputs[int(v[1:])] for v in o] if isinstance(o, list) and "x0" in o else o for o in operands
    ]
    assert inferred(graph, op, *operands) == expected


def test_memory_formats_follow_strides() -> None:
    graph = graph_of("f32[N, 3, 8, 8] channels_last", "f32[N, 3, 2, 8, 8] channels_last_3d", N=(1, 9))
    assert inferred(graph, aten.relu.default, "x0") == "f32[N, 3, 8, 8] channels_last"
    assert inferred(graph, aten.relu.default, "x1") == "f32[N, 3, 2, 8, 8] channels_last_3d"
    assert (
        inferred(graph, aten.clone.default, "x0", memory_format=torch.contiguous_format) == "f32[N, 3, 8, 8]"
    )
    assert inferred(graph, aten.select.int, "x0", 2, 0) == "f32[N, 3, 8] strided"
    assert inferred(graph, aten.permute.default, "x0", [0, 2, 3, 1]) == "f32[N, 8, 8, 3]"


@pytest.mark.parametrize(
    "ranges", [{"N": (1, 64)}, {"N": (1, 2)}, {"N": (1, 1)}, {"N": (0, None)}, {"N": (1000, 1001)}]
)
def test_any_range_has_an_example(ranges: dict[str, tuple[int, int | None]]) -> None:
    graph = graph_of("f32[N, 3]", **ranges)
    assert inferred(graph, aten.relu.default, "x0") == "f32[N, 3]"


def test_examples_differ_even_where_ranges_are_narrow() -> None:
    """Were two dims to have one example, sizes that differ would pass for equal."""
    graph = graph_of("f32[A, 1]", "f32[B, 1]", A=(1, 4), B=(1, 4))
    with pytest.raises(CaptureError, match=r"does not accept these operands"):
        inferred(graph, aten.add.Tensor, "x0", "x1")
    many = graph_of(*(f"f32[D{i}]" for i in range(40)), **{f"D{i}": (1, None) for i in range(40)})
    context = context_for(many)
    assert len({context._hint(Range()) for _ in range(3)} | context._hints) == 43


def test_one_call_leaves_no_trace_in_the_next() -> None:
    """The example of N is 7, and comparing them makes torch believe that N is 7 for good."""
    graph = graph_of("f32[N]", "f32[7]", N=(7, 64))
    assert inferred(graph, aten.add.Tensor, "x0", "x1") in ("f32[N]", "f32[7]")
    assert inferred(graph, aten.relu.default, "x0") == "f32[N]"
    assert inferred(graph, aten.cat.default, [graph.inputs[0], graph.inputs[0]]) == "f32[2*N]"
    assert not context_for(graph).shape_env.guards


def test_sizes_that_data_decide_get_names_of_their_own() -> None:
    graph = Graph.parse(
        "graph(%x: f32[N]) where N in [1, 9]\n  %0: i64[u0, 1] = aten.nonzero(%x)\n  return %0\n"
    )
    first = graph.add_node(aten.nonzero.default, [graph.inputs[0]]).result
    second = graph.add_node(aten.nonzero.default, [first]).result
    item = graph.add_node(aten.item.default, [graph.add_node(aten.mean.default, [graph.inputs[0]]).result])
    assert str(first.type) == "i64[u1, 1]"
    assert str(second.type) == "i64[u2, 2] strided"
    assert str(item.result.type) == "float"
    count = graph.add_node(aten.sum.default, [first]).result
    assert str(graph.add_node(aten.item.default, [count]).result.type) == "int(u3)"
    assert str(graph.add_node(aten.relu.default, [first]).result.type) == "i64[u1, 1]"


def test_regions_see_the_sizes_around_them() -> None:
    graph = Graph.parse(
        "graph(%x: f32[N]) where N in [1, 9]\n  %0: i64[u0, 1] = aten.nonzero(%x)\n  return %0\n"
    )
    region = graph.new_region()
    inner = region.add_input("a", graph.inputs[0].type)
    fusion = graph.add_node(Fusion("some"), [graph.inputs[0]], regions=[region])
    assert str(region.add_node(aten.nonzero.default, [inner]).result.type) == "i64[u1, 1]"
    assert fusion.results == []


def test_a_region_op_gives_what_its_region_returns() -> None:
    graph = graph_of("f32[N]", "bool[]", N=(1, 9))
    branches = []
    for _ in range(2):
        region = graph.new_region()
        region.add_input("a", graph.inputs[0].type)
        region.set_results([region.add_node(aten.neg.default, region.inputs).result, 3, symbol("N"), None])
        branches.append(region)
    node = graph.add_node(
        torch.ops.higher_order.cond,
        [graph.inputs[1], RegionRef(0), RegionRef(1), [graph.inputs[0]]],
        regions=branches,
    )
    assert [str(v.type) for v in node.results] == ["f32[N]", "int", "int(N)", "none"]


def test_scalars_and_literals_are_operands_too() -> None:
    graph = graph_of("f32[2]", "int", "float", "bool", "int(N)", N=(3, 9))
    graph.add_input("dtype", LiteralType(torch.float64))
    assert inferred(graph, aten.mul.Scalar, "x0", "x2") == "f32[2]"
    assert inferred(graph, aten.full.default, [graph.inputs[4]], "x2") == "f32[N]"
    assert inferred(graph, aten.full.default, [2], "x3") == "bool[2]"
    assert inferred(graph, aten._to_copy.default, "x0", dtype=graph.inputs[5]) == "f64[2]"
    assert FakeContext({}).value(ScalarType("int")) == 2
    assert FakeContext({}).value(ScalarType("none")) is None


def test_an_op_that_refuses_shows_its_operands() -> None:
    graph = graph_of("f32[N, 3]", "f32[4, 5]", N=(1, 9))
    with pytest.raises(CaptureError) as caught:
        graph.add_node(aten.mm.default, [graph.inputs[0], graph.inputs[1]])
    assert caught.value.what == "aten.mm does not accept these operands"
    assert "(f32[N, 3], f32[4, 5])" in str(caught.value.why)
    with pytest.raises(CaptureError, match=r"\(\[f32\[N, 3\], f32\[4, 5\]\], 1\)"):
        graph.add_node(aten.cat.default, [graph.inputs, 1])
    with pytest.raises(CaptureError, match=r"\(f32\[N, 3\], \[N\], dtype=torch.int8\)"):
        graph.add_node(aten.sum.dim_IntList, [graph.inputs[0], [symbol("N")]], {"dtype": torch.int8})
    assert len(graph.nodes) == 0
    assert graph.inputs[0].num_uses == 0


def test_what_no_graph_can_hold_is_an_error() -> None:
    with pytest.raises(CaptureError, match="a graph cannot hold what the op returns, a device"):
        FakeContext({}).type(torch.device("cpu"))


def test_sizes_through_floats_are_refused() -> None:
    graph = graph_of("f32[1, 1, N, N]", N=(2, 64))
    with pytest.raises(CaptureError, match="no integer arithmetic"):
        graph.add_node(aten.upsample_nearest2d.vec, [graph.inputs[0], None, [1.5, 1.5]])


def test_nothing_of_the_caller_gets_in() -> None:
    graph = graph_of("f32[N, 4]", "f32[3, 4]", N=(1, 9))
    with torch.autocast("cpu", torch.bfloat16):
        assert inferred(graph, aten.linear.default, "x0", "x1") == "f32[N, 3]"
    with FakeTensorMode():
        assert inferred(graph, aten.linear.default, "x0", "x1") == "f32[N, 3]"
    with torch.inference_mode():
        assert inferred(graph, aten.linear.default, "x0", "x1") == "f32[N, 3]"
    with torch.device("meta"):
        assert inferred(graph, aten.linear.default, "x0", "x1") == "f32[N, 3]"
    fresh = graph_of("f32[N, 4]", "f32[3, 4]", N=(1, 9))

    def traced(x: torch.Tensor) -> torch.Tensor:
        assert inferred(fresh, aten.linear.default, "x0", "x1") == "f32[N, 3]"
        return x + 1

    seen = make_fx(traced, tracing_mode="symbolic")(torch.ones(2))
    assert [n.op for n in seen.graph.nodes].count("call_function") == 1, "our calls are not the caller's"


def test_a_torch_compile_backend_may_infer() -> None:
    found: list[str] = []

    def backend(module: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        graph = graph_of("f32[N, 4]", "f32[3, 4]", N=(1, 9))
        found.append(inferred(graph, aten.linear.default, "x0", "x1"))
        return module

    compiled = torch.compile(lambda x: x * 2, backend=backend, dynamic=True)
    assert torch.equal(compiled(torch.ones(5)), torch.full((5,), 2.0))
    assert found == ["f32[N, 3]"]


def test_a_fake_run_knows_which_values_share_memory() -> None:
    graph = Graph.parse(
        "graph(%x: f32[N, 4]) where N in [1, 9]\n"
        "  %0: f32[4, N] strided = aten.t(%x)\n"
        "  %1: f32[4, N] = fusion.some(%0) {\n    ^(%a: f32[4, N] strided)\n"
        "    %b: f32[4, N] = aten.relu(%a)\n    return %b\n  }\n"
        "  %2: f32[2, N], %3: f32[2, N] = aten.split.Tensor(%1, 2)\n  return %2, %3\n"
    )
    run = FakeRun(graph)
    for node in graph.nodes:
        assert run.step(node) == [run.value(v) for v in node.results]
    storage = {v: run.value(v).untyped_storage()._cdata for node in graph.nodes for v in node.results}
    t, fused, split = graph.nodes
    assert storage[t.result] == run.value(graph.inputs[0]).untyped_storage()._cdata
    assert storage[fused.result] != storage[t.result]
    assert storage[split.results[0]] == storage[split.results[1]] == storage[fused.result]


def test_types_of_values() -> None:
    assert TensorType(torch.float32, (symbol("N"), 3)).nbytes == 12 * symbol("N")
