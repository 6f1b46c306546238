"""What the templates leave alone."""

from __future__ import annotations

import pytest
import torch

from capture.errors import UsageError
from codegen.triton.configs import DEVICES, matmul_configs
from codegen.triton.templates import template_for
from codegen.triton.templates.weight_only import WeightOnly
from tests.codegen.triton.template_files import GRAPHS, lone

REFUSED = {
    "float64": """
        graph(%x: f64[4, 8], %y: f64[8, 4])
          %0: f64[4, 4] = aten.mm(%x, %y)
          return %0
    """,
    "a vector": """
        graph(%x: f32[4, 8], %y: f32[8])
          %0: f32[4] = aten.matmul(%x, %y)
          return %0
    """,
    "batches that broadcast": """
        graph(%x: f32[3, 4, 8], %y: f32[1, 8, 4])
          %0: f32[3, 4, 4] = aten.matmul(%x, %y)
          return %0
    """,
    "an addend along the rows": """
        graph(%b: f32[4, 1], %x: f32[4, 8], %y: f32[8, 4])
          %0: f32[4, 4] = aten.addmm(%b, %x, %y)
          return %0
    """,
    "an operator without a Triton form after it": """
        graph(%x: f32[4, 8], %y: f32[8, 4])
          %0: f32[4, 4] = fusion.matmul(%x, %y) {
            ^(%x: f32[4, 8], %y: f32[8, 4])
            %0: f32[4, 4] = aten.mm(%x, %y)
            %1: f32[4, 4] = aten.digamma(%0)
            return %1
          }
          return %0
    """,
    "padding given as a word": """
        graph(%x: f32[1, 4, 8, 8], %w: f32[4, 4, 3, 3])
          %0: f32[1, 4, 8, 8] = aten.conv2d.padding(%x, %w, None, [1, 1], "same")
          return %0
    """,
    "an image without a batch": """
        graph(%x: f32[4, 8, 8], %w: f32[4, 4, 3, 3])
          %0: f32[4, 6, 6] = aten.conv2d(%x, %w)
          return %0
    """,
    "no product": """
        graph(%x: f32[4, 8])
          %0: f32[4, 8] = aten.relu(%x)
          return %0
    """,
}


@pytest.mark.parametrize("name", REFUSED)
def test_left_alone(name: str) -> None:
    assert template_for(lone(REFUSED[name])) is None


def test_the_same_node_gives_the_same_bytes() -> None:
    text = GRAPHS["linear gelu add"]
    first, second = template_for(lone(text)), template_for(lone(text))
    assert first is not None
    assert second is not None
    assert first.source == second.source
    assert "linear, gelu, add" in first.source


SDPA = """
    graph(%q: {q}, %k: f32[2, 2, 33, {head}], %v: f32[2, 2, 33, {head}])
      %0: {q} = aten.scaled_dot_product_attention(%q, %k, %v, None, {dropout}, False, enable_gqa=True)
      return %0
"""


@pytest.mark.parametrize(
    ("heads", "head", "dropout"), [(4, 320, 0.0), (4, 16, 0.1)], ids=["heads too wide", "dropout"]
)
def test_attention_left_alone(heads: int, head: int, dropout: float) -> None:
    text = SDPA.format(q=f"f32[2, {heads}, 9, {head}]", head=head, dropout=dropout)
    assert template_for(lone(text)) is None
    assert template_for(lone(SDPA.format(q="f32[2, 4, 9, 16]", head=16, dropout=0.0))) is not None


@pytest.mark.parametrize(
    ("bits", "group", "why"), [(3, 32, "3 bits"), (4, 48, "groups of 48"), (8, 96, "of 96")]
)
def test_weights_that_have_no_kernel(bits: int, group: int, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        WeightOnly(torch.float16, (4,), 64, 512, bits=bits, group=group)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("size", [1, 64, 4096])
def test_configurations_fit_every_target_that_they_are_for(size: int, itemsize: int) -> None:
    exact = itemsize == 4
    found = matmul_configs(1, size, size, size, itemsize, exact=exact)
    assert found
    assert all(c.shared_bytes(itemsize) <= DEVICES["sm_80"].shared for c in found)
    assert found == matmul_configs(1, size, size, size, itemsize, exact=exact)
    assert all(c.block_m * c.block_n >= 64 * 64 for c in found) == (size == 4096)


def test_few_tiles_with_long_sums_are_split() -> None:
    schedules = {c.schedule for c in matmul_configs(1, 16, 128, 65536, 2)}
    assert schedules == {"split"}


def test_an_unknown_device() -> None:
    with pytest.raises(UsageError, match="sm_1"):
        matmul_configs(1, 8, 8, 8, 4, device="sm_1")
