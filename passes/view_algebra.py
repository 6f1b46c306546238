"""What `simplify` knows of shapes: permutations, reshapes, expansions, and a transposed weight's product."""

from __future__ import annotations

from typing import Any

import torch

from capture.ir import Constant, Node, TensorType, Value
from capture.ir.types import CONTIGUOUS
from passes.algebra import IDENTITY, INVERSE, JOINED, Call, Same, producer, same_shape, source

aten = torch.ops.aten

PERMUTATIONS = {
    aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.mT.default,
    aten.swapaxes.default, aten.swapdims.default, aten.movedim.int, aten.movedim.intlist,
}  # fmt: skip
RESHAPES = {
    aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.view_as.default, aten.reshape_as.default,
}  # fmt: skip
_LONGEST_CHAIN = 8  # of reshapes looked through: keeps the whole sweep linear


def permutation(node: Node) -> list[int]:
    """Which axis of its operand each axis of a permuting node's result is."""
    sizes = range(2, 2 + source(node).tensor_type.rank)
    permuted = node.op(torch.empty(tuple(sizes), device="meta"), *node.operands[1:], **node.kwargs)
    return [size - 2 for size in permuted.shape]


def permuted(node: Node) -> Same | Call | None:
    """A permutation that moves nothing, or one after another."""
    order = permutation(node)
    if order == sorted(order):
        return Same(source(node), IDENTITY)
    before = producer(source(node))
    if before is None or before.op not in PERMUTATIONS:
        return None
    inner = permutation(before)
    joined = [inner[axis] for axis in order]
    if joined == sorted(joined):
        return Same(source(before), INVERSE, (before,))
    return Call(aten.permute.default, [source(before), joined], JOINED, (before,))


def reshaped(node: Node) -> Same | Call | None:
    """A reshape to a shape that the value had before, or one after another."""
    if same := same_shape(node):
        return same
    chain: list[Node] = []
    before = producer(source(node))
    while before is not None and before.op in RESHAPES and len(chain) < _LONGEST_CHAIN:
        chain.append(before)
        if source(before).tensor_type.same_value_as(node.result.type):
            return Same(source(before), INVERSE, tuple(chain))
        before = producer(source(before))
    if node.op is not aten.reshape.default or not chain:
        return None
    # Of a strided value the first reshape makes a dense copy; without it the result might be a strided view.
    if source(chain[0]).tensor_type.memory_format != CONTIGUOUS:
        return None
    return Call(node.op, [source(chain[0]), node.arg("shape")], JOINED, (chain[0],))


def expanded(node: Node) -> Same | Call | None:
    """An expand to the same shape, or one after another."""
    if same := same_shape(node):
        return same
    before = producer(source(node))
    if before is None or before.op is not aten.expand.default:
        return None
    return Call(node.op, [source(before), list(node.result.tensor_type.shape)], JOINED, (before,))


def product_with_transposed(node: Node) -> Call | None:
    """mm, matmul or addmm with a transposed 2-D constant: linear holds its weight that way round."""
    is_addmm = node.op is aten.addmm.default
    weight = transposed_constant(node.operands[2 if is_addmm else 1])
    if weight is None:
        return None
    x = node.operands[1 if is_addmm else 0]
    operands: list[Any] = [x, source(weight)]
    if is_addmm:
        bias = node.operands[0]
        if (node.arg("beta"), node.arg("alpha")) != (1, 1) or not is_bias(bias, node.result):
            return None
        operands.append(bias)
    return Call(aten.linear.default, operands, "a product with a transposed weight", (weight,))


def transposed_constant(value: Any) -> Node | None:
    """The node that transposes a 2-D constant into `value`."""
    node = producer(value)
    if node is None or node.op not in PERMUTATIONS or not isinstance(source(node), Constant):
        return None
    return node if permutation(node) == [1, 0] else None


def is_bias(value: Any, result: Value) -> bool:
    """Whether addmm adds it as linear would: one number per column."""
    type_ = value.type
    return isinstance(type_, TensorType) and type_.shape == result.tensor_type.shape[-1:]
