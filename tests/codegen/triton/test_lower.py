"""Which nodes get a Triton recipe, and what the ledger says of the others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import passes
from capture import capture
from codegen import triton
from codegen.triton import writing
from tests.handmade import parse

LOWER = ["lower-triton"]


def lowered(text: str) -> str:
    """The graph's text after the pass, without the hashes of file names."""
    graph = passes.optimize(parse(text), passes=LOWER, verify=True)
    return re.sub(r"_[0-9a-f]{8}\"", '_#"', str(graph))


def test_regions_and_lone_reductions_get_recipes() -> None:
    text = lowered("""
        graph(%x: f32[4, 8], %y: f32[8])
          %0: f32[4, 8] = fusion.pointwise(%x, %y) {
            ^(%a: f32[4, 8], %b: f32[8])
            %c: f32[4, 8] = aten.add.Tensor(%a, %b)
            %d: f32[4, 8] = aten.tanh(%c)
            return %d
          }
          %1: f32[4, 8] = aten.softmax.int(%0, -1)
          return %1
    """)
    assert 'via triton.pointwise(file="pointwise_#")' in text
    assert 'aten.softmax.int(%0, -1) via triton.reduction(file="softmax_#")' in text


@pytest.mark.parametrize(
    "node",
    ["f32[4, 8] = aten.tanh(%x)", "f32[4, 4] = aten.mm(%x, %y)", "f32[8, 4] = aten.transpose.int(%x, 0, 1)"],
    ids=["a lone pointwise operator", "a lone product", "a view"],
)
def test_what_pytorch_does_as_fast_stays(node: str) -> None:
    text = f"""
        graph(%x: f32[4, 8], %y: f32[8, 4])
          %0: {node}
          return %0
    """
    assert "triton" not in lowered(text)


def test_a_convolution_keeps_its_library_and_what_follows_is_one_kernel() -> None:
    text = lowered("""
        graph(%x: f32[1, 3, 8, 8], %r: f32[1, 4, 6, 6])
          @w: f32[4, 3, 3, 3]
          %0: f32[1, 4, 6, 6] = fusion.conv(%x, @w, %r) {
            ^(%a: f32[1, 3, 8, 8], %b: f32[4, 3, 3, 3], %c: f32[1, 4, 6, 6])
            %d: f32[1, 4, 6, 6] = aten.conv2d(%a, %b)
            %e: f32[1, 4, 6, 6] = aten.digamma(%d)
            %f: f32[1, 4, 6, 6] = aten.relu(%e)
            return %f
          }
          return %0
    """)
    assert "triton" not in text  # digamma has no Triton form
    text = lowered("""
        graph(%x: f64[1, 3, 8, 8], %r: f64[1, 4, 6, 6])
          @w: f64[4, 3, 3, 3]
          %0: f64[1, 4, 6, 6] = fusion.conv(%x, @w, %r) {
            ^(%a: f64[1, 3, 8, 8], %b: f64[4, 3, 3, 3], %c: f64[1, 4, 6, 6])
            %d: f64[1, 4, 6, 6] = aten.conv2d(%a, %b)
            %e: f64[1, 4, 6, 6] = aten.add.Tensor(%d, %c)
            %f: f64[1, 4, 6, 6] = aten.relu(%e)
            return %f
          }
          return %0
    """)
    assert "%0: f64[1, 4, 6, 6] = aten.conv2d(%x, @w)" in text
    assert 'fusion.pointwise(%0, %r) via triton.pointwise(file="pointwise_#")' in text


def test_a_group_norm_gets_a_kernel_of_its_own() -> None:
    text = lowered("""
        graph(%x: f32[2, 4, 8])
          %0: f32[2, 4, 8] = fusion.reduction(%x) {
            ^(%a: f32[2, 4, 8])
            %b: f32[2, 4, 8] = aten.group_norm(%a, 2)
            %c: f32[2, 4, 8] = aten.silu(%b)
            return %c
          }
          return %0
    """)
    assert 'aten.group_norm(%x, 2) via triton.reduction(file="group_norm_#")' in text
    assert "%1: f32[2, 4, 8] = aten.silu(%0)" in text


def test_the_ledger_names_the_operator_without_a_kernel() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.lgamma(x * 2).median()

    graph = capture(Model(), (torch.rand(4, 8),))
    graph = passes.optimize(graph, passes=["fuse{target=gpu}", *LOWER])
    (row,) = [row for row in passes.ledger(graph) if row.op == "aten.lgamma"]
    assert row.kind == "fused"
    assert row.reason.startswith(
        "into fusion.pointwise, which PyTorch runs op by op: aten.lgamma has no Triton"
    )
    assert "via triton" not in str(graph)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm in self.norms:
            x = norm(x).transpose(0, 1).contiguous().transpose(0, 1).contiguous()
        return torch.softmax(x * 0.5, -1)


def test_equal_layers_share_a_file_that_stands_for_all(tmp_path: Path) -> None:
    graph = capture(Block().eval(), (torch.randn(4, 8),))
    paths = triton.emit(graph, tmp_path)
    assert [path.name.rpartition("_")[0] for path in paths] == ["layer_norm", "softmax"]
    text = paths[0].read_text()
    assert all(f"norms.{i}" in text for i in range(3))
    assert [path.read_text() for path in triton.emit(graph, tmp_path)] == [p.read_text() for p in paths]


def test_the_module_imports_its_kernels_and_calls_them() -> None:
    graph = passes.optimize(capture(Block().eval(), (torch.randn(4, 8),)), passes=triton.pipeline(2))
    source = writing.module(graph)
    (name,) = set(re.findall(r"from kernels import (layer_norm_\w+)", source))
    assert f"{name}.launch(x, w.norms_0_weight, w.norms_0_bias)" in source


def test_pipelines_cut_regions_for_a_gpu() -> None:
    assert "fuse{target=gpu}" in triton.pipeline(2)
    assert triton.pipeline(0) == LOWER
    assert "layout" not in triton.pipeline(2)
