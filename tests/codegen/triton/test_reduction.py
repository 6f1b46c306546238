"""Reductions in Triton's interpreter: each operator in each form, and fused with what is beside them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from capture.errors import UnsupportedOpError
from capture.ir import Graph, Node, Range, TensorType, symbol
from codegen.triton.lower import kernel_file
from codegen.triton.reduction import reduction_file
from tests.codegen.triton.builder import aten, fused, lone, tensor
from tests.codegen.triton.harness import failures

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def every_operator(*shape: int, dtype: torch.dtype = F32) -> Iterator[Node]:
    x, last = tensor(dtype, *shape), tensor(dtype, shape[-1])
    yield lone(aten.sum.dim_IntList, x, [-1])
    yield lone(aten.sum.dim_IntList, x, [0], True)
    yield lone(aten.sum.default, x)
    yield lone(aten.mean.dim, x, [-1], True)
    yield lone(aten.mean.default, x)
    yield lone(aten.amax.default, x, [-1])
    yield lone(aten.amin.default, x, [0])
    yield lone(aten.max.default, x)
    if shape[-1] < 1000:  # slow in the interpreter
        yield lone(aten.prod.dim_int, x, -1)
    yield lone(aten.any.dim, x, -1)
    yield lone(aten.all.dim, x, 0)
    yield lone(aten.var.correction, x, [-1], correction=1)
    yield lone(aten.var.dim, x, [-1], False)
    yield lone(aten.std.correction, x, [0])
    yield lone(aten.softmax.int, x, -1)
    yield lone(aten.softmax.int, x, 0)
    yield lone(aten.log_softmax.int, x, -1)
    yield lone(aten.logsumexp.default, x, [-1])
    yield lone(aten.argmax.default, x, -1)
    yield lone(aten.argmin.default, x, 0)
    yield lone(aten.argmax.default, x)
    yield lone(aten.cumsum.default, x, -1)
    yield lone(aten.layer_norm.default, x, [shape[-1]], last, last, 1e-5)
    yield lone(aten.layer_norm.default, x, [shape[-1]])
    yield lone(aten.rms_norm.default, x, [shape[-1]], last)
    yield lone(aten.rms_norm.default, x, [shape[-1]], None, 1e-6)
    for order in (1, 2, float("inf")):
        yield lone(aten.linalg_vector_norm.default, x, order, [-1])


def test_whole_rows_agree(tmp_path: Path) -> None:
    nodes = [*every_operator(5, 70), *every_operator(20, dtype=BF16), *every_operator(9, dtype=F64)]
    assert failures([reduction_file(node, {}) for node in nodes], tmp_path) == []


LONG = [(3, 9000), (9000, 3)]


def test_long_rows_agree_in_chunks_and_in_parts(tmp_path: Path) -> None:
    files = []
    for shape in LONG:
        x, axis = tensor(F32, *shape), shape.index(9000)
        files.append(reduction_file(lone(aten.var.correction, x, [axis], correction=1), {}))
        if axis:
            files.append(reduction_file(lone(aten.softmax.int, x, axis), {}))
            files.append(reduction_file(lone(aten.argmax.default, x, axis), {}))
        files.append(reduction_file(lone(aten.cumsum.default, x, axis), {}))
    assert failures(files, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("shape", LONG, ids=["rows", "columns"])
def test_every_long_reduction_agrees(shape: tuple[int, int], tmp_path: Path) -> None:
    files = [reduction_file(node, {}) for node in every_operator(*shape)]
    assert any("_parts[" in file.source for file in files)
    assert any("_loop[" in file.source for file in files)
    assert failures(files, tmp_path) == []


def whole_numbers() -> Iterator[Node]:
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool):
        yield lone(aten.sum.dim_IntList, tensor(dtype, 5, 7), [-1])
        yield lone(aten.any.dim, tensor(dtype, 5, 7), -1)
        yield lone(aten.cumsum.default, tensor(dtype, 5, 7), 0)
        if dtype is not torch.bool:
            yield lone(aten.amax.default, tensor(dtype, 5, 7), [0])
            yield lone(aten.amin.default, tensor(dtype, 5, 7), [-1])
    yield lone(aten.sum.dim_IntList, tensor(F16, 5, 7), [-1], dtype=F32)
    yield lone(aten.softmax.int, tensor(F16, 5, 7), -1, F32)


def several_axes() -> Iterator[Node]:
    x = tensor(F32, 2, 3, 5, 7)
    for axes in ([1, 2], [0, 3], [2, 3], [0, 2, 3], [1]):
        yield lone(aten.mean.dim, x, axes, True)
        yield lone(aten.var.correction, tensor(F32, 2, 3, 5, 7, memory_format="channels_last"), axes)
    yield lone(aten.mean.dim, tensor(F32, 5, 7, memory_format="strided"), [0])
    yield lone(aten.layer_norm.default, x, [5, 7], tensor(F32, 5, 7), None)


def losses() -> Iterator[Node]:
    """Cross-entropy by its reduction, with an ignored class, over long rows, with axes after the classes."""
    op, rows = aten.cross_entropy_loss.default, tensor(torch.int64, 5)
    for reduction in (0, 1, 2):
        yield lone(op, tensor(F32, 5, 70), rows, None, reduction, 1)
    yield lone(op, tensor(F32, 5, 9000), rows)
    yield lone(op, tensor(BF16, 2, 7, 5), tensor(torch.int64, 2, 5))
    yield lone(op, tensor(F64, 5, 7), rows)


def test_group_norms_agree(tmp_path: Path) -> None:
    op, image = aten.group_norm.default, tensor(F32, 2, 8, 3, 5)
    nodes = [
        lone(op, image, 4, tensor(F32, 8), tensor(F32, 8)),
        lone(op, image, 8, tensor(F32, 8)),
        lone(op, image, 2),
        lone(op, tensor(BF16, 2, 8), 2, tensor(BF16, 8), tensor(BF16, 8)),
        lone(op, tensor(F32, 2, 8, 64, 64), 2, tensor(F32, 8), tensor(F32, 8)),
    ]
    assert failures([kernel_file(node, {}) for node in nodes], tmp_path) == []


@pytest.mark.parametrize("nodes", [whole_numbers, several_axes, losses])
def test_dtypes_and_axes_agree(nodes: Any, tmp_path: Path) -> None:
    assert failures([reduction_file(node, {}) for node in nodes()], tmp_path) == []


def attention_softmax(dtype: torch.dtype = F32, columns: int = 12) -> Node:
    """softmax(x * scale + mask), and the mask one row for all heads."""
    graph = Graph()
    x = graph.add_input("x", tensor(dtype, 2, 3, 12, columns))
    mask = graph.add_input("mask", tensor(dtype, 2, 1, 1, columns))
    scaled = graph.add_node(aten.mul.Tensor, [x, 0.125]).result
    masked = graph.add_node(aten.add.Tensor, [scaled, mask]).result
    return fused(graph, "reduction", graph.add_node(aten.softmax.int, [masked, -1]).results)


def taken_apart_rms_norm(columns: int = 12) -> Node:
    """x * rsqrt(mean(x ** 2) + eps) * weight, and the mean goes out too, without its axis."""
    graph = Graph()
    x = graph.add_input("x", tensor(BF16, 5, columns))
    weight = graph.add_constant("norm.weight", tensor(BF16, columns))
    wide = graph.add_node(aten._to_copy.default, [x], {"dtype": F32}).result
    square = graph.add_node(aten.pow.Tensor_Scalar, [wide, 2]).result
    mean = graph.add_node(aten.mean.dim, [square, [-1], True]).result
    moved = graph.add_node(aten.add.Tensor, [mean, 1e-6]).result
    scale = graph.add_node(aten.rsqrt.default, [moved]).result
    scaled = graph.add_node(aten.mul.Tensor, [wide, scale]).result
    back = graph.add_node(aten._to_copy.default, [scaled], {"dtype": BF16}).result
    return fused(graph, "reduction", [mean, graph.add_node(aten.mul.Tensor, [back, weight]).result])


def residual_layer_norm(columns: int = 12) -> Node:
    """layer_norm(x + y), where the sum goes out as well."""
    graph = Graph()
    x, y = (graph.add_input(name, tensor(F32, 2, 5, columns)) for name in "xy")
    weight, bias = (graph.add_constant(f"norm.{n}", tensor(F32, columns)) for n in ("weight", "bias"))
    total = graph.add_node(aten.add.Tensor, [x, y]).result
    norm = graph.add_node(aten.layer_norm.default, [total, [columns], weight, bias, 1e-5]).result
    return fused(graph, "reduction", [total, norm])


def beside_rows(columns: int = 12) -> Node:
    """sqrt(sum(x * y)) + offset: what follows lives on the rows without the reduced axis."""
    graph = Graph()
    x, y = (graph.add_input(name, tensor(F32, 2, 5, columns)) for name in "xy")
    offset = graph.add_input("offset", tensor(F32, 5))
    product = graph.add_node(aten.mul.Tensor, [x, y]).result
    total = graph.add_node(aten.sum.dim_IntList, [product, [-1]]).result
    return fused(graph, "reduction", graph.add_node(aten.add.Tensor, [total, offset]).results)


def two_passes(columns: int = 12) -> Node:
    """var of exp(x - amax(x)): a reduction that needs another one's result."""
    graph = Graph()
    x = graph.add_input("x", tensor(F32, 5, columns))
    best = graph.add_node(aten.amax.default, [x, [-1], True]).result
    apart = graph.add_node(aten.sub.Tensor, [x, best]).result
    raised = graph.add_node(aten.exp.default, [apart]).result
    return fused(graph, "reduction", graph.add_node(aten.var.correction, [raised, [-1]]).results)


