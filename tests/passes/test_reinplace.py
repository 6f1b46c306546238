"""Updates of what is written back become real writes, and only where nobody could tell."""

from __future__ import annotations

import pytest
import torch

from capture import Graph
from capture.ir import Fusion
from codegen import python
from passes import optimize
from passes.memory import plan
from passes.reinplace import sound_updates
from passes.updates import updated_operand
from tests.passes.golden import check, parse
from tests.passes.reinplaced import PLANNED, same_as_the_graph

aten = torch.ops.aten


def updates(graph: Graph) -> list[str]:
    """Names of the operators that write in place, once the pass has run."""
    after = optimize(graph, passes=["reinplace"], verify=True)
    assert after.history[-1].changed == any(updated_operand(n) is not None for n in after.nodes)
    return [str(n.op).split(".")[1] for n in after.nodes if updated_operand(n) is not None]


# -- golden ----------------------------------------------------------------------------------------------

CACHE = """
    graph(%x: f32[2, 1], %i: i64[1])
      @cache: f32[2, 8]
      %0: f32[2, 8] = aten.index_put(@cache, [None, %i], %x)
      %1: f32[2] = aten.sum.dim_IntList(%0, [1])
      return %1
      write @cache = %0
"""


def test_a_cache_is_updated_in_place() -> None:
    graph = parse(CACHE)
    after = check(
        graph,
        "reinplace",
        """
        graph(%x: f32[2, 1], %i: i64[1])
          @cache: f32[2, 8]
          %0: f32[2, 8] = aten.index_put(@cache, [None, %i], %x) via aten.in_place(operand=0)
          %1: f32[2] = aten.sum.dim_IntList(%0, [1])
          return %1
          write @cache = %0
        """,
        runs=False,
    )
    assert after.history[-1].stats == {"updates": 1, "not_copied_bytes": 64}
    assert plan(graph).naive_bytes == 64
    assert plan(after).naive_bytes == 0
    source = python.emit(after)
    assert "aten.index_put_.default(w.cache" in source
    assert "copy_" not in source
    assert str(Graph.parse(str(after))) == str(after)


def test_updates_in_a_row_and_of_parts() -> None:
    graph = parse("""
        graph(%x: f32[2, 8], %y: f32[8])
          @cache: f32[4, 8]
          %0: f32[4, 8] = aten.slice_scatter(@cache, %x, 0, 1, 3)
          %1: f32[2, 8] = aten.slice.Tensor(%0, 0, 1, 3)
          %2: f32[2, 8] = aten.exp(%1)
          %3: f32[4, 8] = aten.select_scatter(%0, %y, 0, -1)
          return %2
          write @cache = %3
    """)
    assert updates(graph) == ["slice_scatter", "select_scatter"]
    source = python.emit(optimize(graph, passes=PLANNED))
    assert "aten.slice.Tensor(w.cache, 0, 1, 3).copy_(x)" in source
    assert "v3 = v0" in source
    same_as_the_graph(graph, [torch.randn(2, 8), torch.randn(8)])


def test_a_counter_and_an_input_are_updated_in_place() -> None:
    graph = parse("""
        graph(%x: f32[4], %state: f32[4])
          @count: i64[]
          %0: i64[] = aten.add.Tensor(@count, 1)
          %1: f32[4] = aten.mul.Tensor(%state, %x)
          %2: f32[4] = aten.add.Tensor(%1, %0)
          return %2
          write @count = %0
          write %state = %1
    """)
    assert updates(graph) == ["add", "mul"]
    same_as_the_graph(graph, [torch.randn(4), torch.randn(4)])


FUSED = """
    graph(%x: f32[4, 8], %y: f32[4, 8])
      @mean: f32[4, 8]
      %0: f32[4, 8] = aten.mul.Tensor(@mean, 0.75)
      %1: f32[4, 8] = aten.add.Tensor(%0, %x)
      %2: f32[4, 8] = aten.sub.Tensor(%y, %1)
      %3: f32[4] = aten.sum.dim_IntList(%2, [1])
      return %3
      write @mean = %1
"""


