"""What several passes ask of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch._ops import OpOverload

from capture.ir import Constant, Fusion, Graph, Node, is_pure, op_name

_PURE_WITH_PURE_REGIONS = {"higher_order.cond", "higher_order.map_impl", "higher_order.while_loop"}


def packet_name(op: Any) -> str:
    """``aten.zeros``, whatever the overload; "" for what is no operator but has a region."""
    return f"{op.namespace}.{op._schema.name.partition('::')[2]}" if isinstance(op, OpOverload) else ""


def is_pure_node(node: Node) -> bool:
    """Whether a node may be dropped, repeated or merged with an equal one; its regions count."""
    if isinstance(node.op, Fusion) or (node.regions and op_name(node.op) in _PURE_WITH_PURE_REGIONS):
        return all(is_pure_node(inner) for region in node.regions for inner in region.nodes)
    return is_pure(node.op)


def fixed_tensor(graph: Graph, value: Any) -> torch.Tensor | None:
    """What a constant holds at every call: None where it is unbound, written back, fake, or of a subclass."""
    if not isinstance(value, Constant) or value in graph.writebacks:
        return None
    plain = type(value.tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return value.tensor if plain and not value.tensor.is_meta else None


def nested_graphs(graph: Graph, *, fusions: bool) -> Iterator[Graph]:
    """The graph's regions, innermost first, then the graph; `fusions` says whether theirs are among them."""
    for node in graph.nodes:
        for region in node.regions:
            if fusions or not isinstance(node.op, Fusion):
                yield from nested_graphs(region, fusions=fusions)
    yield graph


def live_nodes(graph: Graph) -> set[Node]:
    """What dead-code elimination would keep: nodes that results, write-backs or effects depend on."""
    live: set[Node] = set()
    for node in reversed(graph.nodes):
        used = any(v.is_result or not live.isdisjoint(v.users) for v in node.results)
        if used or not is_pure_node(node):
            live.add(node)
    return live
