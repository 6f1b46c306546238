"""What became of each node: the fates, the frames, and the nodes that only the second graph has."""

from __future__ import annotations

import textwrap
from collections import Counter

import pytest
import torch

import passes
import viz
from capture import Graph
from capture.ir import CapturedOp, Origin, op_name
from passes import Fate
from tests.handmade import parse
from tests.viz.svgs import Picture, tooltip
from viz.difference import Difference

aten = torch.ops.aten

BEFORE = """
    graph(%x: f32[1, 3, 8, 8])
      @w: f32[4, 3, 3, 3]
      @bias: f32[4]
      @scale: f32[4]
      @mean: f32[4]
      @var: f32[4]
      %0: f32[1, 4, 6, 6] = aten.conv2d(%x, @w)  # conv  net.py:1
      %1: f32[1, 4, 6, 6], %2: f32[0], %3: f32[0] = aten._native_batch_norm_legit_no_training(%0, @scale, @bias, @mean, @var, 0.1, 1e-05)  # bn  net.py:2
      %4: f32[1, 4, 6, 6] = aten.relu(%1)  # act  net.py:3
      %5: f32[1, 4, 6, 6] = aten.alias(%4)  # drop  net.py:4
      %6: f32[1, 144] = aten.flatten.using_ints(%5, 1)  # -  net.py:5
      %7: f32[1, 144] = aten.exp(%6)  # out  net.py:6
      return %7
"""  # noqa: E501 (one line a node)
AFTER = """
    graph(%x: f32[1, 3, 8, 8])
      @w: f32[4, 3, 3, 3]
      @bias: f32[4]
      %0: f32[1, 3, 8, 8] = aten.clone(%x)
      %1: f32[1, 4, 6, 6] = fusion.conv(%0, @w, @bias) {  # conv, bn, act  net.py:1,2,3
        ^(%a: f32[1, 3, 8, 8], %b: f32[4, 3, 3, 3], %c: f32[4])
        %d: f32[1, 4, 6, 6] = aten.conv2d(%a, %b, %c)  # conv, bn  net.py:1,2
        %e: f32[1, 4, 6, 6] = aten.relu(%d)  # act  net.py:3
        return %e
      }
      %2: f32[1, 144] = aten.reshape(%1, [1, 144])  # -  net.py:5
      %3: f32[1, 144] = aten.exp(%2)  # out  net.py:6
      return %3
"""
FATES = {
    "conv2d 3×3": "fused", "batch_norm": "folded", "relu": "fused", "alias": "removed", "flatten": "replaced",
    "exp": "kept", "clone": "new",
}  # fmt: skip


def with_ids(text: str) -> Graph:
    """The graph, with the line of each node as its id."""
    graph = parse(text)

    def give(g: Graph) -> None:
        for node in g.nodes:
            ids = tuple(line for _, line in node.origin.locations)
            node.origin = Origin(ids, node.origin.modules, node.origin.locations)
            for region in node.regions:
                give(region)

    give(graph)
    return graph


@pytest.mark.parametrize("read", [with_ids, parse])
def test_every_fate(read: object) -> None:
    a, b = read(BEFORE), read(AFTER)  # type: ignore[operator]
    picture = Picture(viz.diff(a, b))
    assert picture.kinds() == FATES
    assert "6 nodes → 4 nodes · 1 kept · 2 fused · 1 replaced · 1 folded · 1 removed · 1 new" in picture.texts
    assert picture.headings == ["→ fusion.conv"]
    words = {
        "batch_norm": "folded into fusion.conv",
        "flatten": "replaced by aten.reshape",
        "clone": "only in",
    }
    for title, start in words.items():
        assert tooltip(picture.box(title)).startswith(start)


def test_what_is_new_stands_between_what_it_joins() -> None:
    picture = Picture(viz.diff(with_ids(BEFORE), with_ids(AFTER)))
    key = {title: picture.box(title).get("data-k") for title in ("clone", "conv2d 3×3", "x")}
    ends = {(link.get("data-f"), link.get("data-t")) for link in picture.links}
    assert {(key["x"], key["clone"]), (key["clone"], key["conv2d 3×3"])} <= ends
    assert (key["x"], key["conv2d 3×3"]) not in ends


def test_the_words_that_a_pass_left() -> None:
    a, b = with_ids(BEFORE), with_ids(AFTER)
    b.fates[4] = Fate("removed", "simplify", "it does nothing")
    b.fates[2] = Fate("folded", "fold-batch-norm", "its statistics are constants")
    picture = Picture(viz.diff(a, b))
    assert tooltip(picture.box("alias")).startswith("removed by simplify: it does nothing\n")
    assert tooltip(picture.box("batch_norm")).startswith(
        "folded by fold-batch-norm: its statistics are constants\n"
    )


def test_a_graph_against_itself_is_kept_whole(small_resnet: tuple[Graph, Graph]) -> None:
    for graph in small_resnet:
        found = Difference(graph, graph)
        assert set(found.fates.values()) == {"kept"}
        assert found.homes() == {}


def test_resnet50_against_what_o2_makes_of_it(resnet50: tuple[Graph, Graph]) -> None:
    found = Difference(*resnet50)
    count = Counter(found.fates.values())
    told = Counter(row.kind for row in passes.ledger(resnet50[1]))
    assert {fate: n for fate, n in count.items() if fate != "new"} == dict(told)
    assert count["folded"] == 53
    picture = Picture(viz.diff(*resnet50))
    assert picture.badges == ["× 2", "× 3", "× 5", "× 2"]
    new = [n for n, fate in found.fates.items() if fate == "new"]
    assert len(picture.names) == 1 + len(resnet50[0].nodes) + len(new)


