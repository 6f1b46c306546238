"""Running a graph: in its own dtypes and in fp64, on inputs that fit, and on inputs that do not."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from capture.errors import CaptureError, GuardError
from capture.ir import Fusion, Graph, LiteralType, Range, RegionRef, ScalarType, TensorType
from capture.ir.binding import bind_inputs
from capture.ir.interpreter import run_flat, solve_dim, write_back
from capture.ir.parse import parse_type

aten = torch.ops.aten


def test_a_graph_computes_what_its_ops_do() -> None:
    graph = Graph.parse(
        "graph(%x: f32[N, 4]) where N in [1, 9]\n"
        "  @w: f32[3, 4]\n"
        "  %0: f32[N, 3] = aten.linear(%x, @w)\n"
        "  %1: f32[N, 3] = fusion.pointwise(%0) {\n"
        "    ^(%a: f32[N, 3])\n"
        "    @half: f32[]\n"
        "    %b: f32[N, 3] = aten.mul.Tensor(%a, @half)\n"
        "    %c: f32[N, 3] = aten.relu(%b)\n"
        "    return %c\n"
        "  }\n"
        "  %2: f32[N], %3: i64[N] = aten.max.dim(%1, 1)\n"
        "  %4: f32[2*N + 1] = aten.full([2*N + 1], 0.5)\n"
        "  return %2, %3, %4, None, N + 1\n"
    )
    w, x = torch.randn(3, 4), torch.randn(5, 4)
    graph.bind({"w": w, "half": torch.tensor(0.5)})
    values, indices, full, nothing, size = graph.run(x)
    expected = torch.relu((x @ w.T) * 0.5).max(1)
    torch.testing.assert_close(values, expected.values)
    assert torch.equal(indices, expected.indices)
    assert torch.equal(full, torch.full((11,), 0.5))
    assert (nothing, size) == (None, 6)


def test_fp64_reaches_every_floating_value_and_no_other() -> None:
    graph = Graph.parse(
        "graph(%x: f32[3], %i: i64[3], %z: c64[3])\n"
        "  @w: bf16[3]\n"
        "  %0: f16[3] = aten._to_copy(%x, dtype=torch.float16)\n"
        "  %1: f32[3] = aten.full([3], 0.1, dtype=torch.float32)\n"
        "  %2: f32[3] = aten.index_select(%x, 0, %i)\n"
        "  %3: c64[3] = aten.mul.Tensor(%z, %x)\n"
        "  %4: i32[3] = aten._to_copy(%i, dtype=torch.int32)\n"
        "  return %0, %1, %2, %3, @w, %i, %4\n"
    ).bind({"w": torch.ones(3, dtype=torch.bfloat16)})
    args = (torch.full((3,), 0.1), torch.arange(3), torch.ones(3, dtype=torch.complex64))
    own, exact = graph.run(*args), graph.run(*args, dtype=torch.float64)
    own_dtypes = "float16 float32 float32 complex64 bfloat16 int64 int32".split()
    exact_dtypes = "float64 float64 float64 complex128 float64 int64 int32".split()
    assert [str(t.dtype).removeprefix("torch.") for t in own] == own_dtypes
    assert [str(t.dtype).removeprefix("torch.") for t in exact] == exact_dtypes
    assert exact[1][0].item() == 0.1
    assert exact[0][0].item() == args[0][0].double().item(), "the cast to half is not taken"
    assert args[0].dtype == torch.float32


def test_fp64_takes_inputs_in_any_floating_dtype() -> None:
    graph = Graph.parse("graph(%x: f32[3])\n  %0: f32[3] = aten.exp(%x)\n  return %0\n")
    x = torch.randn(3, dtype=torch.float64)
    assert torch.equal(graph.run(x, dtype=torch.float64), x.exp())
    with pytest.raises(GuardError, match=r"x is f64\[3\], the graph takes f32\[3\]"):
        graph.run(x)
    with pytest.raises(GuardError, match=r"x is i64\[3\]"):
        graph.run(torch.arange(3), dtype=torch.float64)


def test_the_callers_autocast_and_gradients_stay_out() -> None:
    graph = Graph.parse(
        "graph(%x: f32[2, 2])\n  @w: f32[2, 2]\n  %0: f32[2, 2] = aten.linear(%x, @w)\n  return %0\n"
    )
    graph.bind({"w": torch.nn.Parameter(torch.randn(2, 2))})
    with torch.autocast("cpu", torch.bfloat16):
        result = graph.run(torch.randn(2, 2, requires_grad=True))
    assert result.dtype == torch.float32
    assert not result.requires_grad


def inputs(*types: str, **dims: tuple[int, int | None]) -> Graph:
    graph = Graph()
    graph.dims.update({name: Range(*bounds) for name, bounds in dims.items()})
    for name, text in zip("xyz", types, strict=False):
        graph.add_input(name, parse_type(text))
    return graph


@pytest.mark.parametrize(
    ("types", "shapes", "expected"),
    [
        (["f32[N, 3]"], [(5, 3)], {"N": 5}),
        (["f32[2*N, N]"], [(6, 3)], {"N": 3}),
        (["f32[N*M, 2]", "f32[N]"], [(12, 2), (4,)], {"N": 4, "M": 3}),
        (["f32[N + M]", "f32[2*M - 1]"], [(9,), (5,)], {"N": 6, "M": 3}),
        (["f32[N//2]", "f32[N]"], [(3,), (7,)], {"N": 7}),
        (["f32[max(N, 4), N]"], [(4, 2)], {"N": 2}),
        (["f32[N//2]"], [(3,)], {}),
        (["f32[]"], [()], {}),
    ],
)
def test_dims_are_learnt_from_whatever_tells_them(
    types: list[str], shapes: list[tuple[int, ...]], expected: dict[str, int]
) -> None:
    graph = inputs(*types, N=(1, 64), M=(1, None))
    assert bind_inputs(graph, [torch.empty(shape) for shape in shapes]) == expected


@pytest.mark.parametrize(
    ("types", "given", "message"),
    [
        (["f32[N]"] * 2, [torch.ones(3), torch.ones(4)], r"dim 0 of y is 4, not N = 3\n.*3 by dim 0 of x"),
        (["f32[N, N//2]"], [torch.ones(6, 2)], r"dim 1 of x is 2, not N//2 = 3"),
        (["f32[N]"], [torch.ones(65)], r"the size N is 65, outside of its range \[1, 64\]\n.*by dim 0 of x"),
        (["f32[N]"], [torch.ones(0)], r"the size N is 0, outside of its range"),
        (["f32[2*N]"], [torch.ones(7)], r"dim 0 of x is 7, which is not 2\*N for any N"),
        (["f32[N, 3]"], [torch.ones(2, 4)], r"dim 1 of x is 4, not 3"),
        (["f32[N, 3]"], [torch.ones(2)], r"x is f32\[2\], the graph takes f32\[N, 3\]"),
        (["f32[N]"], [torch.ones(2, dtype=torch.int64)], r"x is i64\[2\], the graph takes f32\[N\]"),
        (["f32[N]"], [3.0], r"the input x is a float, the graph takes f32\[N\]"),
        (["f32[N]"], [None], r"the input x is a NoneType"),
        (["int"], [2.5], r"the input x is a float, the graph takes int"),
        (["int(N)"], [128], r"the size N is 128, outside of its range \[1, 64\]\n.*told by x"),
        (["int(N)", "f32[N]"], [3, torch.ones(4)], r"dim 0 of y is 4, not N = 3"),
        (["none"], [0], r"the input x is a int, the graph takes none"),
        (["=True"], [False], r"x is False, the graph was captured for True"),
        (["=1"], [True], r"x is True, the graph was captured for 1"),
        (["=1"], [torch.ones(1)], r"was captured for 1"),
        (['="a"'], ["b"], r"x is 'b', the graph was captured for 'a'"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(types: list[str], given: list[Any], message: str) -> None:
    graph = inputs(*types, N=(1, 64))
    with pytest.raises(GuardError, match=f"(?s){message}"):
        run_flat(graph, given)


def test_literals_and_scalars_that_fit() -> None:
    graph = inputs("=nan", "float", "bool")
    graph.set_results(list(graph.inputs))
    nan = float("nan")
    assert graph.run(nan, 2, True)[1:] == (2, True)


@pytest.mark.parametrize(("args", "count"), [((), 0), ((1, 2, 3), 3)])
def test_the_wrong_number_of_inputs(args: tuple[int, ...], count: int) -> None:
    with pytest.raises(GuardError, match=f"2 inputs are needed, {count} given"):
        inputs("int", "int").run(*args)


def test_keyword_arguments_come_in_any_order() -> None:
    graph = inputs("f32[1]", "f32[2]", "f32[3]")
    graph.set_results(list(graph.inputs))
    x, y, z = (torch.ones(n) for n in (1, 2, 3))
    _, graph.in_spec = pytree.tree_flatten(((x,), {"y": y, "z": z}))
    for result in (graph.run(x, y=y, z=z), graph.run(x, z=z, y=y), graph.run(z=z, x=x, y=y)):
        assert [len(t) for t in result] == [1, 2, 3]
    with pytest.raises(GuardError, match="needed"):
        graph.run(x, y=y, w=z)


def test_results_take_the_captured_structure() -> None:
    graph = inputs("f32[1]")
    graph.set_results([graph.inputs[0], None, 3])
    _, graph.out_spec = pytree.tree_flatten({"a": [0, None], "b": (1,)})
    result = graph.run(torch.ones(1))
    assert list(result) == ["a", "b"]
    assert result["a"][1] is None
    assert result["b"] == (3,)


def test_values_are_let_go_after_their_last_use() -> None:
    graph = Graph.parse(
        "graph(%x: f32[8])\n"
        "  @w: f32[8]\n"
        "  %0: f32[8] = aten.mul.Tensor(%x, @w)\n"
        "  %1: f32[8] = aten.exp(%0)\n"
        "  %2: f32[8], %3: f32[8] = aten.frexp.Tensor(%1)\n"
        "  %4: f32[8] = aten.add.Tensor(%0, %2)\n"
        "  %5: f32[8] = aten.neg(%4)\n"
        "  return %5\n"
    ).bind({"w": torch.ones(8)})
    alive: dict[str, weakref.ref[torch.Tensor]] = {}
    seen: list[list[str]] = []

    def observe(node: Any, args: Any, results: Any) -> None:
        gc.collect()
        seen.append([name for name, ref in alive.items() if ref() is not None])
        for value, result in zip(node.results, results, strict=True):
            alive[f"{node.op.__name__.split('.')[0]}{value.index}"] = weakref.ref(result)

    run_flat(graph, [torch.ones(8)], dtype=torch.float64, observe=observe)
    assert seen == [[], ["mul0"], ["mul0", "exp0"], ["mul0", "frexp0"], ["add0"]]


def test_constants_are_cast_when_they_are_needed_and_then_let_go() -> None:
    """A model need not fit into memory twice, in fp64 too."""
    graph = Graph()
    x = graph.add_input("x", parse_type("f32[4]"))
    for i in range(3):
        x = graph.add_node(aten.add.Tensor, [x, graph.add_constant(f"w{i}", torch.ones(4))]).result
    graph.set_results([x])
    casts: list[weakref.ref[torch.Tensor]] = []

    def observe(node: Any, args: Any, results: Any) -> None:
        gc.collect()
        assert sum(ref() is not None for ref in casts) == 0
        casts.append(weakref.ref(args[1]))

    run_flat(graph, [torch.ones(4)], dtype=torch.float64, observe=observe)
    assert len(casts) == 3


COND = """\
graph(%p: bool[], %x: f32[N]) where N in [1, 9]
  %0: f32[N], %1: f32[2*N] = higher_order.cond(%p, ^0, ^1, [%x]) {
    ^(%a: f32[N])
    @two: f32[]
    %b: f32[N] = aten.mul.Tensor(%a, @two)
    %c: f32[2*N] = aten.full([2*N], 1.0)
    return %b, %c
  } {
    ^(%a: f32[N])
    %b: f32[N] = aten.neg(%a)
    %c: f32[2*N] = aten.zeros([2*N])
    return %b, %c
  }
  return %0, %1
