"""Group operators into fusion regions.

    y = conv2d(x, W, b)                         z = fusion.conv(x, W, b, r) {
    s = y + r                      ==>              relu(conv2d(x, W, b) + r)
    z = relu(s)                                 }

    t = x * a;  u = tanh(t);  v = u + b  ==>    v = fusion.pointwise(x, a, b) { tanh(x * a) + b }

Anchors (convolutions, linear layers) take the pointwise operators after them as an epilogue; what pointwise
operators are left are gathered into trees with one result.

Does not fire over a value that has another use, that the graph returns, whose shape the epilogue changes
(broadcasting the anchor's result), over a change of dtype or device, or for a lone operator.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from capture.ir import Fusion, Graph, Node, TensorType, Trait, Value, has, op_name
from passes.aliases import may_share
from passes.base import Pass, PassResult, register_pass
from passes.regions import make_region

aten = torch.ops.aten

ANCHORS: dict[Any, str] = {
    aten.conv1d.default: "conv",
    aten.conv2d.default: "conv",
    aten.conv3d.default: "conv",
    aten.linear.default: "linear",
}


@register_pass
@dataclass(frozen=True)
class Fuse(Pass):
    name = "fuse"
    max_ops: int = 32  # operators in one region; bounds the size of a generated kernel

    def run(self, graph: Graph) -> PassResult:
        stats: Counter[str] = Counter()
        for anchor in graph.find(*ANCHORS):
            group = epilogue(anchor, self.max_ops)
            if len(group) > 1:
                stats[label(group)] += 1
                make_region(graph, Fusion(ANCHORS[anchor.op]), group)
        for group in pointwise_trees(graph, self.max_ops):
            stats["pointwise"] += 1
            make_region(graph, Fusion("pointwise"), group)
        return PassResult(bool(stats), dict(stats))


def label(group: list[Node]) -> str:
    """``conv+add+relu``: how a group is counted in the report."""
    return "+".join(op_name(n.op).split(".")[1].removesuffix("2d") for n in group)


def epilogue(anchor: Node, max_ops: int) -> list[Node]:
    """The anchor and the chain of pointwise operators that may run before its result leaves the kernel."""
    group = [anchor]
    while len(group) < max_ops:
        value = group[-1].results[0]
        if not _has_one_use(value):
            break
        user = value.users[0]
        if not is_fusable(user) or not _keeps_type(value, user):
            break
        group.append(user)
    return group


def pointwise_trees(graph: Graph, max_ops: int) -> list[list[Node]]:
    """Disjoint groups of two or more pointwise nodes in which every value but the root's is used inside only.

    A node joins the group of its users if they all are in one group, so the group can stand where its root
    stands and the graph stays acyclic.
    """
    group_of: dict[Node, list[Node]] = {}
    groups: list[list[Node]] = []
    for node in reversed(graph.nodes):
        if not is_fusable(node):
            continue
        value = node.results[0]
        homes = {id(group_of[u]) if u in group_of else None for u in value.users}
        home = group_of.get(value.users[0]) if value.users else None
        joins = (
            home is not None
            and homes == {id(home)}
            and not value.is_result
            and len(home) < max_ops
            and all(_keeps_type(value, user) for user in value.users)
        )
        if joins and home is not None:
            home.insert(0, node)
            group_of[node] = home
        else:
            group_of[node] = [node]
            groups.append(group_of[node])
    return [g for g in reversed(groups) if len(g) > 1]


def is_fusable(node: Node) -> bool:
    """A pure pointwise operator with one tensor result in memory of its own.

    Generated code overwrites a region's temporaries: one that is an input itself (a cast to the dtype it has)
    may not be among them.
    """
    return (
        len(node.results) == 1
        and not node.regions
        and has(node.op, Trait.POINTWISE)
        and not has(node.op, Trait.EFFECTFUL | Trait.RANDOM | Trait.MOVE)
        and not may_share(node.op)
        and isinstance(node.results[0].type, TensorType)
    )


def _has_one_use(value: Value) -> bool:
    return value.num_uses == 1 and len(value.users) == 1


def _keeps_type(value: Value, user: Node) -> bool:
    """The user's result has the value's own shape, dtype and device: no broadcast, no cast."""
    given, made = value.type, user.results[0].type
    return isinstance(given, TensorType) and isinstance(made, TensorType) and given.same_value_as(made)
