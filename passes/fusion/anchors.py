"""What runs before and after a product in its kernel: prologues and epilogues.

conv2d -> add -> relu           the chain after it, each value used once and of the anchor's own type
_to_copy -> linear              on a GPU, a cast that widens or a scale: done again for each tile, which
                                costs next to nothing, and the operand is read but once, as it was
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from capture.ir import Graph, Node, TensorType, Value
from passes.fusion.reductions import rows_of
from passes.fusion.target import Target, is_fusable, keeps_type, needs_memory
from passes.lower import kernel_takes

aten = torch.ops.aten

ANCHORS: dict[Any, str] = {
    aten.conv1d.default: "conv",
    aten.conv2d.default: "conv",
    aten.conv3d.default: "conv",
    aten.linear.default: "linear",
    aten.mm.default: "matmul",
    aten.bmm.default: "matmul",
    aten.addmm.default: "matmul",
    aten.baddbmm.default: "matmul",
    aten.matmul.default: "matmul",
}
_SCALES = (aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar)


def anchored_groups(
    graph: Graph, target: Target, elsewhere: Iterable[Node] = ()
) -> list[tuple[str, list[Node]]]:
    """(kind, nodes in graph order) of each product that takes others into its kernel; disjoint.

    Args:
        elsewhere: nodes that belong to other regions.
    """
    taken = set(elsewhere)
    found = []
    for anchor in graph.find(*ANCHORS):
        group = [*prologue(anchor, target, taken), *epilogue(graph, anchor, target, taken)]
        if len(group) > 1:
            order = graph.order()
            found.append((ANCHORS[anchor.op], sorted(group, key=order.__getitem__)))
            taken.update(group)
    return found


def epilogue(
    graph: Graph, anchor: Node, target: Target, taken: set[Node] | frozenset[Node] = frozenset()
) -> list[Node]:
    """The anchor and the chain of pointwise operators that may run before its result leaves the kernel."""
    group = [anchor]
    while len(group) < target.max_ops:
        value = group[-1].results[0]
        if value.num_uses != 1 or len(value.users) != 1:
            break
        user = value.users[0]
        if user in taken or not is_fusable(user) or not keeps_type(value, user):
            break
        group.append(user)
    if target.one_kernel:
        return group[:1] if ANCHORS[anchor.op] == "matmul" and _is_for_reduction(group) else group
    return _as_calls(graph, group)


def _as_calls(graph: Graph, group: list[Node]) -> list[Node]:
    """What of an epilogue a CPU's kernel does; without one, what runs in the memory of the result."""
    length = kernel_takes(graph, group[0], group[1:])
    if length is not None:
        return group[: 1 + length]
    rest = group[1:]
    while rest and needs_memory(rest if ANCHORS[group[0].op] != "matmul" else [group[0], *rest]):
        rest.pop()
    return [group[0], *rest]


def _is_for_reduction(group: list[Node]) -> bool:
    """Whether a softmax, say, reads the chain: in its kernel the bytes are the same, and the product stays a
    library's."""
    return len(group) > 1 and any(rows_of(user) is not None for user in group[-1].results[0].users)


def prologue(anchor: Node, target: Target, taken: set[Node]) -> list[Node]:
    """Casts that widen and scales by a number of what the anchor multiplies, for it alone."""
    if not target.one_kernel:
        return []
    found = []
    for operand in anchor.operand_values:
        node = operand.producer
        if node is None or node in taken or operand.num_uses != 1 or operand.is_result:
            continue
        if is_fusable(node) and _is_free(node):
            found.append(node)
            break
    return found


def _is_free(node: Node) -> bool:
    """Whether it costs the kernel nothing to do it for each tile anew, in the bytes read either."""
    source = node.operands[0]
    if not isinstance(source, Value) or not isinstance(source.type, TensorType):
        return False
    if node.is_op(*_SCALES):
        return not isinstance(node.operands[1], Value) and keeps_type(source, node)
    cast = node.is_op(aten._to_copy.default) and set(node.kwargs) == {"dtype"}
    result = node.results[0].tensor_type
    return cast and source.type.dtype.itemsize <= result.dtype.itemsize


__all__ = ["ANCHORS", "anchored_groups", "epilogue", "prologue"]
