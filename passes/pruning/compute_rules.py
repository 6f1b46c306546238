"""Axes of what computes: matrices, convolutions, norms, attention, pools, reductions."""

from __future__ import annotations

from typing import Any

from capture.ir import Node
from passes.pruning.axes import PRODUCT, Axes, Axis, fix, new_size, unify, unify_products
from passes.pruning.rules import Kept, arguments, literal, over, rule, same_from_right, unknown
from passes.queries import packet_name


@rule("linear")
def linear(node: Node, axes: Axes) -> None:
    x, (rows, columns), out = axes.of(node.operands[0]), axes.of(node.operands[1]), axes.of(node.result)
    unify(x[-1], columns)
    unify(out[-1], rows)
    same_from_right(x[:-1], out[:-1])
    if (bias := node.arg("bias")) is not None:
        unify(axes.of(bias)[0], rows)


@rule("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution")
def convolution(node: Node, axes: Axes) -> None:
    """[N, groups * in, ...] by [groups * out, in, ...]; transposed, the weight is [groups * in, out, ...]."""
    x, weight, out = axes.of(node.operands[0]), axes.of(node.operands[1]), axes.of(node.result)
    spatial = len(weight) - 2
    for axis in (*x[len(x) - spatial :], *weight[2:], *out[len(out) - spatial :]):
        fix(axis, "it lies in space")
    if len(x) == len(weight):
        unify(x[0], out[0])
    channels, made = x[len(x) - spatial - 1], out[len(out) - spatial - 1]
    groups = Axis(node.arg("groups"))
    # weight[0] counts the channels of all groups, weight[1] those of one
    long, short = (channels, made) if _is_transposed(node) else (made, channels)
    unify(weight[0], long)
    unify_products([short], [groups, weight[1]])
    unify_products([weight[0]], [groups, Axis(over(weight[0].size, groups.size))])
    if (bias := node.arg("bias")) is not None:
        unify(axes.of(bias)[0], made)


@literal("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution")
def convolution_literal(node: Node, axes: Axes, kept: Kept) -> dict[str, Any]:
    """As many groups as the cut leaves: channels over those of one group."""
    weight = axes.of(node.operands[1])
    short = axes.of(node.result if _is_transposed(node) else node.operands[0])[1 - len(weight)]
    return {"groups": over(new_size(short, kept), new_size(weight[1], kept))}


def _is_transposed(node: Node) -> bool:
    name = packet_name(node.op)
    return "conv_transpose" in name or (name == "aten.convolution" and bool(node.arg("transposed")))


@rule("_native_batch_norm_legit_no_training batch_norm _native_batch_norm_legit_functional instance_norm")
def batch_norm(node: Node, axes: Axes) -> None:
    x = axes.of(node.operands[0])
    same_from_right(x, axes.of(node.results[0]))
    for value in (*node.operand_values[1:], *node.results[1:]):
        if value.tensor_type.rank == 1 and value.tensor_type.shape[0] == x[1].size:
            unify(axes.of(value)[0], x[1])
        else:
            axes.fix([value], "statistics of another shape")


@rule("layer_norm native_layer_norm rms_norm _fused_rms_norm")
def layer_norm(node: Node, axes: Axes) -> None:
    """The mean is then one of fewer channels: what a pruned network's norm takes."""
    x = axes.of(node.operands[0])
    same_from_right(x, axes.of(node.results[0]))
    for name in ("weight", "bias"):
        if name in arguments(node) and (value := node.arg(name)) is not None:
            same_from_right(axes.of(value), x)
    for value in node.results[1:]:
        for a, b in zip(axes.of(value), x, strict=False):
            if a.size != 1:
                unify(a, b)


@literal("layer_norm native_layer_norm rms_norm _fused_rms_norm")
def layer_norm_literal(node: Node, axes: Axes, kept: Kept) -> dict[str, Any]:
    x = axes.of(node.operands[0])
    return {"normalized_shape": [new_size(a, kept) for a in x[len(x) - len(node.arg("normalized_shape")) :]]}


@rule("group_norm")
def group_norm(node: Node, axes: Axes) -> None:
    """Channels are groups times members; a whole group, or the same members of each, may go."""
    x = axes.of(node.operands[0])
    count = node.arg("num_groups")
    unify_products([x[1]], [Axis(count), Axis(over(x[1].size, count))])
    same_from_right(x, axes.of(node.result))
    for name in ("weight", "bias"):
        if (value := node.arg(name)) is not None:
            unify(axes.of(value)[0], x[1])


