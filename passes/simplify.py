"""Algebraic clean-up: drop what changes nothing, join what undoes or repeats itself.

    %0 = aten.transpose.int(%x, 1, 2)           %0 = aten.relu(%x)
    %1 = aten.transpose.int(%0, 2, 1)   ==>     return %0
    %2 = aten.mul.Tensor(%1, 1)
    %3 = aten.relu(%2)
    return %3

Only what is exact to the last bit is done. x + 0 stays for floating x, since it turns -0.0 into 0.0 (x - 0
and x + -0.0 go); x * 0 stays (NaN, infinity); x * 1 stays where it changes the dtype; division becomes
multiplication for powers of two alone; pow(x, 2) stays, so that rules written with it still match.

Does not fire where a caller could tell: a copy that the model returns stays a copy, two results stay two, and
a copy that changes the memory format stays. Dropout in training stays.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from capture.ir import Graph, Node
from capture.ir.types import STRIDED
from passes import algebra as al
from passes import view_algebra as views
from passes.algebra import Call, Rewrite, Same
from passes.aliases import Aliases
from passes.base import Pass, PassResult, register_pass
from passes.ledger import REMOVED, REPLACED, Fate, fates_of
from passes.queries import nested_graphs
from passes.rewriting.apply import infer_again

aten = torch.ops.aten

TABLE: dict[Any, tuple[Rewrite, ...]] = {
    aten.add.Tensor: (al.add_zero,),
    aten.sub.Tensor: (al.subtract_zero,),
    aten.mul.Tensor: (al.times_one,),
    aten.div.Tensor: (al.divided_by_one, al.divided_by_power_of_two),
    aten.div.Tensor_mode: (al.rounded_division_by_one,),
    aten.floor_divide.default: (al.rounded_division_by_one,),
    aten.pow.Tensor_Scalar: (al.power_of_one,),
    aten._to_copy.default: (al.copy, al.cast_back),
    aten.to.dtype: (al.copy, al.cast_back),
    aten.cat.default: (al.cat_of_few,),
    aten.constant_pad_nd.default: (al.pad_by_nothing,),
    aten.pad.default: (al.pad_by_nothing,),
    aten.masked_fill.Tensor: (al.number_in_tensor(aten.masked_fill.Scalar, 2),),
    aten.where.self: (
        al.number_in_tensor(aten.where.ScalarOther, 2),
        al.number_in_tensor(aten.where.ScalarSelf, 1),
    ),
    aten.expand.default: (views.expanded,),
    aten.mm.default: (views.product_with_transposed,),
    aten.matmul.default: (views.product_with_transposed,),
    aten.addmm.default: (views.product_with_transposed,),
}
for _rule, _ops in {
    al.copy: [aten.clone.default, aten.detach.default, aten.alias.default, aten.lift_fresh.default,
              aten.lift_fresh_copy.default, aten.contiguous.default, aten.to.device, aten.to.dtype_layout,
              aten.to.other, aten.type_as.default, aten.positive.default],
    al.same_shape: [aten.expand_as.default, aten.broadcast_to.default, aten.slice.Tensor, aten.narrow.default,
                    aten.repeat.default, aten.tile.default],
    al.single_piece: [aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default],
    al.inactive_dropout: [aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default],
    al.involution: [aten.neg.default, aten.logical_not.default, aten.bitwise_not.default, aten.flip.default],
    al.idempotent: [aten.relu.default, aten.abs.default, aten.floor.default, aten.ceil.default,
                    aten.trunc.default, aten.round.default, aten.sign.default, aten.clamp.default],
    views.permuted: views.PERMUTATIONS,
    views.reshaped: views.RESHAPES,
}.items():  # fmt: skip
    TABLE.update(dict.fromkeys(_ops, (_rule,)))


@register_pass
@dataclass(frozen=True)
class Simplify(Pass):
    name = "simplify"

    def run(self, graph: Graph) -> PassResult:
        fates: dict[int, Fate] = {}
        counts: Counter[str] = Counter()
        for inner in nested_graphs(graph, fusions=False):
            aliases = Aliases(inner)
            for node in inner.nodes:
                simplify_node(inner, node, aliases, counts, fates)
        return PassResult(bool(counts), dict(counts), fates)


def simplify_node(
    graph: Graph, node: Node, aliases: Aliases, counts: Counter[str], fates: dict[int, Fate]
) -> None:
    """Rewrite one node until no rule fires. Its operands come earlier and are as simple as they get."""
    rules = iter(TABLE.get(node.op, ()))
    while (rule := next(rules, None)) is not None:
        found = rule(node)
        if isinstance(found, Same) and is_allowed(node, found, aliases):
            fates.update(fates_of(node, REMOVED, found.reason))
            counts[found.reason] += 1
            aliases.replaced(node.result, found.value)
            was = node.result.type
            graph.replace_node(node, [found.value])
            if found.value.type != was:
                infer_again(graph, [found.value])
            drop_joined(graph, found, fates)
            return
        if isinstance(found, Call) and not aliases.is_exposed(node.result):
            fates.update(fates_of(node, REPLACED, found.reason))
            counts[found.reason] += 1
            node = make_call(graph, node, found, aliases)
            drop_joined(graph, found, fates)
            rules = iter(TABLE.get(node.op, ()))


def is_allowed(node: Node, found: Same, aliases: Aliases) -> bool:
    """The very same type, memory format included, and nothing that a caller could notice.

    Of what is permuted back the format is that of before, even where it is not known of the permuted value.
    """
    before, after = node.result.tensor_type, found.value.tensor_type
    undone = found.reason is al.INVERSE and before.memory_format == STRIDED and before.same_value_as(after)
    return (before == after or undone) and aliases.may_replace(node.result, found.value)


def make_call(graph: Graph, node: Node, call: Call, aliases: Aliases) -> Node:
    """Put another call in the node's place; it stands for what it joins, too."""
    origin = node.origin
    for joined in call.joins:
        origin = joined.origin | origin
    made = graph.add_node(
        call.op, call.operands, call.kwargs, types=[node.result.type], origin=origin, before=node
    )
    aliases.add(made)
    aliases.replaced(node.result, made.result)
    graph.replace_node(node, [made.result])
    return made


def drop_joined(graph: Graph, found: Same | Call, fates: dict[int, Fate]) -> None:
    """Erase the nodes before it that nobody else needs."""
    for node in found.joins:
        if node.result.num_uses:
            return
        if isinstance(found, Same):
            fates.update(fates_of(node, REMOVED, "undone by the operation after it"))
        graph.erase(node)
