"""What a node costs: floating-point operations and bytes moved, from its types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from capture.ir import dims
from capture.ir import graph as ir
from capture.ir.dims import Dim
from capture.ir.ops import Fusion, Trait, op_name, traits
from capture.ir.types import TensorType


@dataclass(frozen=True)
class Cost:
    """FLOPs (a multiply-add is two), bytes read, bytes written; sizes may be symbolic."""

    flops: Dim
    bytes_read: Dim
    bytes_written: Dim


def cost(node: ir.Node) -> Cost:
    """Cost of a node as if each operand were read once and each result written once; views cost nothing."""
    if not isinstance(node.op, Fusion) and Trait.VIEW in traits(node.op):
        return Cost(0, 0, 0)
    read = _total(v.type.nbytes for v in dict.fromkeys(node.operand_values) if isinstance(v.type, TensorType))
    written = _total(v.type.nbytes for v in node.results if isinstance(v.type, TensorType))
    return Cost(flops(node), read, written)


def flops(node: ir.Node) -> Dim:
    """Floating-point operations of a node; of a fusion, the sum over its region."""
    if node.regions:
        return _total(flops(n) for region in node.regions for n in region.nodes)
    name = op_name(node.op).removeprefix("aten.").partition(".")[0]
    if name in _FORMULAS:
        return _FORMULAS[name](node)
    kind = traits(node.op)
    if kind & (Trait.VIEW | Trait.MOVE):
        return 0
    if kind & (Trait.REDUCTION | Trait.NORM | Trait.POOL):
        return _numel(node.operand_values[0])
    return _numel(node.results[0]) if node.results else 0


def _numel(value: ir.Value) -> Dim:
    return value.type.numel if isinstance(value.type, TensorType) else 1


def _total(parts: object) -> Dim:
    total: Dim = 0
    for part in parts:  # type: ignore[attr-defined]
        total = total + part
    return dims.canonical(total)


def _tensors(node: ir.Node) -> list[TensorType]:
    return [v.type for v in node.operand_values if isinstance(v.type, TensorType)]


def _linear(node: ir.Node) -> Dim:
    x, weight = _tensors(node)[:2]
    return dims.canonical(2 * x.numel * weight.shape[0])


def _matmul(node: ir.Node) -> Dim:
    """mm, bmm, matmul: the result's elements times the contracted size."""
    a = _tensors(node)[0]
    return dims.canonical(2 * _numel(node.results[0]) * (a.shape[-1] if a.rank else 1))


def _addmm(node: ir.Node) -> Dim:
    _, a, b = _tensors(node)[:3]
    return dims.canonical(2 * _numel(node.results[0]) * (a.shape[-1] if b.rank else 1))


def _conv(node: ir.Node) -> Dim:
    weight = _tensors(node)[1]
    return dims.canonical(2 * _numel(node.results[0]) * dims.product(weight.shape[1:]))


def _conv_transpose(node: ir.Node) -> Dim:
    x, weight = _tensors(node)[:2]
    return dims.canonical(2 * x.numel * dims.product(weight.shape[1:]))


def _attention(node: ir.Node) -> Dim:
    query, key, value = _tensors(node)[:3]
    scores = dims.product((*query.shape[:-1], key.shape[-2]))
    return dims.canonical(2 * scores * (query.shape[-1] + value.shape[-1]))


_FORMULAS: dict[str, Callable[[ir.Node], Dim]] = {
    "linear": _linear,
    "mm": _matmul, "bmm": _matmul, "matmul": _matmul, "mv": _matmul, "dot": _matmul,
    "addmm": _addmm, "baddbmm": _addmm, "addmv": _addmm,
    "conv1d": _conv, "conv2d": _conv, "conv3d": _conv, "convolution": _conv,
    "conv_transpose1d": _conv_transpose, "conv_transpose2d": _conv_transpose,
    "conv_transpose3d": _conv_transpose,
    "scaled_dot_product_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
}  # fmt: skip
