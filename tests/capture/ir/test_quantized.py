"""The quantised vocabulary in text, and what it means in fp64."""

from __future__ import annotations

import pytest
import torch

from capture import Graph
from tests.handmade import parse

SPACE = "quantized_decomposed"
DTYPES = "torch.int8, 4, torch.float32"
CALLS = {
    "per tensor": ("%0, 0.25, 3, 0, 255, torch.uint8", "u8", "per_tensor", ""),
    "per channel": ("%0, @s, @z, 0, -128, 127, torch.int8", "i8", "per_channel", "@s: f32[4]\n@z: i64[4]"),
    "per token": ("%0, @s, @z, -128, 127, torch.int8", "i8", "per_token", "@s: f32[4, 1]\n@z: i64[4, 1]"),
}


def graph_of(case: str) -> Graph:
    given, dtype, kind, constants = CALLS[case]
    back = f"{given}, torch.float32" if kind == "per_token" else given
    lines = [
        "graph(%x: f32[4, 6])",
        *(f"  {line}" for line in constants.splitlines()),
        f"  %0: {dtype}[4, 6] = {SPACE}.quantize_{kind}({given.replace('%0', '%x')})",
        f"  %1: f32[4, 6] = {SPACE}.dequantize_{kind}({back})",
        "  return %1",
    ]
    graph = parse("\n".join(lines))
    scale = torch.tensor([0.1, 0.2, 0.3, 0.4])
    if "s" in graph.constants:
        shape = graph.constants["s"].tensor_type.shape
        graph.bind({"s": scale.reshape(shape), "z": torch.tensor([0, 3, -5, 7]).reshape(shape)})
    return graph


@pytest.mark.parametrize("case", CALLS)
def test_fp64_keeps_the_grid(case: str) -> None:
    graph = graph_of(case)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(3)) * 4
    narrow, wide = graph.run(x), graph.run(x, dtype=torch.float64)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-6, atol=1e-6)
    assert not torch.equal(narrow, x)


def test_groups_in_fp64() -> None:
    graph = parse(f"""
        graph(%x: i8[2, 8])
          @s: f32[2, 2]
          %0: f32[2, 8] = {SPACE}.dequantize_per_channel_group(%x, @s, None, -8, 7, {DTYPES})
          return %0
        """)
    x = torch.randint(-8, 8, (2, 8), dtype=torch.int8)
    torch.testing.assert_close(graph.run(x).double(), graph.run(x, dtype=torch.float64), rtol=1e-6, atol=0)


def test_text_is_read_in_a_fresh_process() -> None:
    import subprocess
    import sys

    text = str(graph_of("per tensor"))
    code = f"from capture import Graph; print(Graph.parse({text!r}), end='')"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == text
