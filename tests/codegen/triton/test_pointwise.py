"""Pointwise kernels in Triton's interpreter: every operator of the table, layouts, and random regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from capture.errors import UnsupportedOpError, UsageError
from capture.ir import Graph, Range, TensorType, symbol
from codegen import triton
from codegen.triton.pointwise import pointwise_file
from tests.codegen.triton.builder import aten, fused, lone, random_region, tensor
from tests.codegen.triton.harness import failures

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
I64, I32, U8, BOOL = torch.int64, torch.int32, torch.uint8, torch.bool
UNARY = """neg abs relu exp exp2 log log2 log10 sqrt rsqrt sin cos erf sigmoid silu log_sigmoid tanh log1p
    expm1 mish reciprocal square hardsigmoid hardswish floor ceil trunc round sign gelu elu celu selu softplus
    leaky_relu hardtanh isnan isinf isfinite logical_not""".split()
BINARY = """add.Tensor sub.Tensor mul.Tensor div.Tensor maximum minimum fmod.Tensor remainder.Tensor
    floor_divide eq.Tensor ne.Tensor lt.Tensor le.Tensor gt.Tensor ge.Tensor logical_and logical_or
    logical_xor hypot""".split()


def overload(name: str) -> Any:
    packet, _, which = name.partition(".")
    return getattr(getattr(aten, packet), which or "default")


def every_operator() -> list[Any]:
    nodes = []
    for place, name in enumerate(UNARY):
        for dtype in (F32, (F64, BF16)[place % 2]):
            nodes.append(lone(overload(name), tensor(dtype, 5, 7)))
    for place, name in enumerate(BINARY):
        for dtype in (F32, (F64, F16)[place % 2]):
            nodes.append(lone(overload(name), tensor(dtype, 5, 7), tensor(dtype, 7)))
    whole = (
        "add.Tensor sub.Tensor mul.Tensor maximum eq.Tensor lt.Tensor bitwise_and.Tensor bitwise_xor.Tensor"
    )
    for name in whole.split():
        for dtype in (I64, I32, U8):
            nodes.append(lone(overload(name), tensor(dtype, 5, 7), tensor(dtype, 7)))
    return nodes


def with_options() -> list[Any]:
    x, y, i = tensor(F32, 5, 7), tensor(F32, 5, 1), tensor(I32, 7)
    nodes = [
        lone(aten.add.Tensor, x, y, alpha=-0.3),
        lone(aten.sub.Tensor, x, 2, alpha=3),
        lone(aten.rsub.Scalar, x, 1.5),
        lone(aten.add.Tensor, tensor(BOOL, 4), tensor(BOOL, 4)),
        lone(aten.mul.Tensor, tensor(BOOL, 4), tensor(BF16, 4)),
        lone(aten.div.Tensor, i, 3),
        lone(aten.floor_divide.default, tensor(I64, 9), -3),
        lone(aten.remainder.Scalar, tensor(I64, 9), -3),
        lone(aten.remainder.Scalar, x, -0.7),
        *(lone(aten.div.Tensor_mode, x, y, rounding_mode=mode) for mode in ("floor", "trunc", None)),
        *(lone(aten.div.Tensor_mode, tensor(I32, 9), -4, rounding_mode=mode) for mode in ("floor", "trunc")),
        *(lone(aten.pow.Tensor_Scalar, x, p) for p in (0, 1, 2, 3, -1, -2, 0.5, -0.5, 2.5, 7)),
        lone(aten.pow.Tensor_Scalar, i, 3),
        lone(aten.pow.Tensor_Tensor, x, y),
        lone(aten.pow.Scalar, 2.5, x),
        lone(aten.where.self, tensor(BOOL, 7), x, y),
        lone(aten.where.ScalarOther, tensor(BOOL, 7), x, -1e30),
        lone(aten.masked_fill.Scalar, x, tensor(BOOL, 5, 1), float("-inf")),
        lone(aten.clamp.default, x, -0.5, 0.5),
        lone(aten.clamp.default, x, None, 0.5),
        lone(aten.clamp.default, i, 2),
        lone(aten.clamp.Tensor, x, y, tensor(F32, 7)),
        lone(aten.gelu.default, x, approximate="tanh"),
        lone(aten.gelu.default, tensor(F64, 9), approximate="tanh"),
        lone(aten.elu.default, x, 0.5, 1.2, 0.9),
        lone(aten.softplus.default, x, 2.0, 1.0),
        lone(aten.leaky_relu.default, x, 0.2),
        lone(aten.lerp.Scalar, x, y, 0.3),
        lone(aten.addcmul.default, x, y, y, value=0.5),
        lone(aten.addcdiv.default, x, y, tensor(F32, 7), value=0.5),
        lone(aten.bitwise_not.default, i),
        lone(aten.bitwise_not.default, tensor(BOOL, 9)),
        *(lone(aten._to_copy.default, x, dtype=d) for d in (F64, F16, BF16, I64, U8, BOOL)),
        *(lone(aten._to_copy.default, tensor(BF16, 9), dtype=d) for d in (F32, I32, BOOL, F16)),
        *(lone(aten._to_copy.default, tensor(d, 9), dtype=F32) for d in (BOOL, U8, I64)),
        lone(aten.gt.Scalar, tensor(BF16, 9), 0.1),
        lone(aten.eq.Tensor, tensor(I64, 9), tensor(F32, 9)),
    ]
    return nodes


def layouts() -> list[Any]:
    """Broadcasting over axes between, channels-last, strided operands, no axis at all, many axes."""
    last = tensor(F32, 2, 5, 3, 4, memory_format="channels_last")
    bias = tensor(F32, 5, 1, 1)
    strided = tensor(F32, 6, 7, memory_format="strided")
    six = tensor(F32, 2, 1, 3, 1, 2, 2), tensor(F32, 1, 2, 1, 3, 1, 2)
    return [
        lone(aten.add.Tensor, tensor(F32, 2, 5, 3, 4), bias),
        lone(aten.add.Tensor, last, bias),
        lone(aten.add.Tensor, last, tensor(F32, 2, 5, 3, 4)),
        lone(aten.mul.Tensor, strided, tensor(F32, 7)),
        lone(aten.add.Tensor, strided, strided),
        lone(aten.mul.Tensor, tensor(F32), tensor(F32)),
        lone(aten.mul.Tensor, tensor(F32, 3, 4), tensor(F64)),
        lone(aten.add.Tensor, tensor(F32, 7, 1), tensor(F32, 1, 9)),
        lone(aten.add.Tensor, *six),
    ]


@pytest.mark.parametrize("nodes", [every_operator, with_options, layouts])
def test_agrees_with_the_reference(nodes: Any, tmp_path: Path) -> None:
    files = [pointwise_file(node, {}) for node in nodes()]
    assert failures(files, tmp_path) == []


def test_random_regions_agree_with_their_references(tmp_path: Path) -> None:
    files = [pointwise_file(random_region(seed), {}) for seed in range(25)]
    assert failures(files, tmp_path) == []


def test_sizes_that_vary_are_arguments(tmp_path: Path) -> None:
    graph = Graph()
    graph.dims["N"] = Range(1, 64)
    x = graph.add_input("x", TensorType(F32, (symbol("N"), 7)))
    y = graph.add_input("y", TensorType(F32, (symbol("N"), 1)))
    total = graph.add_node(aten.add.Tensor, [x, y])
    file = pointwise_file(fused(graph, "pointwise", total.results), graph.dims)
    assert "n, D1," in file.source
    assert "D1: tl.constexpr" not in file.source
    assert "s0, s1 = 64, 7" in file.source
    assert failures([file], tmp_path) == []


def test_equal_pieces_share_a_name_and_an_unlike_one_has_another() -> None:
    one, other = (pointwise_file(lone(aten.exp.default, tensor(F32, 8)), {}) for _ in range(2))
    assert one.source == other.source
    assert one.name == one.for_more(["layer.3: exp"]).name
    assert "    layer.3: exp" in one.for_more(["layer.3: exp"]).source
    assert pointwise_file(lone(aten.exp.default, tensor(BF16, 8)), {}).name != one.name


def test_only_operands_that_need_it_are_masked_or_divided_for() -> None:
    node = lone(aten.add.Tensor, tensor(F32, 4, 8), tensor(F32))
    text = pointwise_file(node, {}).kernels
    assert "x = tl.load(x_ptr + index, mask)" in text
    assert "x1 = tl.load(x1_ptr)" in text
    assert "//" not in text


def test_an_operator_outside_the_table_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedOpError, match=r"aten\.lgamma"):
        pointwise_file(lone(aten.lgamma.default, tensor(F32, 8)), {})
    with pytest.raises(UnsupportedOpError, match="c64"):
        pointwise_file(lone(aten.exp.default, tensor(torch.complex64, 8)), {})


def test_users_extend_the_table(tmp_path: Path) -> None:
    node = lone(aten.lgamma.default, tensor(F32, 8))
    op = aten.lgamma.default
    square = "\n@triton.jit\ndef doubled(x):\n    return x + x\n"
    try:
        triton.register_lowering(op, lambda k, x: f"{k.helper('doubled', square)}({x})")
        text = pointwise_file(node, {}).kernels
    finally:
        triton.register_lowering(op, None)
    assert "v0 = doubled(x)  # aten.lgamma" in text
    assert "def doubled(x):" in text
    with pytest.raises(UsageError, match="is not an operator"):
        triton.register_lowering("lgamma", None)
