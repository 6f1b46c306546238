"""Gather what lies between a dequantize and a quantize into regions that integer kernels do.

    xd = dequantize(xq);  Wd = dequantize(W.int8)          y = fusion.qconv(xq, W.int8, W.scale, b) {
    y = quantize(relu(conv2d(xd, Wd, b)))         ==>          ... the same nodes ...
                                                           }

    q(reshape(dq(x)))                             ==>      reshape(x), where both have one scale
    clone(dq(x))                                  ==>      dq(clone(x))
    q(max_pool2d(dq(x)))                          ==>      fusion.qpool(x), likewise

Convolutions and linear layers take what oneDNN does in the same kernel: an activation, a sum with a residual
(for convolutions integers, for linear layers float), and the quantise node after them. A dequantize that
several read is repeated for each. `lower-int8` then chooses the kernels.

Does not fire on weights that are not constant int8 by channel, on activations that are not uint8 by tensor,
across values with another use, on other devices than CPUs, or on ops that oneDNN has no integer kernel for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from capture.ir import Constant, Fusion, Graph, Node, Value
from capture.ir.quantized import NAMESPACE
from passes.base import Pass, PassResult, register_pass
from passes.dce import sweep
from passes.fusion.target import is_fusable, keeps_type
from passes.lower import Epilogue, match_epilogue
from passes.regions import make_region

aten = torch.ops.aten

QUANTIZE = f"{NAMESPACE}.quantize_per_tensor"
DEQUANTIZE = f"{NAMESPACE}.dequantize_per_tensor"
DEQUANTIZE_WEIGHT = f"{NAMESPACE}.dequantize_per_channel"
LAYERS: dict[Any, str] = {aten.conv2d.default: "qconv", aten.linear.default: "qlinear"}
MOVES = (
    aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.permute.default,
    aten.transpose.int, aten.squeeze.dim, aten.unsqueeze.default, aten.clone.default, aten.cat.default,
)  # fmt: skip
_LONGEST = 2  # operators of an epilogue: a sum and an activation
UNARIES = {"qconv": ("none", "relu", "hardtanh", "hardswish", "swish"), "qlinear": ("none", "relu", "gelu")}


@register_pass
@dataclass(frozen=True)
class FuseQuantized(Pass):
    name = "fuse-quantized"

    def run(self, graph: Graph) -> PassResult:
        if not any(is_quantize(node) or is_dequantize(node) for node in graph.nodes):
            return PassResult(False)
        stats: Counter[str] = Counter()
        for node in [n for n in graph.nodes if is_quantize(n)]:
            if moved(graph, node):
                stats["moved as integers"] += 1
        for copy in [n for n in graph.find(aten.clone.default) if is_bytes(n.operands[0].producer)]:
            copy_integers(graph, copy)
            stats["copied as integers"] += 1
        for anchor in graph.find(*LAYERS):
            if (group := layer_group(graph, anchor)) is not None:
                _gather(graph, LAYERS[anchor.op], group, stats)
        for pool in graph.find(aten.max_pool2d.default):
            if (group := pool_group(pool)) is not None:
                _gather(graph, "qpool", group, stats)
        sweep(graph)  # the nodes that float copies were made by
        return PassResult(bool(stats), dict(stats))


def is_quantize(node: Node | None) -> bool:
    return _is(node, QUANTIZE)


def is_dequantize(node: Node | None) -> bool:
    return _is(node, DEQUANTIZE)


def _is(node: Node | None, name: str) -> bool:
    return node is not None and str(node.op) == f"{name}.default"


def is_bytes(node: Node | None) -> bool:
    """Whether a quantize or dequantize node is between float32 and the whole range of uint8."""
    if not (is_quantize(node) or is_dequantize(node)):
        return False
    assert node is not None
    real = node.results[0] if is_quantize(node) else node.operands[0], node.operands[0], node.results[0]
    types = {v.tensor_type.dtype for v in real}
    return node.operands[3:6] == (0, 255, torch.uint8) and types == {torch.float32, torch.uint8}


def _same_grid(a: Node, b: Node) -> bool:
    """Whether two nodes map between the same integers and numbers: a round trip changes nothing."""
    return a.operands[1:6] == b.operands[1:6]


def moved(graph: Graph, quantize: Node) -> bool:
    """Let integers be moved in place of the numbers that they stand for."""
    move = quantize.operands[0].producer
    if move is None or not move.is_op(*MOVES) or move.results[0].num_uses != 1 or not is_bytes(quantize):
        return False
    sources = list(dict.fromkeys(move.operand_values))
    if not all(is_bytes(v.producer) and _same_grid(v.producer, quantize) for v in sources):
        return False
    integers = {v: v.producer.operands[0] for v in sources}

    def swap(operand: Any) -> Any:
        if isinstance(operand, list | tuple):
            return [swap(v) for v in operand]
        return integers.get(operand, operand) if isinstance(operand, Value) else operand

    made = graph.add_node(
        move.op, swap(list(move.operands)), dict(move.kwargs), origin=move.origin, before=quantize
    )
    graph.replace_node(quantize, [made.result])
    return True


def copy_integers(graph: Graph, copy: Node) -> None:
    """clone(dequantize(x)) as dequantize(clone(x)): a quarter of the bytes, and the kernel reads the copy."""
    dequantize = copy.operands[0].producer
    integers = graph.add_node(
        copy.op, [dequantize.operands[0]], dict(copy.kwargs), origin=copy.origin, before=copy
    )
    made = graph.add_node(
        dequantize.op, [integers.result, *dequantize.operands[1:]], origin=dequantize.origin, before=copy
    )
    graph.replace_node(copy, [made.result])


def layer_group(graph: Graph, anchor: Node) -> list[Node] | None:
    """The nodes of a layer's integer kernel, in graph order; None where there is none."""
    source, weight = anchor.operands[0].producer, anchor.arg("weight").producer
    if not is_bytes(source) or not _is(weight, DEQUANTIZE_WEIGHT):
        return None
    if not _weight_fits(weight) or anchor.results[0].tensor_type.device.type != "cpu":
        return None
    kind = LAYERS[anchor.op]
    chain = _chain(anchor)
    length = epilogue_of(kind, anchor, chain).length
    inside = [source, weight, anchor, *chain[:length]]
    after = _quantize_after(inside[-1])
    if any(n.is_op(aten.add.Tensor) for n in chain[:length]) and kind == "qconv":
        add = next(n for n in chain[:length] if n.is_op(aten.add.Tensor))
        others = [v.producer for v in add.operand_values if is_bytes(v.producer)]
        if after is None or not others:
            inside, after = [source, weight, anchor], None
        else:
            inside.append(others[-1])
    order = graph.order()
    found = dict.fromkeys([*inside, *([after] if after is not None else [])])
    return sorted(found, key=order.__getitem__)


