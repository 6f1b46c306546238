"""Which layers have an integer kernel, and why the others stay float."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from capture.ir import Graph, Node, TensorType, Trait, Value, has, op_name
from passes.queries import fixed_tensor

aten = torch.ops.aten

CONV, LINEAR = aten.conv2d.default, aten.linear.default
_PRODUCTS = Trait.MATMUL | Trait.CONV


def products(graph: Graph) -> list[Node]:
    """The convolutions and products of the graph itself (not of branches), in order."""
    return [node for node in graph.nodes if has(node.op, _PRODUCTS)]


def hidden_products(graph: Graph) -> Iterator[Node]:
    """Those in branches of conditions, which calibration may never reach."""
    for node in graph.nodes:
        for region in node.regions:
            yield from products(region)
            yield from hidden_products(region)


def names_of(node: Node) -> tuple[str, ...]:
    """What a configuration may call a layer: its module paths; several where layers were merged."""
    return node.origin.modules


def refusal(graph: Graph, node: Node) -> str | None:
    """Why a layer has no int8 kernel where it lies; None where it has one (oneDNN's, on a CPU)."""
    if not node.is_op(CONV, LINEAR):
        return f"there is no int8 kernel for {op_name(node.op)}"
    x, weight, bias = node.operands[0], node.arg("weight"), node.arg("bias")
    assert isinstance(x, Value)
    type_ = x.tensor_type
    if type_.device.type != "cpu":
        return f"there is no int8 kernel on {type_.device.type}"
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch has no oneDNN"
    if type_.dtype != torch.float32:
        return "the int8 kernels take the place of float32 ones only"
    tensor = fixed_tensor(graph, weight)
    if tensor is None or not tensor.numel():
        return "its weight is not constant, or empty"
    if bias is not None and fixed_tensor(graph, bias) is None:
        return "its bias is not constant"
    if not bool(tensor.isfinite().all()):
        return "its weight is not finite"
    fits = type_.rank == tensor.dim() == 4 if node.is_op(CONV) else type_.rank >= 2 and tensor.dim() == 2
    if not fits or any(d == 0 for d in type_.shape):
        return "its input has no batch dimension, or no elements"
    return None


def is_tensor_like(value: object, other: Value) -> bool:
    """Whether a value is a tensor of the same shape, dtype and device as another."""
    return (
        isinstance(value, Value)
        and isinstance(value.type, TensorType)
        and value.type.same_value_as(other.type)
    )


__all__ = ["CONV", "LINEAR", "hidden_products", "is_tensor_like", "names_of", "products", "refusal"]
