"""Names, sizes and literals in generated source: awkward ones work, hostile text stays text."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capture import Graph
from capture.ir import LiteralType, TensorType
from codegen import python
from runtime.executables import load_module
from tests.codegen.python.test_source import body, called
from tests.handmade import inputs_of, parse, run

AWKWARD = [
    "w", "m", "torch", "F", "aten", "lambda", "class", "None", "float", "max", "min", "load", "forward",
    "state", "arenas", "Arena", "conv", "linear", "v0", "v1", "v0_0", "N", "self", "a b", "1st", "x²", "é",
    "", 'x"]\nimport os#', "__debug__", "complex", "list", "true_branch",
]  # fmt: skip


def test_awkward_names_of_inputs_weights_and_sizes() -> None:
    graph = Graph("awkward")
    graph.dims["N"] = Graph.parse("graph(%x: f32[N]) where N in [1, 9]\n  return %x\n").dims["N"]
    n = next(
        iter(Graph.parse("graph(%x: f32[N]) where N in [1, 9]\n  return %x\n").inputs)
    ).tensor_type.shape[0]
    total = None
    add, tensors = torch.ops.aten.add.Tensor, []
    for i, name in enumerate(AWKWARD):
        value = graph.add_input(name, TensorType(torch.float64, (n, 2)))
        tensors.append(torch.full((3, 2), 2.0**i).double())
        total = value if total is None else graph.add_node(add, [total, value]).result
    for i, name in enumerate(AWKWARD):
        constant = graph.add_constant(name, torch.full((2,), -(2.0**i)).double())
        total = graph.add_node(add, [total, constant]).result
    clamped = graph.add_node(torch.ops.aten.clamp.default, [total, -math.inf, math.inf]).result
    graph.set_results([graph.add_node(torch.ops.aten.mul.Tensor, [clamped, n]).result])
    for passes in ([], ["fuse"], ["fuse", "memory"]):
        (got,) = called(run(graph, passes), *tensors)
        torch.testing.assert_close(got, torch.zeros(3, 2).double())


def test_names_of_weights_that_look_alike_stay_apart() -> None:
    """Both are `a_b` in Python."""
    graph = parse(
        """
        graph(%x: f32[2, 3])
          @a.b: f32[3]
          @a_b: f32[3]
          @a.b.linear: f32[3]
          @c: f32[3, 3]
          @c.linear: f32[3]
          @c_linear: f32[3]
          %0: f32[2, 3] = aten.mul.Tensor(%x, @a.b)
          %1: f32[2, 3] = aten.add.Tensor(%0, @a_b)
          %2: f32[2, 3] = aten.add.Tensor(%1, @c.linear)
          %3: f32[2, 3] = aten.linear(%2, @c, @c_linear)
          %4: f32[2, 3] = aten.add.Tensor(%3, @a.b.linear)
          return %4
        """
    )
    (x,) = inputs_of(graph)
    torch.testing.assert_close(called(run(graph, ["lower"]), x), [graph.run(x)])


def test_sizes_named_like_inputs_and_functions() -> None:
    graph = parse(
        """
        graph(%n: f32[k, 2], %k: f32[n], %w: f32[w]) where k in [1, 8], n in [1, 8], w in [1, 8]
          %0: f32[2*k] = aten.reshape(%n, [2*k])
          %1: f32[n] = aten.mul.Tensor(%k, max(k, n + 1, min(w, 3)))
          %2: f32[w] = aten.add.Tensor(%w, inf)
          return %0, %1, %2, w
        """
    )
    a, b, c = torch.randn(3, 2), torch.randn(5), torch.randn(4)
    got = called(graph, a, b, c)
    torch.testing.assert_close(got, [a.reshape(6), b * 6, c + math.inf, 4])


def test_sizes_that_must_be_solved_for() -> None:
    graph = parse(
        """
        graph(%x: f32[2*N - 1, K + N], %y: f32[M + K, 3]) where N in [1, 9], K in [1, 9], M in [1, 9]
          %0: f32[N, M, K] = aten.full([N, M, K], 1.0)
          return %0, N*K % 5, (N + 7)//M
        """
    )
    assert body(graph)[:3] == ["N = (x.shape[0] + 1) // 2", "K = x.shape[1] - N", "M = y.shape[0] - K"]
    for n, k, m in ((1, 1, 1), (4, 2, 7), (9, 9, 3)):
        full, a, b = called(graph, torch.zeros(2 * n - 1, k + n), torch.zeros(m + k, 3))
        assert list(full.shape) == [n, m, k]
        assert (a, b) == (n * k % 5, (n + 7) // m)


@settings(max_examples=60)
@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_no_text_of_the_graph_becomes_code(name: str, title: str, literal: str) -> None:
    graph = Graph(title)
    graph.frontend = title
    x = graph.add_input(name, TensorType(torch.float32, (2,)))
    graph.add_input(name + "_", LiteralType(literal))
    constant = graph.add_constant(name, torch.ones(2))
    graph.set_results([graph.add_node(torch.ops.aten.add.Tensor, [x, constant]).result, literal])
    source = python.emit(graph, title=title)
    module = load_module(source, "test")
    module.load({name: torch.ones(2)})
    assert module.forward(torch.ones(2), literal)[1] == literal
    assert len(source.splitlines()) == source.count("\n")


def test_hostile_text_stays_text() -> None:
    evil = '"""\nraise SystemExit\n"""'
    graph = parse(
        "graph(%x: f32[2])\n  @w: f32[2]\n  %0: f32[2] = aten.add.Tensor(%x, @w)  # a.py:1\n  return %0\n"
    )
    graph.name = graph.frontend = evil
    graph.inputs[0].name = evil
    renamed = graph.add_constant(evil + '"]', torch.ones(2))
    graph.replace_uses(graph.constants["w"], renamed)
    graph.add_input("mode", LiteralType(evil))
    graph.set_results([*graph.results, evil, "\\", '"'])
    assert called(graph, torch.ones(2), evil)[1:] == [evil, "\\", '"']


# -- literals ---------------------------------------------------------------------------------------------


def test_floats_that_have_no_literal() -> None:
    graph = parse(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.clamp(%x, -inf, inf)
          %1: f32[4] = aten.add.Tensor(%0, nan)
          %2: f32[4] = aten.mul.Tensor(%x, -0.0)
          %3: c64[4] = aten.mul.Tensor(%x, complex(nan, -inf))
          %4: c64[4] = aten.mul.Tensor(%x, complex(-0.0, 1.5))
          return %1, %2, %3, %4, inf, -inf, nan, -0.0
        """
    )
    x = torch.ones(4)
    got = called(graph, x)
    want = list(graph.run(x))
    torch.testing.assert_close(got[:4], want[:4], equal_nan=True, rtol=0, atol=0)
    assert torch.signbit(got[1]).all()
    assert got[4:6] == [math.inf, -math.inf]
    assert math.isnan(got[6])
    assert math.copysign(1, got[7]) == -1


