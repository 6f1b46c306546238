"""A kernel file of every template and option, at small captured sizes: what tests check and compile."""

from __future__ import annotations

from collections.abc import Callable

import torch

from capture.ir import Node
from codegen.triton.configs import TileConfig
from codegen.triton.file import KernelFile
from codegen.triton.templates import template_for
from codegen.triton.templates.attention import Attention
from codegen.triton.templates.decode import Decode
from codegen.triton.templates.matmul import Extra, Matmul
from codegen.triton.templates.weight_only import WeightOnly
from tests.handmade import parse

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def linear(dtype: torch.dtype, k: int = 768, **options: object) -> KernelFile:
    """A linear layer with bias, a clamp and a residual."""
    return Matmul(
        "linear",
        ("x", "weight"),
        ("x", "weight", "bias", "residual"),
        dtype,
        (4, 128),
        1536,
        k,
        "def reference(x, weight, bias, residual):\n"
        "    return F.linear(x, weight, bias).clamp_min(0) + residual",
        extras=(Extra("bias", "n", dtype), Extra("residual", "bmn", dtype)),
        epilogue=(
            "value = tl.maximum(acc + bias_tile, 0.0, propagate_nan=tl.PropagateNan.ALL)",
            "value = value + residual_tile",
        ),
        value="value",
        title="Linear layer with bias, clamp and add",
        **options,
    ).file()


def product(
    form: str, lead: tuple[int, ...], dtype: torch.dtype, config: TileConfig | None = None
) -> KernelFile:
    """A plain product."""
    configs = () if config is None else (config,)
    returned = f"def reference(a, b):\n    return torch.{form}(a, b)"
    return Matmul(form, ("a", "b"), ("a", "b"), dtype, lead, 512, 512, returned, configs=configs).file()


PERSISTENT = TileConfig(64, 64, 32, 4, 3, "persistent")
SPLIT = TileConfig(32, 64, 32, 4, 3, "split", 4)

MATMUL: dict[str, Callable[[], KernelFile]] = {
    "linear bf16": lambda: linear(BF16),
    "linear fp16": lambda: linear(FP16),
    "linear fp32": lambda: linear(FP32),
    "linear unaligned": lambda: linear(BF16, 770),
    "linear split": lambda: linear(BF16, configs=(SPLIT,)),
    "mm fp32": lambda: product("mm", (512,), FP32),
    "mm persistent": lambda: product("mm", (512,), BF16, PERSISTENT),
    "mm split": lambda: product("mm", (512,), FP16, SPLIT),
    "bmm": lambda: product("bmm", (12, 128), BF16),
    "bmm persistent": lambda: product("bmm", (12, 128), FP16, PERSISTENT),
    "bmm split": lambda: product("bmm", (12, 128), FP32, SPLIT),
}
FILES = dict(MATMUL)

ATTENTION: dict[str, Attention] = {
    "attention bf16": Attention(BF16, (1, 12, 12, 512, 512, 64)),
    "attention fp16 causal": Attention(FP16, (1, 8, 2, 512, 512, 128), causal=True),
    "attention fp32 causal": Attention(FP32, (1, 4, 4, 256, 256, 64), causal=True),
    "attention bool mask": Attention(
        BF16, (1, 4, 4, 256, 256, 96), mask="bool", mask_shape="batch, 1, 1, keys"
    ),
    "attention float mask": Attention(FP32, (1, 4, 4, 256, 256, 80), mask="float", transposed=True),
    "attention window": Attention(BF16, (1, 4, 4, 512, 512, 64), causal=True, window=17, scale="0.25"),
    "attention wide heads": Attention(BF16, (1, 2, 2, 512, 512, 256), causal=True),
    "attention wide heads fp32": Attention(FP32, (1, 2, 2, 512, 512, 256)),
}
DECODE: dict[str, Decode] = {
    "decode bf16": Decode(BF16, (4, 32, 8, 4096, 128)),
    "decode fp32": Decode(FP32, (2, 12, 12, 512, 64)),
    "decode fp16 wide heads": Decode(FP16, (1, 4, 1, 512, 256)),
    "decode paged": Decode(BF16, (4, 32, 8, 1024, 128), paged=True),
    "decode paged fp32": Decode(FP32, (2, 4, 4, 256, 80), paged=True, scale="0.2"),
}
WEIGHT_ONLY: dict[str, WeightOnly] = {
    "linear w8": WeightOnly(BF16, (4,), 1024, 1024, bits=8),
    "linear w8 zeros": WeightOnly(FP32, (65,), 256, 256, bits=8, group=64, zeros=True, bias=True),
    "linear w4": WeightOnly(FP16, (2, 64), 1024, 1024, bits=4, bias=True),
    "linear w4 zeros": WeightOnly(BF16, (1,), 512, 512, bits=4, group=32, zeros=True),
}
FILES |= {name: spec.file for name, spec in (ATTENTION | DECODE | WEIGHT_ONLY).items()}


def lone(text: str) -> Node:
    """The only node of a graph's text."""
    (node,) = parse(text).nodes
    return node


