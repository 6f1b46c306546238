"""The picture of a graph: all is in it, its bytes are the same every time, hostile names do no harm."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

import viz
from capture import CaptureError, Graph, capture
from capture._floors import ROOT
from capture.ir import CapturedOp, Origin, TensorType
from passes import optimize
from tests.handmade import parse
from tests.random_graphs import Case, cases
from tests.viz.svgs import Picture, font_sizes, node_names, overlap, shape_areas, texts_of, tooltip

aten = torch.ops.aten

RESIDUAL = """
    graph(%x: f32[1, 8, 16, 16])
      @conv.weight: f32[8, 8, 3, 3]
      %0: f32[1, 8, 16, 16] = aten.conv2d(%x, @conv.weight, None, [1, 1], [1, 1])  # conv  net.py:7
      %1: f32[1, 8, 16, 16] = aten.relu(%0)                                        # act  net.py:8
      %2: f32[1, 8, 16, 16] = aten.add.Tensor(%1, %x)                              # -  net.py:9
      %3: f32[1, 8] = aten.mean.dim(%2, [2, 3])                                    # pool  net.py:10
      return %3
"""


def test_every_node_is_in_the_unfolded_picture(resnet50: tuple[Graph, Graph]) -> None:
    for graph in resnet50:
        picture = Picture(viz.svg(graph, fold=False))
        drawn = [name for name in picture.names if name != "%x"]
        assert sorted(drawn) == sorted(node_names(graph))
        assert picture.badges == []


def test_every_node_has_its_place_in_the_folded_picture(resnet50: tuple[Graph, Graph]) -> None:
    for graph in resnet50:
        picture = Picture(viz.svg(graph))
        drawn = [name for name in picture.names if name != "%x"]
        assert sorted(drawn) == sorted(node_names(graph))
        assert len(picture.boxes) < 0.7 * len(graph.nodes)


def test_blocks_of_resnet50_are_folded(resnet50: tuple[Graph, Graph]) -> None:
    for graph in resnet50:
        picture = Picture(viz.svg(graph))
        assert picture.badges == ["× 2", "× 3", "× 5", "× 2"]
        assert [h for h in picture.headings if "–" in h] == [
            "layer1.1–2", "layer2.1–3", "layer3.1–5", "layer4.1–2",
        ]  # fmt: skip


def test_the_same_bytes_in_another_process(tmp_path: Path, small_resnet: tuple[Graph, Graph]) -> None:
    for number, graph in enumerate(small_resnet):
        graph.save(tmp_path / f"{number}.safetensors")
    code = (
        "import hashlib, sys, viz; from capture import Graph\n"
        "a, b = (Graph.load(f'{sys.argv[1]}/{i}.safetensors') for i in (0, 1))\n"
        "texts = [viz.svg(a), viz.svg(b), viz.svg(a, fold=False), viz.diff(a, b)]\n"
        "print(hashlib.sha256(''.join(texts).encode()).hexdigest())"
    )
    found = set()
    for seed in ("0", "1234"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_links_carry_shapes_and_bytes() -> None:
    picture = Picture(viz.svg(parse(RESIDUAL)))
    ends = {(link.get("data-f"), link.get("data-t")) for link in picture.links}
    assert ends == {("i0", "n0"), ("n0", "n1"), ("n1", "n2"), ("i0", "n2"), ("n2", "n3"), ("n3", "r0")}
    main = [(k.get("data-f"), k.get("data-t")) for k in picture.links if k.get("class") == "main"]
    assert set(main) == ends - {("i0", "n2")}
    assert "8×16×16" in picture.texts
    assert "8" in picture.texts
    assert "%0: f32[1, 8, 16, 16]   8.2 kB" in {tooltip(link) for link in picture.links}


def test_a_link_is_wider_where_more_flows() -> None:
    def width(size: int) -> float:
        graph = parse(f"graph(%x: f32[{size}])\n  %0: f32[{size}] = aten.relu(%x)\n  return %0\n")
        (line, *_) = (p for p in Picture(viz.svg(graph)).root.iter() if p.get("class") == "e")
        return float(line.get("stroke-width") or 0)

    assert width(10) == 1
    assert 1 < width(10_000) < width(10_000_000)
    assert width(10**12) == 6


def test_kinds_colour_and_the_legend_names_those_used() -> None:
    picture = Picture(viz.svg(parse(RESIDUAL)))
    assert picture.kinds() == {
        "conv2d 3×3": "compute", "relu": "pointwise", "add": "pointwise", "mean 2,3": "reduction",
    }  # fmt: skip
    assert {"compute (conv, matmul)", "memory-bound", "reduction, norm, pool"} <= set(picture.texts)
    assert "view or move" not in picture.texts


def test_hovering_tells_types_source_line_kernel_and_weights() -> None:
    graph = parse(RESIDUAL)
    node = next(iter(graph.nodes))
    node.origin = Origin((0,), ("conv",), (("net.py", 7),))
    graph.captured[0] = CapturedOp(0, "aten.conv2d", "conv", "net.py", 7, "y = self.conv(x)")
    from capture.ir import Impl

    node.set_impl(Impl("onednn.conv", {"packed": True}))
    lines = tooltip(Picture(viz.svg(graph)).box("conv2d 3×3")).splitlines()
    assert lines[0] == "%0 = aten.conv2d"
    assert "%0: f32[1, 8, 16, 16]   8.2 kB" in lines
    assert "module conv" in lines
    assert "net.py:7   y = self.conv(x)" in lines
    assert "  @conv.weight: f32[8, 8, 3, 3]" in lines
    assert "via onednn.conv(packed=True)" in lines
    assert lines[-1].startswith("0.3 MFLOP, reads 10.5 kB")


def test_a_fused_region_is_one_box_that_lists_its_ops(small_resnet: tuple[Graph, Graph]) -> None:
    picture = Picture(viz.svg(small_resnet[1], fold=False))
    fused = [texts_of(box) for box in picture.boxes if "relu" in texts_of(box)]
    assert ["conv2d 7×7 /2", "conv1, bn1", "relu"] in fused
    assert [t for t in fused if "add" in t]
    assert "relu" not in picture.titles


def test_branches_are_listed_in_one_box() -> None:
    text = """
        graph(%x: f32[2], %p: bool[])
          %0: f32[2] = higher_order.cond(%p, ^0, ^1, [%x]) {
            ^(%a: f32[2])
            %b: f32[2] = aten.relu(%a)
            return %b
          } {
            ^(%a: f32[2])
            %b: f32[2] = aten.mean.dim(%a, [0], True)
            return %b
          }
          return %0
    """
    (box,) = (
        b
        for b in Picture(viz.svg(Graph.parse(textwrap.dedent(text).strip()))).boxes
        if b.get("data-k") == "n0"
    )
    assert texts_of(box) == ["cond, branch 0", "relu", "cond, branch 1", "mean 0"]


@settings(max_examples=25)
@given(cases())
def test_random_graphs(case: Case) -> None:
    graph = case.graph
    inputs = {f"%{v.name}" for v in graph.inputs}
    for folded in (True, False):
        picture = Picture(viz.svg(graph, fold=folded))
        assert sorted(name for name in picture.names if name not in inputs) == sorted(node_names(graph))
    after = optimize(graph, level=2)
    drawn = Picture(viz.diff(graph, after, fold=False)).names
    assert len(drawn) - len(inputs & set(drawn)) >= len(graph.nodes)


def test_no_text_is_smaller_than_nine_pixels(small_resnet: tuple[Graph, Graph]) -> None:
    captured, optimized = small_resnet
    for svg in (viz.svg(captured), viz.diff(captured, optimized), viz.memory(optimized)):
        sizes = font_sizes(svg)
        assert sizes
        assert min(sizes) >= 9
        assert "prefers-color-scheme:dark" in svg


def test_a_tall_graph_stands_in_columns_and_loses_no_link() -> None:
    lines = [f"  %{i}: f32[64, 64] = aten.mul.Scalar(%{i - 1}, {i}.0)  # m{i}" for i in range(1, 240)]
    text = "\n".join(["graph(%x: f32[64, 64])", "  %0: f32[64, 64] = aten.relu(%x)", *lines])
    graph = Graph.parse(text + "\n  %240: f32[64, 64] = aten.add.Tensor(%239, %x)\n  return %240\n")
    picture = Picture(viz.svg(graph))
    width, height = (float(v) for v in (picture.root.get("viewBox") or "").split()[2:])
    assert 0.4 < width / height < 2.5
    assert sorted(name for name in picture.names if name != "%x") == sorted(node_names(graph))
    reached = {link.get("data-t") for link in picture.links}
    assert reached >= {f"n{i}" for i in range(241)} | {"r0"}
    (ghost,) = (box for box in picture.boxes if (box.get("data-k") or "").startswith("ghost"))
    assert texts_of(ghost)[0] == "x"


def test_hostile_names_do_no_harm() -> None:
    evil = '</title><script>alert("1 & 2")</script>\x00\x1b'
    graph = Graph(evil)
    graph.frontend = evil
    x = graph.add_input(evil, TensorType(torch.float32, (2, 3)))
    weight = graph.add_constant(evil, TensorType(torch.float32, (3, 3)))
    origin = Origin((0,), (f"{evil}.0", evil), ((evil, 1),))
    graph.captured[0] = CapturedOp(0, evil, evil, evil, 1, evil)
    node = graph.add_node(aten.linear.default, [x, weight], origin=origin)
    graph.set_results([node.result])
    for svg in (viz.svg(graph), viz.svg(graph, title=evil), viz.diff(graph, graph)):
        assert "<script" not in svg
        assert not any(c in svg for c in "\x00\x1b")
        assert '</title><script>alert("1 & 2")</script>' in tooltip(Picture(svg).box("linear"))


def test_an_empty_graph() -> None:
    picture = Picture(viz.svg(Graph("nothing")))
    assert picture.boxes == []
    assert picture.texts == ["nothing", "0 nodes"]


def test_a_graph_that_returns_its_input() -> None:
    picture = Picture(viz.svg(parse("graph(%x: f32[2])\n  return %x\n")))
    assert picture.titles == ["x", "result"]
    assert [(k.get("data-f"), k.get("data-t")) for k in picture.links] == [("i0", "r0")]


def test_one_node() -> None:
    picture = Picture(viz.svg(parse("graph(%x: f32[2])\n  %0: f32[2] = aten.relu(%x)\n  return %0\n")))
    assert picture.titles == ["x", "relu", "result"]
    assert "1 node" in picture.texts


def test_symbolic_shapes_and_other_dtypes() -> None:
    text = """
        graph(%x: f32[N, 3, 2*N + 1], %i: i64[N]) where N in [2, 64]
          %0: f32[N, 3, 2*N + 1] = aten.relu(%x)
          %1: f32[N, 3, 2*N + 1] = aten.index_select(%0, 0, %i)
          return %1
    """
    texts = Picture(viz.svg(parse(text, bind=False))).texts
    assert "N×3×(2*N + 1)" in texts
    assert "i64 N" in texts
    assert "f32[N, 3, 2*N + 1]" in texts


def test_what_is_written_back_and_what_comes_from_constants() -> None:
    text = """
        graph(%x: f32[2, 4])
          @cache: f32[2, 4]
          @table: f32[8, 4]
          %0: f32[2, 4] = aten.slice.Tensor(@table, 0, 0, 2)
          %1: f32[2, 4] = aten.add.Tensor(%x, %0)
          return %1
          write @cache = %1
    """
    picture = Picture(viz.svg(parse(text)))
    assert picture.titles[-1] == "result … write cache"
    assert picture.kinds()["slice 0"] == "folded"
    assert "cache" not in picture.names


def test_the_file_is_what_is_returned(tmp_path: Path) -> None:
    graph = parse(RESIDUAL)
    text = viz.svg(graph, tmp_path / "new" / "g.svg", title="A title")
    assert (tmp_path / "new" / "g.svg").read_text() == text
    assert "A title" in Picture(text).texts


def test_an_unwritable_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CaptureError, match="cannot write"):
        viz.svg(parse(RESIDUAL), tmp_path / "file" / "g.svg")


@pytest.mark.parametrize("missing", ["pydot", "pygraphviz"])
def test_a_missing_package_is_told_in_one_line(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(CaptureError) as caught:
        viz.svg(parse(RESIDUAL))
    assert caught.value.what == f"drawing a graph needs {missing}, which cannot be imported"
    assert "pip install pydot pygraphviz" in str(caught.value)
    assert parse(RESIDUAL)._repr_svg_() is None


def test_a_notebook_shows_the_picture() -> None:
    graph = parse(RESIDUAL)
    assert graph._repr_svg_() == viz.svg(graph)


def test_a_heading_that_lines_would_cross_loses_its_first_parts() -> None:
    """Beside the main line there is room for the short name only."""
    path = "a.name.as.long.as.a.frame.is.wide"
    ops = ["relu", "neg", "exp", "abs", "sin", "cos", "tanh", "sigmoid"]  # all different: nothing repeats
    modules = [f"{path}.{name}" for name in "xyz"] + ["-"] * 5
    rows = [
        f"%{i}: f32[8] = aten.{op}({f'%{i - 1}' if i else '%x'})  # {module}  net.py:1"
        for i, (op, module) in enumerate(zip(ops, modules, strict=True))
    ]
    text = "\n  ".join(["graph(%x: f32[8])", *rows, f"return %{len(rows) - 1}"]) + "\n"
    (heading,) = Picture(viz.svg(parse(text))).headings
    assert heading.startswith("…")
    assert path.endswith(heading.removeprefix("…"))


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(20, 8)
        self.lstm = torch.nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out, (hidden, cell) = self.lstm(self.embed(x))
        return out[:, -1], hidden.relu(), cell.tanh(), hidden + cell


@pytest.mark.parametrize("which", ["recurrent", "resnet", "changes"])
def test_shapes_are_clear_of_each_other_of_boxes_and_of_frames(
    which: str, small_resnet: tuple[Graph, Graph]
) -> None:
    if which == "recurrent":
        svg = viz.svg(capture(Recurrent().eval(), (torch.zeros(1, 7, dtype=torch.int64),)))
    else:
        svg = (
            viz.svg(small_resnet[0], fold=False) if which == "resnet" else viz.diff(*small_resnet, fold=False)
        )
    areas = shape_areas(Picture(svg))
    shapes = areas["shapes"]
    assert len(shapes) >= 5
    assert not [(a, b) for a, b in itertools.combinations(shapes, 2) if overlap(a, b)]
    assert not [(shape, box) for shape in shapes for box in areas["boxes"] if overlap(shape, box)]
    for left, top, right, bottom in areas["frames"]:
        edges = [(left, top, left, bottom), (right, top, right, bottom)]
        edges += [(left, top, right, top), (left, bottom, right, bottom)]
        assert not [(shape, edge) for shape in shapes for edge in edges if overlap(shape, edge)]
