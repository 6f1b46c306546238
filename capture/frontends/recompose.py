"""Lift decomposed ATen back to the composite operators that capture keeps whole.

    %t = t(@weight)                                    %y = linear(%x, @weight, @bias)
    %a = reshape(%x, [B*S, K])               ==>
    %b = addmm(@bias, %a, %t)
    %y = reshape(%b, [B, S, N])

    %y, %mean, %rstd = native_layer_norm(%x, ...)  ==>  %y = layer_norm(%x, ...)     and so on

Graphs of AOTAutograd and of plain dispatch tracing come decomposed. Does not fire where a second result (a
mean, a log-sum-exp, indices) is used, where dropout is on, or where sizes do not match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from capture.ir import Graph, Node, Origin, Value, op_name
from capture.ir.dims import normalise, product

__all__ = ["recompose"]

aten = torch.ops.aten

Composite = tuple[Any, list[Any], dict[str, Any]]  # op, operands, keyword operands


def recompose(graph: Graph) -> dict[str, int]:
    """Rewrite the graph in place; returns how often each composite operator was put together."""
    made: Counter[str] = Counter()
    for node in graph.nodes:
        for region in node.regions:
            made.update(recompose(region))
        if (rule := _RULES.get(node.op)) and (composite := rule(node)):
            made[_replace(graph, node, composite)] += 1
    for node in graph.find(aten.reshape.default):
        if composite := _without_flattening(node) or _batched_matmul(node):
            inner = node.operands[0].producer
            name = _replace(graph, node, composite)
            # A linear that was counted before has only grown its axes.
            made[name] += not (name == "linear" and inner is not None and inner.is_op(aten.linear.default))
    return dict(made)


def _replace(graph: Graph, node: Node, composite: Composite) -> str:
    """Put the composite in the node's place, and take out what only the node used. Returns its name."""
    op, operands, kwargs = composite
    first, feeding = node.results[0], node.operand_values
    types = [first.type] if len(op._schema.returns) == 1 else None
    new = graph.add_node(op, operands, kwargs, types=types, origin=node.origin, before=node)
    graph.replace_uses(first, new.results[0])
    graph.erase(node)
    for origin in _erase_unused(graph, feeding):
        new.origin = origin | new.origin
    return op_name(op).split(".")[1]


def _erase_unused(graph: Graph, values: list[Value]) -> list[Origin]:
    """Take out the producers that nobody needs any more, and theirs; returns their origins, latest first."""
    origins: list[Origin] = []
    for value in values:
        node = value.producer
        if node is not None and node.graph is graph and not any(v.num_uses for v in node.results):
            feeding = node.operand_values
            graph.erase(node)
            origins += [node.origin, *_erase_unused(graph, feeding)]
    return origins


# -- one node for one ------------------------------------------------------------------------------------


def _alone(node: Node) -> bool:
    """Whether only the first result is used."""
    return not any(v.num_uses for v in node.results[1:])


def _convolution(node: Node) -> Composite | None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = (
        node.arg(a.name) for a in node.op._schema.arguments
    )
    spatial = weight.type.rank - 2
    if x.type.rank != weight.type.rank or spatial not in (1, 2, 3):
        return None
    if transposed:
        op = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)[spatial - 1]
        overload = op.default if spatial == 1 else op.input
        return overload, [x, weight, bias, stride, padding, output_padding, groups, dilation], {}
    op = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)[spatial - 1]
    return op, [x, weight, bias, stride, padding, dilation, groups], {}


def _layer_norm(node: Node) -> Composite | None:
    return (aten.layer_norm.default, list(node.operands), {}) if _alone(node) else None


def _group_norm(node: Node) -> Composite | None:
    x, weight, bias = node.operands[:3]
    shape = x.tensor_type.shape
    told = [normalise(node.arg(name)) for name in ("N", "C", "HxW")]
    if not _alone(node) or told != [shape[0], shape[1], normalise(product(shape[2:]))]:
        return None
    return aten.group_norm.default, [x, node.arg("group"), weight, bias, node.arg("eps")], {}


def _rms_norm(node: Node) -> Composite | None:
    return (aten.rms_norm.default, list(node.operands), {}) if _alone(node) else None


def _inference_batch_norm(node: Node) -> Composite | None:
    if node.arg("training") or not _alone(node):
        return None
    x, weight, bias, mean, var, _, momentum, eps = node.operands
    normal = aten._native_batch_norm_legit_no_training.default
    return normal, [x, weight, bias, mean, var, momentum, eps], {}


def _attention(node: Node) -> Composite | None:
    names = {a.name for a in node.op._schema.arguments}
    if not _alone(node) or node.arg("dropout_p") != 0.0:
        return None
    if "dropout_mask" in names and node.arg("dropout_mask") is not None:
        return None
    mask = next((node.arg(name) for name in ("attn_mask", "attn_bias") if name in names), None)
    q, k, v = node.operands[:3]
    # The kernels take fewer heads of keys than of queries; the composite wants to be told.
    grouped = q.tensor_type.shape[1] != k.tensor_type.shape[1]
    kwargs = {"scale": node.arg("scale"), "enable_gqa": grouped}
    return aten.scaled_dot_product_attention.default, [q, k, v, mask, 0.0, node.arg("is_causal")], kwargs