def from_graph(text: str) -> KernelFile:
    """What is printed for the graph's only node."""
    file = template_for(lone(text))
    assert file is not None
    return file


GRAPHS = {
    "linear gelu add": """
        graph(%x: f32[2, 65, 96], %w: f32[160, 96], %b: f32[160], %r: f32[2, 65, 160])
          %0: f32[2, 65, 160] = fusion.linear(%x, %w, %b, %r) {
            ^(%x: f32[2, 65, 96], %w: f32[160, 96], %b: f32[160], %r: f32[2, 65, 160])
            %0: f32[2, 65, 160] = aten.linear(%x, %w, %b)
            %1: f32[2, 65, 160] = aten.gelu(%0)
            %2: f32[2, 65, 160] = aten.add.Tensor(%1, %r, alpha=2)
            return %2
          }
          return %0
    """,
    "cast before linear": """
        graph(%x: bf16[N, 96], %w: f32[160, 96]) where N in [1, 512]
          %0: f32[N, 160] = fusion.linear(%x, %w) {
            ^(%x: bf16[N, 96], %w: f32[160, 96])
            %0: f32[N, 96] = aten._to_copy(%x, dtype=torch.float32)
            %1: f32[N, 160] = aten.linear(%0, %w)
            %2: f32[N, 160] = aten.silu(%1)
            return %2
          }
          return %0
    """,
    "addmm": """
        graph(%b: f16[160], %x: f16[65, 96], %w: f16[96, 160])
          %0: f16[65, 160] = aten.addmm(%b, %x, %w, beta=0.5, alpha=2)
          return %0
    """,
    "baddbmm tanh": """
        graph(%b: f32[3, 65, 33], %x: f32[3, 65, 96], %w: f32[3, 96, 33])
          %0: f32[3, 65, 33] = fusion.matmul(%b, %x, %w) {
            ^(%b: f32[3, 65, 33], %x: f32[3, 65, 96], %w: f32[3, 96, 33])
            %0: f32[3, 65, 33] = aten.baddbmm(%b, %x, %w)
            %1: f32[3, 65, 33] = aten.tanh(%0)
            return %1
          }
          return %0
    """,
    "matmul of heads": """
        graph(%x: f32[2, 3, 65, 32], %y: f32[2, 3, 32, 65])
          %0: f32[2, 3, 65, 65] = aten.matmul(%x, %y)
          return %0
    """,
    "conv": """
        graph(%x: bf16[2, 24, 14, 14], %w: bf16[40, 24, 3, 3], %b: bf16[40], %r: bf16[2, 40, 7, 7])
          %0: bf16[2, 40, 7, 7] = fusion.conv(%x, %w, %b, %r) {
            ^(%x: bf16[2, 24, 14, 14], %w: bf16[40, 24, 3, 3], %b: bf16[40], %r: bf16[2, 40, 7, 7])
            %0: bf16[2, 40, 7, 7] = aten.conv2d(%x, %w, %b, [2, 2], [1, 1])
            %1: bf16[2, 40, 7, 7] = aten.relu(%0)
            %2: bf16[2, 40, 7, 7] = aten.add.Tensor(%1, %r)
            return %2
          }
          return %0
    """,
    "conv in groups, dilated": """
        graph(%x: f32[2, 12, 15, 13], %w: f32[8, 3, 3, 2])
          %0: f32[2, 8, 15, 14] = aten.conv2d(%x, %w, None, [1, 1], [2, 2], [2, 3], 4)
          return %0
    """,
    "conv of each channel": """
        graph(%x: f32[2, 16, 15, 15], %w: f32[16, 1, 5, 5], %b: f32[16])
          %0: f32[2, 16, 15, 15] = aten.conv2d(%x, %w, %b, [1, 1], [2, 2], [1, 1], 16)
          return %0
    """,
    "conv 1x1": """
        graph(%x: f16[2, 64, 14, 14], %w: f16[128, 64, 1, 1])
          %0: f16[2, 128, 14, 14] = aten.conv2d(%x, %w)
          return %0
    """,
    "conv of an image": """
        graph(%x: bf16[1, 3, 64, 64], %w: bf16[64, 3, 7, 7])
          %0: bf16[1, 64, 32, 32] = aten.conv2d(%x, %w, None, [2, 2], [3, 3])
          return %0
    """,
    "sdpa": """
        graph(%q: f32[2, 4, 9, 16], %k: f32[2, 2, 33, 16], %v: f32[2, 2, 33, 16], %m: bool[9, 33])
          %0: f32[2, 4, 9, 16] = aten.scaled_dot_product_attention(%q, %k, %v, %m, scale=0.3, enable_gqa=True)
          return %0
    """,
    "matmul with a matrix": """
        graph(%x: bf16[2, 65, 32], %y: bf16[32, 48])
          %0: bf16[2, 65, 48] = aten.matmul(%x, %y)
          return %0
    """,
}
FILES |= {name: lambda text=text: from_graph(text) for name, text in GRAPHS.items()}