def test_fusions_agree(tmp_path: Path) -> None:
    made = [attention_softmax(F16), attention_softmax(columns=9000)]
    made += [taken_apart_rms_norm(), residual_layer_norm(9000), beside_rows(), two_passes(), two_passes(9000)]
    assert failures([reduction_file(node, {}) for node in made], tmp_path) == []


def random_rows(seed: int) -> Node:
    """Pointwise operators before, between and after reductions along one set of axes."""
    draw = random.Random(seed)
    graph = Graph()
    shape = tuple(draw.choice([2, 3, 5, 8]) for _ in range(draw.randint(1, 3)))
    axes = sorted(draw.sample(range(len(shape)), draw.randint(1, len(shape))))
    kept = [size if draw.random() < 0.5 else 1 for size in shape]
    wide = [graph.add_input("x", tensor(draw.choice([F32, BF16, F64]), *shape))]
    wide.append(graph.add_node(aten.mul.Tensor, [wide[0], graph.add_input("y", tensor(F32, *kept))]).result)
    for _ in range(draw.randint(1, 3)):
        x = draw.choice(wide)
        op = draw.choice([aten.mean.dim, aten.amax.default, aten.sum.dim_IntList, aten.logsumexp.default])
        row = graph.add_node(op, [x, axes, True]).result
        if draw.random() < 0.5:
            row = graph.add_node(aten.tanh.default, [row]).result
        wide.append(graph.add_node(draw.choice([aten.sub.Tensor, aten.add.Tensor]), [x, row]).result)
    return fused(graph, "reduction", wide[2:])