"""


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_both_branches_of_a_cond_run(dtype: torch.dtype | None) -> None:
    graph = Graph.parse(COND).bind({"two": torch.tensor(2.0)})
    x = torch.randn(3)
    for flag, expected, filled in ((True, x * 2, 1.0), (False, -x, 0.0)):
        first, second = graph.run(torch.tensor(flag), x, dtype=dtype)
        torch.testing.assert_close(first, expected.to(dtype or torch.float32))
        assert second.tolist() == [filled] * 6
        assert first.dtype == (dtype or torch.float32)


def test_a_while_loop_runs() -> None:
    graph = Graph.parse(
        "graph(%n: i64[], %x: f32[2])\n"
        "  %0: i64[], %1: f32[2] = higher_order.while_loop(^0, ^1, [%n, %x], []) {\n"
        "    ^(%a: i64[], %b: f32[2])\n    %c: bool[] = aten.gt.Scalar(%a, 0)\n    return %c\n  } {\n"
        "    ^(%a: i64[], %b: f32[2])\n    %c: i64[] = aten.sub.Scalar(%a, 1)\n"
        "    %d: f32[2] = aten.mul.Scalar(%b, 2)\n    return %c, %d\n  }\n"
        "  return %1\n"
    )
    assert graph.run(torch.tensor(3), torch.ones(2)).tolist() == [8.0, 8.0]


def test_sizes_that_data_decide_are_bound_as_they_come() -> None:
    graph = Graph.parse(
        "graph(%x: f32[4])\n"
        "  %0: i64[u0, 1] = aten.nonzero(%x)\n"
        "  %1: i64[] = aten.sum(%0)\n"
        "  %2: int(u1) = aten.item(%1)\n"
        "  %3: f32[u0 + u1] = aten.ones([u0 + u1])\n"
        "  return %3\n"
    )
    assert graph.run(torch.tensor([0.0, 1.0, 0.0, 1.0])).shape == (2 + 4,)


def test_write_backs_give_what_the_graph_says() -> None:
    graph = Graph.parse(
        "graph(%x: f32[2], %y: f32[2])\n  @n: i64[]\n"
        "  %0: i64[] = aten.add.Scalar(@n, 1)\n  return %x, @n\n"
        "  write %x = %y\n  write %y = %x\n  write @n = %0\n"
    ).bind({"n": torch.tensor(4)})
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    first, n = graph.run(x, y)
    assert x.tolist() == [3, 4]
    assert y.tolist() == [1, 2], "a swap needs the old value of each"
    assert graph.constants["n"].tensor is not None
    assert graph.constants["n"].tensor.item() == 5
    assert first.tolist() == [1, 2]
    assert n.item() == 4
    results, written = run_flat(graph, [x, y])
    assert x.tolist() == [3, 4], "run_flat writes nothing back"
    write_back(graph, [x, y], results, written)
    assert x.tolist() == [1, 2]


def test_errors_name_the_op_and_the_users_line() -> None:
    graph = Graph.parse("graph(%x: f32[2])\n  %0: f32[2] = aten.mm(%x, %x)   # fc  m.py:3\n  return %0\n")
    with pytest.raises(CaptureError, match=r"aten.mm failed\n  fc  m.py:3\n  self must be a matrix"):
        graph.run(torch.ones(2))
    graph = Graph.parse(
        "graph(%x: f32[2, 2])\n  %0: f32[2] = aten.max.dim(%x, 0)   # fc  m.py:3\n  return %0\n"
    )
    with pytest.raises(CaptureError, match=r"aten.max.dim returned 2 values, not 1\n  fc  m.py:3"):
        graph.run(torch.ones(2, 2))
    graph = Graph.parse("graph()\n  %0: f32[N] = aten.ones([N])   # fc  m.py:3\n  return %0\n")
    with pytest.raises(CaptureError, match=r"aten.ones failed\n  fc  m.py:3\n  .*N"):
        graph.run()
    graph = Graph.parse("graph()\n  @w: f32[2]\n  return @w\n")
    with pytest.raises(CaptureError, match=r"the constant @w has no value"):
        graph.run()


def test_unbound_constants_of_regions_are_named() -> None:
    with pytest.raises(CaptureError, match="the constant @two has no value"):
        Graph.parse(COND).run(torch.tensor(True), torch.ones(2))


def test_an_observer_sees_each_node_with_what_went_in_and_out() -> None:
    graph = inputs("f32[2]")
    region = graph.new_region()
    region.set_results(
        [region.add_node(aten.neg.default, [region.add_input("", graph.inputs[0].type)]).result]
    )
    fused = graph.add_node(Fusion("some"), graph.inputs, regions=[region])
    graph.set_results([graph.add_node(aten.exp.default, [fused.result]).result])
    rows: list[tuple[str, list[Any], list[Any]]] = []
    run_flat(graph, [torch.ones(2)], observe=lambda n, a, r: rows.append((str(n.op), a, list(r))))
    assert [op for op, _, _ in rows] == ["fusion.some", "aten.exp.default"]
    assert rows[0][2][0] is rows[1][1][0]


@pytest.mark.parametrize(
    ("text", "size", "env", "expected"),
    [
        ("N", 3, {}, {"N": 3}),
        ("N", 3, {"N": 4}, {"N": 4}),
        ("2*N + M", 8, {"M": 2}, {"M": 2, "N": 3}),
        ("2*N", 7, {}, {}),
        ("N*M", 6, {}, {}),
        ("N*M", 0, {"M": 0}, {"M": 0}),
        ("4", 4, {}, {}),
    ],
)
def test_solving_one_size(text: str, size: int, env: dict[str, int], expected: dict[str, int]) -> None:
    dim = parse_type(f"int({text})")
    assert isinstance(dim, ScalarType)
    assert dim.expr is not None
    solve_dim(dim.expr, size, env)
    assert env == expected


def test_no_dtype_of_an_operand_is_an_input() -> None:
    """A dtype among the inputs was baked in, and reaches the op; in fp64 it does so as fp64."""
    graph = inputs("f32[2]")
    graph.add_input("d", LiteralType(torch.float16))
    node = graph.add_node(aten._to_copy.default, [graph.inputs[0]], {"dtype": graph.inputs[1]})
    graph.set_results([node.result])
    assert graph.run(torch.ones(2), torch.float16).dtype == torch.float16
    assert graph.run(torch.ones(2), torch.float16, dtype=torch.float64).dtype == torch.float64
    assert isinstance(node.result.type, TensorType)
    assert RegionRef(0) == RegionRef(0)