def _chain(anchor: Node) -> list[Node]:
    """The pointwise operators after a layer, each the only reader of the one before."""
    found = [anchor]
    while len(found) <= _LONGEST:
        value = found[-1].results[0]
        user = value.users[0] if value.num_uses == 1 and value.users else None
        if user is None or not is_fusable(user) or not keeps_type(value, user):
            break
        found.append(user)
    return found[1:]


def epilogue_of(kind: str, anchor: Node, chain: list[Node]) -> Epilogue:
    """What of a chain the integer kernel of a layer does; of nothing, an empty epilogue."""
    found = match_epilogue("conv" if kind == "qconv" else "linear", anchor, chain)
    if found.unary[0] not in UNARIES[kind] or found.binary not in ("", "add"):
        return Epilogue()
    return found


def pool_group(pool: Node) -> list[Node] | None:
    """Dequantize, pool, quantize, where both ends have one grid."""
    source, after = pool.operands[0].producer, _quantize_after(pool)
    if not is_bytes(source) or after is None or pool.results[0].tensor_type.device.type != "cpu":
        return None
    assert source is not None
    return [source, pool, after] if _same_grid(source, after) and source.operands[2] >= 0 else None


def _weight_fits(dequantize: Node) -> bool:
    """Constant symmetric int8 with one scale an output channel."""
    integers, scales, zero_points, axis = dequantize.operands[:4]
    constant = isinstance(integers, Constant) and isinstance(scales, Constant)
    return constant and integers.tensor_type.dtype == torch.int8 and zero_points is None and axis == 0


def _quantize_after(node: Node) -> Node | None:
    """The quantise node that alone reads the result."""
    value = node.results[0]
    user = value.users[0] if value.num_uses == 1 and value.users else None
    return user if is_bytes(user) and is_quantize(user) else None


def _gather(graph: Graph, kind: str, group: list[Node], stats: Counter[str]) -> None:
    """Make the region; what others read of its dequantise nodes stays outside."""
    inside = set(group)
    for position, node in enumerate(group):
        if _is(node, DEQUANTIZE) or _is(node, DEQUANTIZE_WEIGHT):
            outside = [user for user in node.results[0].users if user not in inside]
            if not outside:
                continue
            copy = graph.add_node(
                node.op,
                node.operands,
                node.kwargs,
                types=[node.results[0].type],
                origin=node.origin,
                after=node,
            )
            for reader in group:
                reader.replace_operand(node.results[0], copy.result)
            group[position] = copy
    stats[kind] += 1
    make_region(graph, Fusion(kind), group)


__all__ = ["FuseQuantized", "epilogue_of", "is_bytes", "is_dequantize", "is_quantize"]