def test_random_regions_agree(tmp_path: Path) -> None:
    assert failures([reduction_file(random_rows(seed), {}) for seed in range(12)], tmp_path) == []


def test_rows_of_a_length_that_varies_have_all_forms(tmp_path: Path) -> None:
    graph = Graph()
    graph.dims["T"] = Range(1, 4096)
    x = graph.add_input("x", TensorType(F32, (5, symbol("T"))))
    file = reduction_file(
        fused(graph, "reduction", graph.add_node(aten.sum.dim_IntList, [x, [-1]]).results), {}
    )
    assert all(f"KERNEL{form}[" in file.launch for form in ("", "_parts", "_join", "_loop"))
    assert failures([file], tmp_path) == []


def test_softmax_is_read_twice_where_it_does_not_fit() -> None:
    text = reduction_file(attention_softmax(columns=9000), {}).kernels
    assert text.count("for first in range(0, column_count, COLUMNS):") == 2
    assert "join_exp_sums" in text


@pytest.mark.parametrize(
    "node",
    [
        lambda: lone(aten.sum.dim_IntList, tensor(F32, 5, 1), [-1]),
        lambda: lone(aten.group_norm.default, tensor(F32, 2, 4), 4),
        lambda: lone(aten.linalg_vector_norm.default, tensor(F32, 5, 7), 3, [-1]),
        lambda: lone(aten.argmax.default, tensor(torch.int64, 5, 7), -1),
        lambda: lone(aten.median.default, tensor(F32, 5, 7)),
        lambda: lone(
            aten.cross_entropy_loss.default, tensor(F32, 5, 7), tensor(torch.int64, 5), None, 1, -100, 0.1
        ),
    ],
    ids=["axis of size 1", "groups of one element", "order 3", "argmax of integers", "median", "smoothing"],
)
def test_what_has_no_kernel_is_refused_by_name(node: Any) -> None:
    made = node()
    with pytest.raises(UnsupportedOpError, match=str(made.op).split(".")[1]):
        kernel_file(made, {})
