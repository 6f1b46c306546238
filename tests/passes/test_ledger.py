"""The ledger: every captured op is accounted for, with the pass and the reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import passes
from capture import capture
from capture.ir import CapturedOp, Fusion, Graph, Origin, TensorType
from passes import Fate, LedgerRow, Pass, PassResult, fates_of, ledger, run_pass
from passes.regions import make_region
from tests.passes.golden import parse

aten = torch.ops.aten


def with_ids(text: str) -> Graph:
    """A parsed graph whose nodes are captured ops 0, 1, 2, ..."""
    graph = parse(text)
    for i, node in enumerate(graph.nodes):
        graph.captured[i] = CapturedOp(i, str(node.op), f"m{i}", "model.py", 10 + i)
        node.origin = Origin.of(graph.captured[i])
    return graph


def told(graph: Graph) -> list[tuple[str, str, str, str]]:
    return [(row.kind, row.pass_name, row.reason, row.node) for row in ledger(graph)]


def test_a_captured_graph_keeps_all() -> None:
    graph = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), (torch.randn(2, 3),))
    rows = ledger(graph)
    assert [(r.kind, r.node) for r in rows] == [("kept", "%0"), ("kept", "%1")]
    first = graph.captured[rows[0].id]
    assert rows[0] == LedgerRow(first.id, "aten.linear", "0", first.file, first.line, "kept", "", "", "%0")


def test_each_fate_of_a_whole_pipeline() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.dropout = nn.Dropout()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.dropout(self.norm(self.conv(x)))
            table = torch.arange(4.0).exp()
            z = torch.relu(y) + table.reshape(4, 1, 1)
            return z.sin() * z.sin()

    graph = passes.optimize(capture(Model().eval(), (torch.randn(1, 3, 5, 5),)), level=1)
    rows = {r.op.removesuffix(".Tensor"): r for r in ledger(graph)}
    assert rows["aten._native_batch_norm_legit_no_training"].kind == "folded"
    assert rows["aten._native_batch_norm_legit_no_training"].node == rows["aten.conv2d"].node == "%0"
    assert rows["aten.exp"].kind == "folded"
    assert rows["aten.exp"].reason == "depends on constants alone"
    assert rows["aten.reshape"].reason == "into @reshape"
    assert [r.kind for r in ledger(graph) if r.op == "aten.sin"] == ["kept", "replaced"]
    assert {r.module: r.kind for r in rows.values()}["dropout"] == "removed"
    assert rows["aten.conv2d"].kind == "kept"


def test_a_vanished_op_is_removed_with_the_passs_reason() -> None:
    graph = with_ids(
        "graph(%x: f32[3])\n  %0: f32[3] = aten.exp(%x)\n  %1: f32[3] = aten.neg(%x)\n  return %1"
    )
    after = passes.optimize(graph, passes=["eliminate-dead-code"])
    assert told(after) == [
        ("removed", "eliminate-dead-code", "its result is used nowhere", ""),
        ("kept", "", "", "%0"),
    ]


@dataclass(frozen=True)
class FuseAll(Pass):
    name = "fuse-all"

    def run(self, graph: Graph) -> PassResult:
        make_region(graph, Fusion("pointwise"), list(graph.nodes))
        return PassResult(True)


@dataclass(frozen=True)
class ReplaceExp(Pass):
    name = "replace-exp"

    def run(self, graph: Graph) -> PassResult:
        for node in graph.find(aten.exp):
            made = graph.add_node(aten.expm1.default, node.operands, before=node)
            graph.replace_node(node, graph.add_node(aten.add.Tensor, [made.result, 1], before=node).results)
        return PassResult(True)


def test_what_the_manager_sees_by_itself() -> None:
    graph = with_ids(
        """
        graph(%x: f32[3])
          %0: f32[3] = aten.exp(%x)
          %1: f32[3] = aten.neg(%0)
          return %1
        """
    )
    replaced = passes.optimize(graph, passes=[ReplaceExp()])
    assert told(replaced)[0] == ("replaced", "replace-exp", "by aten.add.Tensor", "%1")
    fused = passes.optimize(graph, passes=[ReplaceExp(), FuseAll()])
    assert told(fused) == [("fused", "fuse-all", "into fusion.pointwise", "%0")] * 2
    assert told(graph) == [("kept", "", "", "%0"), ("kept", "", "", "%1")]


def test_folded_and_removed_are_final() -> None:
    """What happens to the node that took an op's place is not that op's fate."""
    graph = with_ids(
        """
        graph(%x: f32[3])
          %0: f32[3] = aten.exp(%x)
          %1: f32[3] = aten.clone(%0)
          %2: f32[3] = aten.neg(%1)
          return %2
        """
    )
    after = passes.optimize(graph, passes=["simplify", FuseAll()])
    assert [(r.kind, r.pass_name) for r in ledger(after)] == [
        ("fused", "fuse-all"),
        ("removed", "simplify"),
        ("fused", "fuse-all"),
    ]


@dataclass(frozen=True)
class DropOneOfTwo(Pass):
    name = "drop-one-of-two"

    def run(self, graph: Graph) -> PassResult:
        node = graph.nodes[0]
        fates = fates_of(node, "removed", "half of it is not needed")
        graph.replace_node(node, node.operands[:1])
        return PassResult(True, fates=fates)


def test_half_of_a_captured_op_is_not_its_end() -> None:
    graph = parse("graph(%x: f32[3])\n  %0: f32[3] = aten.exp(%x)\n  %1: f32[3] = aten.neg(%0)\n  return %1")
    graph.captured[0] = CapturedOp(0, "aten.softplus")
    for node in graph.nodes:
        node.origin = Origin.of(graph.captured[0])
    run_pass(graph, DropOneOfTwo())
    assert told(graph) == [("kept", "", "", "%0")]
    run_pass(graph, DropOneOfTwo())
    assert told(graph) == [("removed", "drop-one-of-two", "half of it is not needed", "")]


def test_ops_inside_branches_and_ops_that_capture_left_out() -> None:
    graph = parse(
        """
        graph(%p: bool[], %x: f32[3])
          %0: f32[3] = higher_order.cond(%p, ^0, ^1, [%x]) {
            ^(%a: f32[3])
            %b: f32[3] = aten.exp(%a)
            return %b
          } {
            ^(%a: f32[3])
            %b: f32[3] = aten.neg(%a)
            return %b
          }
          return %0
        """
    )
    graph.captured = {i: CapturedOp(i, name) for i, name in enumerate(["aten.exp", "aten.neg", "aten.view"])}
    (node,) = graph.nodes
    for i, region in enumerate(node.regions):
        region.nodes[0].origin = Origin.of(graph.captured[i])
    rows = ledger(graph)
    assert [(r.kind, r.node) for r in rows] == [("kept", "%0"), ("kept", "%0"), ("removed", "")]
    assert rows[2].pass_name == "capture"


def test_a_node_without_results_is_named_by_its_op() -> None:
    graph = with_ids("graph(%x: bool[])\n  aten._assert_async(%x)\n  return %x")
    assert ledger(graph)[0].node == "aten._assert_async"


def test_fates_survive_a_copy() -> None:
    graph = Graph()
    graph.add_input("x", TensorType(torch.float32, (3,)))
    graph.fates[7] = Fate("removed", "some-pass", "why")
    copy = graph.clone()
    assert copy.fates == graph.fates
    copy.fates.clear()
    assert graph.fates
