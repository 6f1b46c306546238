"""Small graphs for kernels: a lone node, or a region of several."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from capture.ir import Fusion, Graph, Node, TensorType, Value
from passes.regions import make_region

aten = torch.ops.aten


def tensor(dtype: torch.dtype, *shape: Any, memory_format: str = "contiguous") -> TensorType:
    return TensorType(dtype, shape, memory_format)


def lone(op: Any, *operands: Any, **keywords: Any) -> Node:
    """A graph of one node; operands that are types become inputs."""
    graph = Graph()

    def given(operand: Any) -> Any:
        return graph.add_input("x", operand) if isinstance(operand, TensorType) else operand

    node = graph.add_node(op, [given(v) for v in operands], {k: given(v) for k, v in keywords.items()})
    graph.set_results(node.results)
    return node


def fused(graph: Graph, kind: str, results: Sequence[Value]) -> Node:
    """All nodes of a graph as one region."""
    graph.set_results(results)
    return make_region(graph, Fusion(kind), list(graph.nodes))


FLOATS = ["relu", "tanh", "sigmoid", "neg", "abs", "exp", "silu", "gelu", "sin", "floor"]


def random_region(seed: int) -> Node:
    """A region of pointwise operators over tensors that broadcast, of several dtypes."""
    draw = random.Random(seed)
    graph = Graph()
    shape = [draw.choice([2, 3, 5, 8]) for _ in range(draw.randint(1, 4))]
    dtype = draw.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64])

    def new_input() -> Value:
        axes = [size if draw.random() < 0.6 else 1 for size in shape]
        kind = draw.choice([dtype, dtype, torch.float32, torch.int64, torch.bool])
        return graph.add_input("x", TensorType(kind, tuple(axes[draw.randint(0, len(axes) - 1) :])))

    values = [graph.add_input("x", TensorType(dtype, tuple(shape)))]
    for _ in range(draw.randint(2, 9)):
        x = draw.choice(values)
        floats = x.tensor_type.dtype.is_floating_point
        choice = draw.random()
        if choice < 0.35 and floats:
            node = graph.add_node(getattr(aten, draw.choice(FLOATS)).default, [x])
        elif choice < 0.45:
            node = graph.add_node(aten._to_copy.default, [x], {"dtype": draw.choice([dtype, torch.float32])})
        elif choice < 0.6:
            other = draw.choice([*values, new_input()])
            node = graph.add_node(draw.choice([aten.gt.Tensor, aten.le.Tensor]), [x, other])
            third = draw.choice(values)
            node = graph.add_node(aten.where.self, [node.result, x, third])
        elif choice < 0.7:
            node = graph.add_node(
                draw.choice([aten.mul.Tensor, aten.add.Tensor]), [x, draw.choice([2, 0.1, -3])]
            )
        else:
            other = draw.choice([*values, new_input(), new_input()])
            op = draw.choice([aten.add.Tensor, aten.mul.Tensor, aten.maximum.default])
            node = graph.add_node(op, [x, other])
        if node.result.tensor_type.shape == tuple(shape):
            values.append(node.result)
    made = [v for v in values if v.producer is not None]
    for node in reversed(list(graph.nodes)):
        if not any(v in made[-1:] or v.users for v in node.results):
            graph.erase(node)
    extra = [
        v for v in made[:-1] if v.producer is not None and v.producer.graph is graph and draw.random() < 0.3
    ]
    return fused(graph, "pointwise", [*extra, made[-1]])
