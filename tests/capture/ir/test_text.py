"""A graph's text: what it looks like, and that it reads back to the same text, whatever the graph holds."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.ir import (
    Constant,
    Fusion,
    Graph,
    Impl,
    LiteralType,
    Origin,
    Range,
    RegionRef,
    ScalarType,
    TensorType,
    Value,
    symbol,
)
from capture.ir.dims import parse_dim
from capture.ir.parse import parse_type
from capture.ir.text import format_literal, format_node, names
from capture.ir.types import DTYPES, MEMORY_FORMATS

aten = torch.ops.aten
F32 = TensorType(torch.float32, (2,))

GOLDEN = """\
graph(%x: f32[N, 3, 224, 224], %"a b": i64[] @cuda:1, %flag: =True) where N in [1, 64], M in [2, inf]
  @conv1.weight: f32[64, 3, 7, 7] channels_last
  @"0 bias": bf16[64]
  %0: f32[N, 64, 112, 112] = aten.conv2d(%x, @conv1.weight, None, [2, 2], [3, 3])                 # conv1  models/resnet.py:98
  %1: f32[N, 64, 112, 112] = fusion.pointwise(%0) via triton.pointwise(block=[128, 1], fast=True) {  # relu, add  a.py:1,2, "b c.py":3
    ^(%a: f32[N, 64, 112, 112])
    @scale: f32[]
    %b: f32[N, 64, 112, 112] = aten.relu(%a)
    %c: f32[N, 64, 112, 112] = fusion.inner(%b) {
      ^(%a: f32[N, 64, 112, 112])
      return %a
    }
    return %c
  }
  %2: f32[N, 64], %3: i64[N, 64] = aten.max.dim(%1, -1)
  aten._assert_async.msg(%3, "not \\"this\\"  # nor that")
  %4: int(u0) = aten.item(%3)
  %5: f32[N//2, M*max(4, N), N % 3, u0] = aten.full([N//2, M*max(4, N), N % 3, u0], -0.0, dtype=torch.float32)
  return %5, None, 3, [N, 1], %4
  write %x = %5
  write @conv1.weight = %0
"""  # noqa: E501


def test_the_whole_grammar_round_trips() -> None:
    graph = Graph.parse(GOLDEN)
    assert str(graph) == GOLDEN
    assert str(graph.clone()) == GOLDEN
    conv, fused, largest, check, item, full = graph.nodes
    assert conv.origin == Origin((), ("conv1",), (("models/resnet.py", 98),))
    assert fused.impl == Impl("triton.pointwise", {"block": [128, 1], "fast": True})
    assert fused.origin.locations == (("a.py", 1), ("a.py", 2), ("b c.py", 3))
    assert [len(n.results) for n in graph.nodes] == [1, 1, 2, 0, 1, 1]
    assert fused.region is not None
    assert list(fused.region.constants) == ["scale"]
    assert fused.region.dims is graph.dims
    assert check.operands[1] == 'not "this"  # nor that'
    assert item.result.type == ScalarType("int", symbol("u0"))
    assert math.copysign(1, full.operands[1]) == -1
    assert graph.dims == {"N": Range(1, 64), "M": Range(2, None)}
    assert graph.inputs[2].type == LiteralType(True)
    assert graph.writebacks == {graph.inputs[0]: full.result, graph.constants["conv1.weight"]: conv.result}
    assert largest.results[1].num_uses == 2


@pytest.mark.parametrize(
    "text",
    [
        "graph()\n  return\n",
        "graph(%x: f32[2])\n  return %x\n",
        "graph(%x: f32[2])\n  return %x, %x, None, True, 1, -1.5, N\n",
        'graph()\n  @"": f32[0]\n  return @""\n',
        'graph(%"%0": f32[], %0: f32[])\n  %1: f32[] = aten.add.Tensor(%"%0", %0)\n  return %1\n',
        "graph(%p: bool[1], %x: f32[2])\n"
        "  %0: f32[2] = higher_order.cond(%p, ^0, ^1, [%x]) {\n"
        "    ^(%a: f32[2])\n    return %a\n  } {\n"
        "    ^(%a: f32[2])\n    %b: f32[2] = aten.neg(%a)\n    return %b\n  }\n"
        "  return %0\n",
        "graph(%x: f32[2])\n  %0: f32[2], %1: f32[2] = aten.split.Tensor(%x, 1)\n  return %1\n",
        "graph(%x: f32[2])\n  return %x\n  write %x = %x\n",
        "graph(%n: int, %f: float, %b: bool, %z: none, %d: =torch.bfloat16)\n  return %n\n",
    ],
)
def test_odd_graphs_round_trip(text: str) -> None:
    assert str(Graph.parse(text)) == text
    assert str(Graph.parse("\n" + text.replace("\n", "\n\n"))) == text, "blank lines do not matter"


class _Enum(IntEnum):
    TWO = 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"), (True, "True"), (0, "0"), (-7, "-7"), (2**80, str(2**80)),
        (1.0, "1.0"), (-0.0, "-0.0"), (1e-07, "1e-07"), (1e16, "1e+16"),
        (math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan"),
        (complex(1, -0.0), "complex(1.0, -0.0)"), (complex(math.nan, math.inf), "complex(nan, inf)"),
        ("", '""'), ('a"b', '"a\\"b"'), ("a  # b", '"a  # b"'), ("\n\t\\", '"\\n\\t\\\\"'),
        ("ä\u2028", '"\\u00e4\\u2028"'), ("), [%0", '"), [%0"'),
        (torch.float16, "torch.float16"), (torch.channels_last, "torch.channels_last"),
        (torch.strided, "torch.strided"), (torch.device("cuda:0"), 'device("cuda:0")'),
        (torch.device("cpu"), 'device("cpu")'), (RegionRef(3), "^3"),
        (symbol("N") + 1, "N + 1"), (sympy.Integer(4), "4"),
        ((), "[]"), ([None, [1, ()]], "[None, [1, []]]"), (torch.Size([2, 3]), "[2, 3]"),
        (np.float64(0.5), "0.5"), (_Enum.TWO, "2"),
    ],
)  # fmt: skip
def test_each_kind_of_literal(value: Any, text: str) -> None:
    assert format_literal(value) == text
    graph = Graph.parse(f"graph(%x: ={text})\n  return {text}\n")
    assert str(graph) == f"graph(%x: ={text})\n  return {text}\n"
    assert type(graph.results[0]) in (type(value), list, int, float)


def test_what_a_graph_cannot_hold_is_refused() -> None:
    for value in (object(), {1: 2}, torch.zeros(2), b"bytes", torch.Generator()):
        with pytest.raises(TypeError, match="cannot hold the literal"):
            format_literal(value)


def test_every_dtype_and_memory_format_round_trips() -> None:
    for name, dtype in DTYPES.items():
        for format_ in MEMORY_FORMATS:
            type_ = TensorType(dtype, (2, symbol("N")), format_, torch.device("meta"))
            assert str(type_).startswith(f"{name}[2, N]")
            assert parse_type(str(type_)) == type_
    assert len(set(DTYPES.values())) == len(DTYPES)


def test_numbers_step_over_the_names_of_inputs() -> None:
    graph = Graph()
    x = graph.add_input("1", F32)
    graph.add_input("00", F32)
    graph.set_results(
        [graph.add_node(aten.relu.default, [graph.add_node(aten.relu.default, [x]).result]).result]
    )
    assert [names(graph)[n.result] for n in graph.nodes] == ["%0", "%2"]
    assert str(Graph.parse(str(graph))) == str(graph)


def test_regions_count_in_letters() -> None:
    graph = Graph()
    x = graph.add_input("x", F32)
    region = graph.new_region()
    value = region.add_input("anything", F32)
    for _ in range(30):
        value = region.add_node(aten.relu.default, [value]).result
    region.set_results([value])
    graph.set_results([graph.add_node(Fusion("chain"), [x], regions=[region]).result])
    assert "return %ae\n" in str(graph)
    assert str(Graph.parse(str(graph))) == str(graph)


def test_a_value_from_elsewhere_still_prints() -> None:
    """Errors about broken graphs show them, so printing must not fail where verifying does."""
    stranger = Value(F32, "stranger")
    graph = Graph()
    node = graph.add_node(aten.relu.default, [stranger], types=[F32])
    graph.set_results([stranger])
    graph.set_writeback(stranger, node.result)
    assert "aten.relu(%?stranger)" in str(graph)
    assert format_node(node, {}) == ["%?: f32[2] = aten.relu(%?stranger)"]


words = st.text(max_size=6) | st.sampled_from(
    ["x", "a.b-c", "0", "%0", "a, b", "  # x", "-", 'q"', "\\", "é", "\n"]
)
floats = st.floats(allow_nan=True)
sizes = st.sampled_from(
    ["N", "N + 1", "2*N*(M + 1)", "(N + 1)//2", "N % 4", "max(2, N)", "min(M, N) - 1"]
).map(parse_dim)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), floats, words, sizes,
    st.builds(complex, floats, floats),
    st.sampled_from([*DTYPES.values(), torch.contiguous_format, torch.sparse_coo, torch.device("meta")]),
)  # fmt: skip
shapes = st.lists(st.integers(0, 9) | sizes, max_size=3).map(tuple)
tensor_types = st.builds(
    TensorType, st.sampled_from(list(DTYPES.values())), shapes, st.sampled_from(MEMORY_FORMATS),
    st.sampled_from([torch.device("cpu"), torch.device("cuda", 3), torch.device("meta")]),
)  # fmt: skip
value_types = st.one_of(
    tensor_types, st.builds(ScalarType, st.sampled_from(["int", "float", "bool", "none"])),
    st.builds(ScalarType, st.just("int"), sizes), st.builds(LiteralType, leaves),
)  # fmt: skip
origins = st.builds(
    Origin, st.just(()), st.lists(words, max_size=3).map(tuple),
    st.lists(st.tuples(words, st.integers(0, 9999)), max_size=3).map(tuple),
)  # fmt: skip


def operands(values: list[Value]) -> st.SearchStrategy[Any]:
    leaf = leaves | st.sampled_from(values) if values else leaves
    return st.recursive(leaf, lambda inner: st.lists(inner, max_size=3), max_leaves=5)


impls = st.builds(Impl, st.just("mkldnn.linear"), st.dictionaries(st.just("option"), operands([])))


@st.composite
def graphs(draw: st.DrawFn, depth: int = 0) -> Graph:
    """Graphs that mean nothing, of everything that text has to carry."""
    graph = Graph()
    if depth == 0:
        graph.dims.update({"N": Range(0, 7), "M": Range(2, None)})
    for name in draw(st.lists(words, max_size=3, unique=True)):
        graph.add_input(name, draw(value_types))
    for name in draw(st.lists(words, max_size=2, unique=True)):
        graph.add_constant(name, draw(tensor_types))
    values: list[Value] = [*graph.inputs, *graph.constants.values()]
    for _ in range(draw(st.integers(0, 3))):
        regions = (
            draw(st.lists(graphs(depth + 1), min_size=1, max_size=2))
            if depth < 2 and draw(st.booleans())
            else []
        )
        node = graph.add_node(
            Fusion("some") if regions else aten.relu.default,
            draw(st.lists(operands(values), min_size=1, max_size=1 if not regions else 3)),
            draw(st.dictionaries(st.sampled_from(["a", "b_2"]), operands(values))) if regions else None,
            types=draw(st.lists(value_types, max_size=2)),
            origin=draw(origins),
            regions=regions,
            impl=draw(
                st.none()
                | st.builds(Impl, st.just("mkl.linear"), st.dictionaries(st.just("o"), operands([])))
            ),
        )
        values += node.results
    graph.set_results(draw(st.lists(st.sampled_from(values) | leaves if values else leaves, max_size=3)))
    if depth == 0 and graph.inputs and draw(st.booleans()):
        graph.set_writeback(draw(st.sampled_from(graph.inputs)), draw(st.sampled_from(values)))
    return graph


@given(graphs())
@settings(max_examples=60)
def test_any_graph_round_trips(graph: Graph) -> None:
    text = str(graph)
    read = Graph.parse(text)
    assert str(read) == text
    assert [v.type for v in read.inputs if not isinstance(v.type, LiteralType)] == [
        v.type for v in graph.inputs if not isinstance(v.type, LiteralType)
    ]
    assert str(graph.clone()) == text


@given(origins)
@settings(max_examples=100)
def test_origins_round_trip(origin: Origin) -> None:
    text = str(origin)
    read = Origin.parse(text)
    assert str(read) == text
    assert read.modules == origin.modules
    assert set(read.locations) == set(origin.locations)


def test_text_can_always_be_encoded() -> None:
    """File names may hold bytes that are no UTF-8, which Python turns into lone surrogates."""
    graph = Graph()
    x = graph.add_input("\udc80", F32)
    node = graph.add_node(aten.relu.default, [x], origin=Origin((), ("\udc80",), (("\udc81.py", 3),)))
    graph.set_results([node.result])
    assert str(Graph.parse(str(graph).encode().decode())) == str(graph)


def test_constants_print_without_their_values() -> None:
    graph = Graph()
    graph.add_constant("w", torch.randn(2, 2))
    text = str(graph)
    assert text == "graph()\n  @w: f32[2, 2]\n  return\n"
    read = Graph.parse(text).constants["w"]
    assert isinstance(read, Constant)
    assert read.tensor is None
