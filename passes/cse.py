"""Compute equal things once.

    %0 = aten.exp(%x)                           %0 = aten.exp(%x)
    %1 = aten.exp(%x)             ==>           %1 = aten.mul.Tensor(%0, %0)
    %2 = aten.mul.Tensor(%0, %1)                return %1
    return %2

Nodes are equal when op, operands, keyword operands, recipe and regions are; constants when they are the same
memory (tied weights).

Does not fire on a node with an effect or random numbers, where the model returned two tensors that would
become one (also through views of them), or on constants that are written back. 1, 1.0 and True are three
operands; 0.0 and -0.0 are two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capture.ir import Constant, Graph, Node, Origin, Value
from capture.ir.memory import identity
from passes.aliases import Aliases
from passes.base import Pass, PassResult, register_pass
from passes.ledger import REPLACED, Fate, fates_of
from passes.queries import is_pure_node, nested_graphs


@register_pass
@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    name = "eliminate-common-subexpressions"

    def run(self, graph: Graph) -> PassResult:
        fates: dict[int, Fate] = {}
        constants = merge_constants(graph)
        merged = sum(merge_nodes(g, fates) for g in nested_graphs(graph, fusions=False))
        stats = {"merged": merged, "constants": constants}
        return PassResult(merged + constants > 0, {k: n for k, n in stats.items() if n}, fates)


def merge_nodes(graph: Graph, fates: dict[int, Fate]) -> int:
    """Replace each node by the first one equal to it; returns how many."""
    aliases = Aliases(graph)
    first: dict[Any, Node] = {}
    origins: dict[Node, list[Origin]] = {}  # united at the end: one by one would take quadratic time
    for node in graph.nodes:
        if not node.results or not is_pure_node(node):
            continue
        twin = first.setdefault(node_key(node, {}), node)
        pairs = list(zip(node.results, twin.results, strict=True))
        if twin is node or not all(aliases.may_replace(old, new) for old, new in pairs):
            continue
        fates.update(fates_of(node, REPLACED, "by an equal node before it"))
        for old, new in pairs:
            aliases.replaced(old, new)
            graph.replace_uses(old, new)
        origins.setdefault(twin, [twin.origin]).append(node.origin)
        graph.erase(node)
    for twin, found in origins.items():
        twin.origin = united(found)
    return sum(len(found) - 1 for found in origins.values())


def united(origins: Sequence[Origin]) -> Origin:
    """All of them as one, in order, without repeats."""
    return Origin(
        tuple(dict.fromkeys(i for o in origins for i in o.ids)),
        tuple(dict.fromkeys(m for o in origins for m in o.modules)),
        tuple(dict.fromkeys(place for o in origins for place in o.locations)),
    )


def merge_constants(graph: Graph) -> int:
    """Let tied weights be one constant, under the first one's name; returns how many were others."""
    first: dict[Any, Constant] = {}
    merged = 0
    for constant in graph.constants.values():
        tensor = constant.tensor
        # An empty tensor has no address; one that is returned or written back is itself wanted.
        if tensor is None or not tensor.numel() or constant.is_result or constant in graph.writebacks:
            continue
        twin = first.setdefault(identity(tensor), constant)
        if twin is not constant and constant.num_uses:
            graph.replace_uses(constant, twin)
            merged += 1
    return merged


def node_key(node: Node, numbers: Mapping[Value, int]) -> Any:
    """What equal nodes have in common. Values are told apart by identity, a region's own by their number."""
    operands = (
        _key(node.operands, numbers),
        tuple((k, _key(v, numbers)) for k, v in sorted(node.kwargs.items())),
    )
    types = tuple(v.type for v in node.results)
    return node.op, operands, types, repr(node.impl), tuple(region_key(r) for r in node.regions)


def region_key(region: Graph) -> Any:
    """The region's structure, without names."""
    numbers: dict[Value, int] = {v: i for i, v in enumerate(region.inputs)}
    nodes = []
    for node in region.nodes:
        nodes.append(node_key(node, numbers))
        for value in node.results:
            numbers[value] = len(numbers)
    return tuple(v.type for v in region.inputs), tuple(nodes), _key(region.results, numbers)


def _key(operand: Any, numbers: Mapping[Value, int]) -> Any:
    if isinstance(operand, (list, tuple)):
        return tuple(_key(v, numbers) for v in operand)
    if isinstance(operand, Value):
        return ("region", numbers[operand]) if operand in numbers else ("value", operand)
    if isinstance(operand, (float, complex)):
        return type(operand), repr(operand)
    return type(operand), operand
