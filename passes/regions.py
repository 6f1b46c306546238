"""Make a fusion region out of nodes, and take one apart again."""

from __future__ import annotations

from capture.ir import Fusion, Graph, Node, Origin, Value
from capture.ir.copying import copy_body
from capture.ir.graph import map_operand


def make_region(graph: Graph, kind: Fusion, group: list[Node]) -> Node:
    """Replace `group` by one fusion node in the place of its last node.

    The group is in graph order. The node returns what is used outside of it, which must come later than its
    last node; the last node's results, where nothing is.
    """
    inside = set(group)
    root = group[-1]
    outer = list(dict.fromkeys(v for n in group for v in n.operand_values if v.producer not in inside))
    region = graph.new_region()
    mapping: dict[Value, Value] = {v: region.add_input("", v.type) for v in outer}
    origin = Origin()
    for node in group:
        copy = region.add_node(
            node.op,
            map_operand(node.operands, lambda v: mapping[v] if isinstance(v, Value) else v),
            {
                k: map_operand(v, lambda v: mapping[v] if isinstance(v, Value) else v)
                for k, v in node.kwargs.items()
            },
            types=[v.type for v in node.results],
            origin=node.origin,
        )
        mapping.update(zip(node.results, copy.results, strict=True))
        origin |= node.origin
    used = [v for n in group for v in n.results if v.is_result or any(user not in inside for user in v.users)]
    results = used or root.results
    region.set_results([mapping[v] for v in results])
    fused = graph.add_node(
        kind, outer, types=[v.type for v in results], regions=[region], origin=origin, before=root
    )
    for old, new in zip(results, fused.results, strict=True):
        graph.replace_uses(old, new)
    for node in reversed(group):
        graph.erase(node)
    return fused


def inline_region(graph: Graph, node: Node) -> list[Node]:
    """Put a fusion's nodes back into the graph in its place; returns them."""
    assert node.region is not None
    mapping: dict[Value, Value] = dict(zip(node.region.inputs, node.operands, strict=True))
    inlined = copy_body(node.region, graph, mapping, before=node)
    for old, new in zip(node.results, node.region.results, strict=True):
        graph.replace_uses(old, mapping[new])
    graph.erase(node)
    return inlined