def test_a_fusion_that_updates_is_written_in_place() -> None:
    graph = optimize(parse(FUSED), passes=["fuse"])
    assert [n.op.kind for n in graph.nodes if isinstance(n.op, Fusion)] == ["pointwise"]
    assert plan(graph).naive_bytes == 2 * 128
    after = optimize(graph, passes=["reinplace"], verify=True)
    assert after.history[-1].stats == {"updates": 1, "not_copied_bytes": 128}
    assert plan(after).naive_bytes == 128
    assert str(Graph.parse(str(after))) == str(after)
    source = python.emit(after)
    assert source.count("out=w.mean") == 2
    assert "copy_" not in source
    same_as_the_graph(parse(FUSED), [torch.randn(4, 8), torch.randn(4, 8)], passes=["fuse", *PLANNED])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("aten.add.Tensor(%0, %x)", "aten.add.Tensor(%0, @mean)"),  # read again after the first write
        ("aten.add.Tensor(%0, %x)", "aten.sub.Tensor(@mean, %0)"),
        ("aten.sub.Tensor(%y, %1)", "aten.sub.Tensor(@mean, %1)"),  # the old content is read later
    ],
)
def test_a_fusion_that_stays_a_copy(old: str, new: str) -> None:
    graph = parse(FUSED.replace(old, new))
    assert updates(optimize(graph, passes=["fuse"])) == []
    same_as_the_graph(graph, [torch.randn(4, 8), torch.randn(4, 8)], passes=["fuse", *PLANNED])


def test_a_fusion_does_not_write_into_an_input_whose_strides_a_caller_may_change() -> None:
    graph = parse("""
        graph(%x: f32[4, 8], %mean: f32[4, 8])
          %0: f32[4, 8] = aten.mul.Tensor(%mean, %x)
          %1: f32[4, 8] = aten.gelu(%0)
          return %x
          write %mean = %1
    """)
    assert updates(graph) == ["mul", "gelu"]
    assert updates(optimize(graph, passes=["fuse"])) == []
    same_as_the_graph(graph, [torch.randn(4, 8), torch.randn(4, 8)], passes=["fuse", *PLANNED])


KEPT = {
    "old content read later": """
          %0: f32[4, 8] = aten.slice_scatter(@cache, %x, 0, 1, 3)
          %1: f32[4, 8] = aten.exp(@cache)
          return %1
          write @cache = %0
    """,
    "a view of the old content read later": """
          %0: f32[4, 8] = aten.permute(@cache, [0, 1])
          %1: f32[4, 8] = aten.slice_scatter(@cache, %x, 0, 1, 3)
          %2: f32[4, 8] = aten.exp(%0)
          return %2
          write @cache = %1
    """,
    "old content returned": """
          %0: f32[4, 8] = aten.slice_scatter(@cache, %x, 0, 1, 3)
          return @cache
          write @cache = %0
    """,
    "new content returned": """
          %0: f32[4, 8] = aten.slice_scatter(@cache, %x, 0, 1, 3)
          return %0
          write @cache = %0
    """,
    "a view of the new content returned": """
          %0: f32[4, 8] = aten.slice_scatter(@cache, %x, 0, 1, 3)
          %1: f32[8] = aten.select.int(%0, 0, 0)
          return %1
          write @cache = %0
    """,
    "the update reads what it overwrites": """
          %0: f32[2, 8] = aten.slice.Tensor(@cache, 0, 0, 2)
          %1: f32[4, 8] = aten.slice_scatter(@cache, %0, 0, 1, 3)
          return %x
          write @cache = %1
    """,
    "an intermediate state read later": """
          %0: f32[4, 8] = aten.slice_scatter(@cache, %x, 0, 1, 3)
          %1: f32[4, 8] = aten.slice_scatter(%0, %x, 0, 0, 2)
          %2: f32[4, 8] = aten.exp(%0)
          return %2
          write @cache = %1
    """,
    "written to two places": """
          %0: f32[4, 8] = aten.slice_scatter(@cache, %x, 0, 1, 3)
          return %x
          write @cache = %0
          write @other = %0
    """,
    "swapped": """
          %0: f32[4, 8] = aten.slice_scatter(@cache, %x, 0, 1, 3)
          return %x
          write @other = @cache
          write @cache = %0
    """,
    "an update of something else": """
          %0: f32[4, 8] = aten.slice_scatter(@other, %x, 0, 1, 3)
          return %x
          write @cache = %0
    """,
    "no update": """
          %0: f32[4, 8] = aten.cumsum(@cache, 0)
          return %x
          write @cache = %0
    """,
    "random": """
          %0: f32[4, 8] = aten.dropout(@cache, 0.5, True)
          return %x
          write @cache = %0
    """,
}


@pytest.mark.parametrize("name", KEPT)
def test_what_stays_a_copy(name: str) -> None:
    graph = parse(f"graph(%x: f32[2, 8])\n  @cache: f32[4, 8]\n  @other: f32[4, 8]\n{KEPT[name]}")
    assert updates(graph) == []
    if name != "random":
        same_as_the_graph(graph, [torch.randn(2, 8)])


