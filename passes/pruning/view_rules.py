"""Axes of what moves or views: permutations, reshapes, concatenations, parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from capture.ir import Node
from passes.pruning.axes import SUM, Axes, Axis, bind, fix, new_size, unify, unify_products
from passes.pruning.rules import Kept, arguments, dim_of, literal, rule, same_from_right
from passes.queries import packet_name


@rule("clone contiguous detach alias dropout _to_copy to lift_fresh_copy native_dropout")
def same(node: Node, axes: Axes) -> None:
    for result in node.results:
        same_from_right(axes.of(node.operands[0]), axes.of(result))


@rule("softmax _softmax log_softmax _log_softmax cumsum sort topk argsort")
def along(node: Node, axes: Axes) -> None:
    """All of an axis is read together: taking something out would change the rest."""
    given = axes.of(node.operands[0])
    fix(given[dim_of(node, "dim")], f"{packet_name(node.op)} works along it")
    for result in node.results:
        same_from_right(given, axes.of(result))


@rule("view reshape _unsafe_view flatten unflatten unsqueeze squeeze")
def view(node: Node, axes: Axes) -> None:
    unify_products(axes.of(node.operands[0]), axes.of(node.result))


@rule("permute transpose t movedim mT")
def permute(node: Node, axes: Axes) -> None:
    given = axes.of(node.operands[0])
    for axis, made in zip((given[i] for i in _permutation(node)), axes.of(node.result), strict=True):
        unify(axis, made)


def _permutation(node: Node) -> list[int]:
    """Where each axis of the result comes from, as the operator itself says on sizes unlike each other."""
    shape = list(range(2, 2 + node.operands[0].tensor_type.rank))
    moved = node.op(torch.empty(shape, device="meta"), *node.operands[1:], **node.kwargs)
    return [size - 2 for size in moved.shape]


@rule("expand expand_as")
def expand(node: Node, axes: Axes) -> None:
    """An axis of 1 becomes one that may be cut with those that it meets; the others stay the same."""
    same_from_right(axes.of(node.operands[0]), axes.of(node.result))


@literal("view reshape _unsafe_view expand")
def shape_literal(node: Node, axes: Axes, kept: Kept) -> dict[str, Any]:
    shape = list(axes.shape(node.result, kept))
    return {("shape" if "shape" in arguments(node) else "size"): shape}


@literal("unflatten")
def unflatten_literal(node: Node, axes: Axes, kept: Kept) -> dict[str, Any]:
    dim, count = dim_of(node, "dim"), len(node.arg("sizes"))
    return {"sizes": list(axes.shape(node.result, kept)[dim : dim + count])}


@rule("cat")
def cat(node: Node, axes: Axes) -> None:
    tensors, dim = node.operands[0], dim_of(node, "dim", node.result)
    out = axes.of(node.result)
    tensors = [t for t in tensors if t.tensor_type.shape != (0,)]
    for tensor in tensors:
        for position, (a, b) in enumerate(zip(axes.of(tensor), out, strict=True)):
            if position != dim:
                unify(a, b)
    parts = [axes.of(t)[dim] for t in tensors]
    if len(parts) == 1:
        return unify(parts[0], out[dim])
    if not all(isinstance(p.size, int) for p in parts):
        return axes.fix([*tensors, node.result], "it is joined with what has a dynamic size")
    return bind(out[dim], SUM, parts)


@rule("split split_with_sizes chunk tensor_split unsafe_split")
def split(node: Node, axes: Axes) -> None:
    given, dim = axes.of(node.operands[0]), dim_of(node, "dim")
    for value in node.results:
        for position, (a, b) in enumerate(zip(given, axes.of(value), strict=True)):
            if position != dim:
                unify(a, b)
    parts = [axes.of(v)[dim] for v in node.results]
    if len(parts) == 1:
        return unify(parts[0], given[dim])
    if len({p.size for p in parts}) == 1 and isinstance(given[dim].size, int):
        # Equal parts are cut alike: where they are q, k and v, say, that is what has to be.
        return unify_products([given[dim]], [Axis(len(parts), "each is taken by itself"), _one(parts)])
    return bind(given[dim], SUM, parts)


def _one(parts: Sequence[Axis]) -> Axis:
    for part in parts[1:]:
        unify(parts[0], part)
    return parts[0]


@literal("split unsafe_split")
def split_literal(node: Node, axes: Axes, kept: Kept) -> dict[str, Any]:
    return {"split_size": new_size(axes.of(node.results[0])[dim_of(node, "dim")], kept)}


@literal("split_with_sizes")
def split_sizes_literal(node: Node, axes: Axes, kept: Kept) -> dict[str, Any]:
    dim = dim_of(node, "dim")
    return {"split_sizes": [new_size(axes.of(v)[dim], kept) for v in node.results]}


@rule("select unbind")
def select(node: Node, axes: Axes) -> None:
    given, dim = axes.of(node.operands[0]), dim_of(node, "dim")
    fix(given[dim], f"{packet_name(node.op)} takes from it by position")
    for result in node.results:
        for a, b in zip([*given[:dim], *given[dim + 1 :]], axes.of(result), strict=True):
            unify(a, b)


@rule("slice constant_pad_nd pad flip roll index_select gather")
def by_position(node: Node, axes: Axes) -> None:
    """Axes whose size is kept are the same; where something is taken or put by position, they stay."""
    given, made = axes.of(node.operands[0]), axes.of(node.result)
    touched = _touched(node, len(given))
    for position, (a, b) in enumerate(zip(given, made, strict=True)):
        if position in touched:
            for axis in (a, b):
                fix(axis, f"{packet_name(node.op)} reads it by position")
        else:
            unify(a, b)
    axes.fix([v for v in node.operand_values if v is not node.operands[0]], "positions")


def _touched(node: Node, rank: int) -> set[int]:
    name = packet_name(node.op)
    if name in ("aten.slice", "aten.index_select"):
        return {dim_of(node, "dim")}
    if name in ("aten.constant_pad_nd", "aten.pad"):
        return set(range(rank - len(node.arg("pad")) // 2, rank))
    if name in ("aten.flip", "aten.roll"):
        return {d % rank for d in node.arg("dims")} or set(range(rank))
    return set(range(rank))
