"""Code that updates in place computes what its graph means."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

import runtime
from capture import Graph
from capture.ir import TensorType, Value
from passes.updates import update_form, updated_operand
from tests.passes.golden import parse
from tests.passes.reinplaced import same_as_the_graph

aten = torch.ops.aten
TYPE = TensorType(torch.float32, (4, 4))


@st.composite
def stateful(draw: st.DrawFn) -> Graph:
    """Two states and an input; views, reads and updates of any of the values; any of them written back."""
    graph = Graph("stateful")
    values: list[Value] = [graph.add_input("x", TYPE)]
    for i, name in enumerate("ab"):
        values.append(graph.add_constant(name, torch.arange(16.0).reshape(4, 4) / 16 - i))

    def value() -> Value:
        return draw(st.sampled_from([*values, *values[-3:], *values[1:3]]))

    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["transpose", "sin", "add", "scatter", "select", "put", "copy", "flip"]))
        if kind == "transpose":
            node = graph.add_node(aten.transpose.int, [value(), 0, 1])
        elif kind == "sin":
            node = graph.add_node(aten.sin.default, [value()])
        elif kind == "add":
            node = graph.add_node(aten.add.Tensor, [value(), value()])
        elif kind == "scatter":
            part = graph.add_node(aten.slice.Tensor, [value(), 0, 0, 2]).result
            node = graph.add_node(aten.slice_scatter.default, [value(), part, 0, 1, 3])
        elif kind == "select":
            row = graph.add_node(aten.select.int, [value(), 1, 1]).result
            node = graph.add_node(aten.select_scatter.default, [value(), row, 0, 2])
        elif kind == "put":
            index = graph.add_constant("index", torch.tensor([2, 0]))
            rows = graph.add_node(aten.slice.Tensor, [value(), 0, 1, 3]).result
            node = graph.add_node(aten.index_copy.default, [value(), 0, index, rows])
        elif kind == "copy":
            node = graph.add_node(aten.copy.default, [value(), value()])
        else:
            node = graph.add_node(aten.flip.default, [value(), [0]])
        values.append(node.result)
    for target in values[: draw(st.integers(1, 3))]:
        graph.set_writeback(target, value())
    graph.set_results([draw(st.sampled_from(values)) for _ in range(draw(st.integers(0, 2)))])
    return graph


@given(stateful())
def test_any_mixture_of_reads_and_updates_keeps_its_meaning(graph: Graph) -> None:
    for constant in graph.constants.values():  # each example starts from memory of its own
        constant.tensor = constant.tensor.clone() if constant.tensor is not None else None
    same_as_the_graph(graph, [torch.linspace(-1, 1, 16).reshape(4, 4)])


@given(stateful(), st.permutations(["reinplace", "eliminate-common-subexpressions", "fuse", "schedule"]))
def test_any_order_of_passes_keeps_its_meaning(graph: Graph, passes: list[str]) -> None:
    for constant in graph.constants.values():
        constant.tensor = constant.tensor.clone() if constant.tensor is not None else None
    same_as_the_graph(graph, [torch.linspace(-1, 1, 16).reshape(4, 4)], passes=[*passes, "memory"])


# -- a whole model ---------------------------------------------------------------------------------------


def tokens(steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randint(100, (1, 1), generator=generator), torch.tensor([i])) for i in range(steps)]


def test_a_decoder_with_a_cache_step_by_step(tmp_path: Path) -> None:
    """Compiled, and once more saved and loaded, it gives what eager gives at each step."""
    models = importlib.import_module("models.gpt2")
    eager, model = models.small_with_cache(), models.small_with_cache()
    f = runtime.compile(model, tokens(1)[0], backend="aten")
    assert [n for n in f.graph.nodes if updated_operand(n) is not None] == list(f.graph.find(aten.index_put))
    assert f.source is not None
    assert f.source.count("index_put_") == 4
    assert ".copy_(" not in f.source
    f.save(tmp_path / "saved")
    loaded = runtime.load(tmp_path / "saved")
    for step in tokens(6):
        wanted = eager(*step)
        torch.testing.assert_close(f(*step), wanted)
        torch.testing.assert_close(loaded(*step), wanted)
    torch.testing.assert_close(dict(model.named_buffers()), dict(eager.named_buffers()))


def test_operators_without_an_in_place_form_are_told_apart() -> None:
    graph = parse("""
        graph(%x: f32[4], %y: f32[4])
          %0: f32[4] = aten.maximum(%x, %y)
          %1: f32[4] = aten.relu(%x)
          %2: bool[4] = aten.gt.Tensor(%x, %y)
          return %0, %1, %2
    """)
    assert [update_form(node) is not None for node in graph.nodes] == [False, True, False]