def test_targets_that_are_unbound_strided_otherwise_or_shared_stay_copies() -> None:
    assert updates(parse(CACHE)) == ["index_put"]
    assert updates(Graph.parse(str(parse(CACHE)))) == []
    assert updates(parse(CACHE, cache=torch.zeros(2, 16)[:, ::2])) == []
    text = CACHE.replace("@cache: f32[2, 8]\n", "@cache: f32[2, 8]\n      @other: f32[8]\n")
    memory = torch.zeros(2, 8)
    assert updates(parse(text, cache=memory, other=memory[0])) == []
    assert updates(parse(text, cache=memory, other=torch.zeros(8))) == ["index_put"]


def test_an_input_whose_strides_matter_stays_a_copy() -> None:
    text = """
        graph(%state: f32[4, 8], %x: f32[2, 8])
          %0: f32[4, 8] = aten.slice_scatter(%state, %x, 0, 1, 3)
          %1: f32[32] = aten.view(%0, [32])
          %2: f32[32] = aten.exp(%1)
          return %2
          write %state = %0
    """
    assert updates(parse(text)) == []
    assert updates(parse(text.replace("aten.view", "aten.reshape"))) == ["slice_scatter"]


def test_the_scheduler_keeps_reads_of_the_old_content_before_the_write() -> None:
    graph = parse("""
        graph(%x: f32[2, 64])
          @cache: f32[64, 64]
          %0: f32[64, 64] = aten.exp(@cache)
          %1: f32[64, 64] = aten.slice_scatter(@cache, %x, 0, 1, 3)
          %2: f32[64] = aten.sum.dim_IntList(%1, [0])
          %3: f32[64, 64] = aten.mul.Tensor(%0, %2)
          %4: f32[64] = aten.sum.dim_IntList(%3, [0])
          return %4
          write @cache = %1
    """)
    assert updates(graph) == ["slice_scatter"]
    same_as_the_graph(graph, [torch.randn(2, 64)])


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("read", ["@cache", "%9"])
def test_fusion_moves_no_read_of_the_old_content_behind_the_write(target: str, read: str) -> None:
    graph = parse(f"""
        graph(%x: f32[2, 64])
          @cache: f32[64, 64]
          %9: f32[64, 64] = aten.permute(@cache, [0, 1])
          %0: f32[64, 64] = aten.exp({read})
          %1: f32[64, 64] = aten.slice_scatter(@cache, %x, 0, 1, 3)
          %2: f32[64, 64] = aten.cumsum(%1, 0)
          %3: f32[64, 64] = aten.mul.Tensor(%0, %2)
          %4: f32[64, 64] = aten.tanh(%3)
          %5: f32[64] = aten.sum.dim_IntList(%4, [0])
          return %5
          write @cache = %1
    """)
    fused = optimize(graph, passes=["eliminate-dead-code", f"fuse{{target={target}}}"], verify=True)
    (region,) = [n for n in fused.nodes if isinstance(n.op, Fusion)]
    assert "exp" not in str(region.region)
    assert updates(fused) == ["slice_scatter"]
    same_as_the_graph(graph, [torch.randn(2, 64)], passes=[f"fuse{{target={target}}}", *PLANNED])


def test_a_recipe_that_no_longer_holds_is_not_followed() -> None:
    """A pass, or a hand, has put a read of the old content behind the write."""
    graph = parse("""
        graph(%x: f32[2, 8])
          @cache: f32[4, 8]
          %0: f32[4, 8] = aten.slice_scatter(@cache, %x, 0, 1, 3) via aten.in_place(operand=0)
          %1: f32[4, 8] = aten.slice_scatter(%0, %x, 0, 0, 2) via aten.in_place(operand=0)
          %2: f32[4, 8] = aten.exp(%0)
          %3: f32[4, 8] = aten.mul.Tensor(%2, %1)
          return %3
          write @cache = %1
    """)
    assert sound_updates(graph) == frozenset()
    same_as_the_graph(graph, [torch.randn(2, 8)], passes=["memory"])
    nodes = list(graph.nodes)
    graph.move(nodes[2], after=nodes[0])
    assert sound_updates(graph) == frozenset(nodes[:2])
    same_as_the_graph(graph, [torch.randn(2, 8)], passes=["memory"])


@pytest.mark.parametrize("written", ["write @cache = %0", "write @other = %1"])
def test_a_recipe_for_what_is_not_written_back_is_not_followed(written: str) -> None:
    graph = parse(f"""
        graph(%x: f32[2, 8])
          @cache: f32[4, 8]
          @other: f32[4, 8]
          %0: f32[4, 8] = aten.slice_scatter(@cache, %x, 0, 1, 3) via aten.in_place(operand=0)
          %1: f32[4, 8] = aten.slice_scatter(%0, %x, 0, 0, 2) via aten.in_place(operand=0)
          %2: f32[4, 8] = aten.exp(%1)
          return %2
          {written}
    """)
    assert sound_updates(graph) == frozenset()
    same_as_the_graph(graph, [torch.randn(2, 8)], passes=["memory"])