def test_neither_graph_is_touched(small_resnet: tuple[Graph, Graph]) -> None:
    before = [(str(g), g.version) for g in small_resnet]
    viz.diff(*small_resnet)
    assert [(str(g), g.version) for g in small_resnet] == before


def test_empty_graphs() -> None:
    assert Picture(viz.diff(Graph(), Graph())).boxes == []


def test_a_decomposed_op() -> None:
    a = parse("graph(%x: f32[2])\n  %0: f32[2] = aten.silu(%x)\n  return %0\n")
    b = parse(
        """
        graph(%x: f32[2])
          %0: f32[2] = aten.sigmoid(%x)
          %1: f32[2] = aten.mul.Tensor(%x, %0)
          return %1
        """
    )
    for graph, op in ((a, "silu"), (b, "both")):
        for node in graph.nodes:
            node.origin = Origin((0,))
        graph.captured[0] = CapturedOp(0, op)
    picture = Picture(viz.diff(a, b))
    assert picture.kinds() == {"silu": "replaced", "sigmoid": "new"}
    assert "replaced by aten.mul.Tensor" in tooltip(picture.box("silu"))


def test_nodes_without_an_origin_are_matched_by_what_they_are() -> None:
    a, b = with_ids(AFTER), with_ids(AFTER)
    assert set(Difference(a, b).fates.values()) == {"kept"}


CNN = """
    graph(%x: f32[1, 4, 8, 8])
      @w: f32[4, 4, 3, 3]
      @scale: f32[4]
      @mean: f32[4]
      %0: f32[1, 4, 8, 8] = aten.conv2d(%x, @w, None, [1, 1], [1, 1])  # conv1  net.py:7
      %1: f32[1, 4, 8, 8], %2: f32[0], %3: f32[0] = aten._native_batch_norm_legit_no_training(%0, @scale, @scale, @mean, @scale, 0.1, 1e-05)  # bn1  net.py:7
      %4: f32[1, 4, 8, 8] = aten.relu(%1)  # -  net.py:3
      %5: f32[1, 4, 8, 8] = aten.conv2d(%4, @w, None, [1, 1], [1, 1])  # conv2  net.py:8
      %6: f32[1, 4, 8, 8] = aten.relu(%5)  # -  net.py:3
      %7: f32[1, 4] = aten.mean.dim(%6, [2, 3])  # -  net.py:3
      return %7
"""  # noqa: E501 (one line a node)
CNN_OPTIMIZED = """
    graph(%x: f32[1, 4, 8, 8])
      @w: f32[4, 4, 3, 3]
      @bias: f32[4]
      %0: f32[1, 4, 8, 8] channels_last = aten.clone(%x, memory_format=torch.channels_last)  # conv1  net.py:7
      %1: f32[1, 4, 8, 8] channels_last = fusion.conv(%0, @w, @bias) {  # conv1, bn1  net.py:7
        ^(%a: f32[1, 4, 8, 8] channels_last, %b: f32[4, 4, 3, 3], %c: f32[4])
        %d: f32[1, 4, 8, 8] channels_last = aten.conv2d(%a, %b, %c, [1, 1], [1, 1])  # conv1, bn1  net.py:7
        %e: f32[1, 4, 8, 8] channels_last = aten.relu(%d)  # -  net.py:3
        return %e
      }
      %2: f32[1, 4, 8, 8] channels_last = fusion.conv(%1, @w, @bias) {  # conv2  net.py:8
        ^(%a: f32[1, 4, 8, 8] channels_last, %b: f32[4, 4, 3, 3], %c: f32[4])
        %d: f32[1, 4, 8, 8] channels_last = aten.conv2d(%a, %b, %c, [1, 1], [1, 1])  # conv2  net.py:8
        %e: f32[1, 4, 8, 8] channels_last = aten.relu(%d)  # -  net.py:3
        return %e
      }
      %3: f32[1, 4] = aten.mean.dim(%2, [2, 3])  # -  net.py:3
      return %3
"""


@pytest.mark.parametrize(("comments", "batch_norm"), [(True, "folded"), (False, "removed")])
def test_a_small_cnn_from_text(comments: bool, batch_norm: str) -> None:
    """Ops inside regions count, and those alike in op and line are told apart by their order."""
    texts = CNN, CNN_OPTIMIZED
    if not comments:
        texts = tuple("\n".join(line.partition("  #")[0] for line in text.splitlines()) for text in texts)
    a, b = (Graph.parse(textwrap.dedent(text)) for text in texts)
    found = Difference(a, b)
    told = [(op_name(n.op).removeprefix("aten."), found.fates[n]) for n in found.merged.nodes]
    assert told == [
        ("clone", "new"), ("conv2d", "fused"), ("_native_batch_norm_legit_no_training", batch_norm),
        ("relu", "fused"), ("conv2d", "fused"), ("relu", "fused"), ("mean.dim", "kept"),
    ]  # fmt: skip
    fusions = [n for n in b.nodes if n.regions]
    assert [found.chosen[n] for n in found.merged.nodes if n.op == aten.relu.default] == fusions
