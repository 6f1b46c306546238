"""Drop what nobody uses: nodes, constants, and parts of regions.

    %0 = aten.relu(%x)                          %0 = aten.relu(%x)
    %1 = aten.exp(%x)             ==>           return %0
    %2 = aten.add.Tensor(%1, @bias)
    return %0                                   (and @bias is gone)

Does not fire on a node with an effect (an assertion, a print, an op that we know nothing of), on one that
draws random numbers (the draws after it would change), on a node whose region holds either, on a constant
that is written back, or on an input: callers pass it.
"""

from __future__ import annotations

from dataclasses import dataclass

from capture.ir import Fusion, Graph, Node, Value
from passes.base import Pass, PassResult, register_pass
from passes.queries import is_pure_node, nested_graphs


@register_pass
@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    name = "eliminate-dead-code"
    reason = "its result is used nowhere"

    def run(self, graph: Graph) -> PassResult:
        removed = sweep(graph)
        constants = sum(drop_constants(g) for g in nested_graphs(graph, fusions=True))
        stats = {"removed": removed, "constants": constants}
        return PassResult(removed + constants > 0, {k: n for k, n in stats.items() if n})


def sweep(graph: Graph) -> int:
    """Erase dead nodes, last first, so that one sweep takes whole chains; returns how many, with regions'."""
    removed = 0
    for node in reversed(graph.nodes):
        if not any(v.num_uses for v in node.results) and is_pure_node(node):
            graph.erase(node)
            removed += 1
        elif node.regions:
            if isinstance(node.op, Fusion):
                node = drop_unused_results(graph, node)
            removed += sum(sweep(region) for region in node.regions)
            if isinstance(node.op, Fusion):
                drop_unused_operands(node)
    return removed


def drop_unused_results(graph: Graph, node: Node) -> Node:
    """A fusion that returns only what is used: the node itself, or one in its place."""
    kept = [v for v in node.results if v.num_uses]
    region = node.region
    if region is None or not kept or len(kept) == len(node.results):
        return node
    region.set_results([region.results[v.index] for v in kept])
    made = graph.add_node(
        node.op,
        node.operands,
        types=[v.type for v in kept],
        origin=node.origin,
        regions=[region],
        impl=node.impl,
        before=node,
    )
    for old, new in zip(kept, made.results, strict=True):
        graph.replace_uses(old, new)
    graph.erase(node)
    return made


def drop_unused_operands(node: Node) -> None:
    """Take out the operands that a fusion's region does not look at."""
    region = node.region
    assert region is not None
    used = [inner.num_uses > 0 for inner in region.inputs]
    if all(used):
        return
    operands: list[Value] = [outer for outer, is_used in zip(node.operands, used, strict=True) if is_used]
    region.inputs = [inner for inner, is_used in zip(region.inputs, used, strict=True) if is_used]
    node.set_operands(operands)


def drop_constants(graph: Graph) -> int:
    """Drop the constants that nothing reads, returns or writes back to."""
    unused = [n for n, c in graph.constants.items() if not c.num_uses and c not in graph.writebacks]
    for name in unused:
        graph.erase_constant(name)
    return len(unused)