def test_dtypes_devices_formats_and_words_as_operands() -> None:
    graph = parse(
        """
        graph(%x: f32[2, 3, 4, 4])
          @w: f32[3, 3, 3, 3]
          %0: f32[2, 3, 4, 4] channels_last = aten.clone(%x, memory_format=torch.channels_last)
          %1: f64[2, 3, 4, 4] channels_last = aten._to_copy(%0, dtype=torch.float64, device=device("cpu"))
          %2: f32[2, 3, 4, 4] = aten.conv2d.padding(%x, @w, None, [1, 1], "same")
          %3: i64[3] = aten.arange(3, device=device("cpu"), pin_memory=False)
          %4: f32[2, 3] = aten.full([2, 3], 1.5, dtype=torch.float32, layout=torch.strided)
          %5: f64[2, 3, 4, 4] = aten.div.Tensor_mode(%1, 0.3, rounding_mode="floor")
          return %2, %3, %4, %5
        """
    )
    (x,) = inputs_of(graph)
    torch.testing.assert_close(called(graph, x), list(graph.run(x)))


def test_results_that_are_no_values() -> None:
    graph = parse(
        """
        graph(%x: f32[N, 2]) where N in [1, 8]
          @w: f32[2]
          return %x, 3, N + 1, None, "a", @w, True
        """
    )
    x = torch.ones(4, 2)
    got = called(graph, x)
    assert got[0] is x
    assert got[1:5] == [3, 5, None, "a"]
    assert got[6] is True


# -- operators with several results, none, or control flow ------------------------------------------------