@literal("group_norm")
def group_norm_literal(node: Node, axes: Axes, kept: Kept) -> dict[str, Any]:
    return {"num_groups": _groups_left(axes.of(node.operands[0])[1], node.arg("num_groups"), kept)}


def _groups_left(axis: Axis, count: int, kept: Kept) -> int:
    """How many of the outer `count` of a product are left."""
    left, done = 1, 1
    for part in _flat(axis):
        if done == count:
            break
        done, left = done * int(part.size), left * int(new_size(part, kept))
    return left


def _flat(axis: Axis) -> list[Axis]:
    root = axis.root
    return [f for p in root.parts for f in _flat(p)] if root.kind == PRODUCT else [root]


@rule("matmul mm bmm")
def matmul(node: Node, axes: Axes) -> None:
    left, right, out = axes.of(node.operands[0]), axes.of(node.operands[1]), axes.of(node.result)
    if len(left) < 2 or len(right) < 2:
        return unknown(node, axes)
    unify(left[-1], right[-2])
    unify(left[-2], out[-2])
    unify(right[-1], out[-1])
    same_from_right(left[:-2], out[:-2])
    same_from_right(right[:-2], out[:-2])
    return None


@rule("addmm baddbmm")
def addmm(node: Node, axes: Axes) -> None:
    added, left, right = (axes.of(v) for v in node.operands[:3])
    out = axes.of(node.result)
    unify(left[-1], right[-2])
    unify(left[-2], out[-2])
    unify(right[-1], out[-1])
    same_from_right(left[:-2], out[:-2])
    same_from_right(right[:-2], out[:-2])
    same_from_right(added, out)


@rule("scaled_dot_product_attention")
def attention(node: Node, axes: Axes) -> None:
    """Heads may go, and channels of the values; the size of a key is in the scale, so it stays."""
    q, k, v = (axes.of(x) for x in node.operands[:3])
    out = axes.of(node.result)
    unify(q[-1], k[-1])
    if node.arg("scale") is None:
        fix(q[-1], "attention divides by the root of its size")
    unify(k[-2], v[-2])
    fix(k[-2], "attention works along it")
    unify(q[-2], out[-2])
    unify(v[-1], out[-1])
    same_from_right(k[:-2], v[:-2])
    if node.arg("enable_gqa") and q[-3].size != k[-3].size:
        unify_products([q[-3]], [k[-3], Axis(over(q[-3].size, k[-3].size))])
        same_from_right(k[:-3], q[:-3])
    else:
        same_from_right(k[:-2], q[:-2])
    same_from_right(q[:-2], out[:-2])
    if (mask := node.arg("attn_mask")) is not None:
        same_from_right(axes.of(mask), [*out[:-1], k[-2]])


@rule("embedding")
def embedding(node: Node, axes: Axes) -> None:
    (words, width), ids, out = (axes.of(v) for v in (*node.operands[:2], node.result))
    fix(words, "ids tell its rows")
    unify(width, out[-1])
    same_from_right(ids, out[:-1])


@rule("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d")
@rule("adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d")
@rule("max_pool2d_with_indices upsample_nearest2d upsample_bilinear2d upsample_bicubic2d")
def pool(node: Node, axes: Axes) -> None:
    given = axes.of(node.operands[0])
    spatial = int(packet_name(node.op).split("d_with")[0].rstrip("d")[-1])
    for result in node.results:
        made = axes.of(result)
        for a, b in zip(given[:-spatial], made[:-spatial], strict=True):
            unify(a, b)
        for axis in (*given[-spatial:], *made[-spatial:]):
            fix(axis, "it lies in space")


@rule("mean sum amax amin var std var_mean logsumexp all any prod linalg_vector_norm")
def reduction(node: Node, axes: Axes) -> None:
    given = axes.of(node.operands[0])
    reduced = _reduced(node, len(given))
    for position in reduced:
        fix(given[position], f"{packet_name(node.op)} works along it")
    for result in node.results:
        keep = node.result.tensor_type.rank == len(given) if len(node.results) == 1 else node.arg("keepdim")
        left = [a for i, a in enumerate(given) if keep or i not in reduced]
        for a, b in zip(left, axes.of(result), strict=True):
            if a.size == b.size:
                unify(a, b)


def _reduced(node: Node, rank: int) -> set[int]:
    if "dim" not in arguments(node):
        return set(range(rank))
    dim = node.arg("dim")
    listed = dim if isinstance(dim, list) else [] if dim is None else [dim]
    return {d % rank for d in listed} or set(range(rank))