def _softmax(op: Any) -> Callable[[Node], Composite | None]:
    def rule(node: Node) -> Composite | None:
        x, dim, half_to_float = node.operands
        return None if half_to_float else (op, [x, dim], {})

    return rule


def _renamed(op: Any) -> Callable[[Node], Composite | None]:
    """The same arguments, one result."""

    def rule(node: Node) -> Composite | None:
        return (op, list(node.operands), dict(node.kwargs)) if _alone(node) else None

    return rule


# -- linear layers ---------------------------------------------------------------------------------------


def _transposed(value: Any) -> Value | None:
    """The parameter of which `value` is the transpose: a constant or an input with two axes."""
    node = value.producer if isinstance(value, Value) else None
    if node is None or not node.is_op(aten.t.default, aten.transpose.int, aten.permute.default):
        return None
    source = node.operands[0]
    if source.producer is not None or source.tensor_type.rank != 2:
        return None
    if node.is_op(aten.transpose.int) and {d % 2 for d in node.operands[1:]} != {0, 1}:
        return None
    if node.is_op(aten.permute.default) and [d % 2 for d in node.operands[1]] != [1, 0]:
        return None
    return source


def _linear_of_mm(node: Node) -> Composite | None:
    weight = _transposed(node.operands[1])
    return None if weight is None else (aten.linear.default, [node.operands[0], weight], {})


def _linear_of_addmm(node: Node) -> Composite | None:
    bias, x, transposed = node.operands
    weight = _transposed(transposed)
    if weight is None or node.arg("beta") != 1 or node.arg("alpha") != 1:
        return None
    if bias.tensor_type.shape != weight.tensor_type.shape[:1]:
        return None
    return aten.linear.default, [x, weight, bias], {}


def _source_of_reshape(value: Any) -> Value | None:
    """What a reshape that nobody else uses was given."""
    node = value.producer if isinstance(value, Value) else None
    if node is None or not node.is_op(aten.reshape.default) or value.num_uses != 1:
        return None
    source: Value = node.operands[0]
    return source


def _without_flattening(node: Node) -> Composite | None:
    """reshape(linear(reshape(x))) or reshape(mm(reshape(x), w)): both take any number of leading axes."""
    inner = node.operands[0].producer
    if inner is None or not inner.is_op(aten.linear.default, aten.mm.default) or inner.result.num_uses != 1:
        return None
    flat, *rest = inner.operands
    x = _source_of_reshape(flat)
    if x is None or flat.tensor_type.rank != 2 or x.tensor_type.rank < 3:
        return None
    wanted = (*x.tensor_type.shape[:-1], inner.result.tensor_type.shape[-1])
    if x.tensor_type.shape[-1] != flat.tensor_type.shape[-1] or node.result.tensor_type.shape != wanted:
        return None
    op = aten.linear.default if inner.is_op(aten.linear.default) else aten.matmul.default
    return op, [x, *rest], {}


def _batched_matmul(node: Node) -> Composite | None:
    """reshape(bmm(reshape(expand(a)), reshape(expand(b)))), where expanding changes nothing."""
    inner = node.operands[0].producer
    if inner is None or not inner.is_op(aten.bmm.default) or inner.result.num_uses != 1:
        return None
    sides = [_source_of_reshape(side) for side in inner.operands]
    if None in sides:
        return None
    a, b = (_unexpanded(side) for side in sides)
    (*batch, rows, depth), right = a.tensor_type.shape, b.tensor_type.shape
    columns = right[-1]
    if len(batch) < 2 or right != (*batch, depth, columns):
        return None
    count = normalise(product(tuple(batch)))
    shapes = [side.tensor_type.shape for side in inner.operands]
    if shapes != [(count, rows, depth), (count, depth, columns)]:
        return None
    if node.result.tensor_type.shape != (*batch, rows, columns):
        return None
    return aten.matmul.default, [a, b], {}


def _unexpanded(value: Any) -> Value:
    """What was expanded to the shape that it has already."""
    node = value.producer
    if node is not None and node.is_op(aten.expand.default) and value.num_uses == 1:
        if node.operands[0].tensor_type.shape == value.tensor_type.shape:
            return node.operands[0]
    return value


_RULES: dict[Any, Callable[[Node], Composite | None]] = {
    aten.convolution.default: _convolution,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten._fused_rms_norm.default: _rms_norm,
    aten.native_batch_norm.default: _inference_batch_norm,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention.default: _attention,
    aten._scaled_dot_product_efficient_attention.default: _attention,
    aten._scaled_dot_product_cudnn_attention.default: _attention,
    aten._scaled_dot_product_attention_math.default: _attention,
    aten._softmax.default: _softmax(aten.softmax.int),
    aten._log_softmax.default: _softmax(aten.log_softmax.int),
    aten._adaptive_avg_pool2d.default: _renamed(aten.adaptive_avg_pool2d.default),
    aten._adaptive_avg_pool3d.default: _renamed(aten.adaptive_avg_pool3d.default),
    aten.max_pool2d_with_indices.default: _renamed(aten.max_pool2d.default),
    aten.max_pool3d_with_indices.default: _renamed(aten.max_pool3d.default),
    aten._unsafe_index.Tensor: _renamed(aten.index.Tensor),
    aten._unsafe_index_put.default: _renamed(aten.index_put.default),
    aten.mm.default: _linear_of_mm,
    aten.addmm.default: _linear_of_addmm,
}
