"""Clone a graph; give constants their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from capture.ir import graph as ir
from capture.ir.types import type_of


def clone(graph: ir.Graph) -> ir.Graph:
    """A copy that shares constant tensors and nothing else."""
    copy = ir.Graph(graph.name)
    copy.dims = ir.Dims(graph.dims)
    return _fill(copy, graph)


def _fill(copy: ir.Graph, graph: ir.Graph) -> ir.Graph:
    mapping: dict[ir.Value, ir.Value] = {}
    copy.in_spec, copy.out_spec, copy.frontend = graph.in_spec, graph.out_spec, graph.frontend
    copy.captured, copy.history, copy.fates = dict(graph.captured), list(graph.history), dict(graph.fates)
    copy.attempts = list(graph.attempts)
    for value in graph.inputs:
        mapping[value] = copy.add_input(value.name, value.type)
    copy_body(graph, copy, mapping)
    copy.set_results([mapping[v] if isinstance(v, ir.Value) else v for v in graph.results])
    for target, value in graph.writebacks.items():
        copy.set_writeback(mapping[target], mapping[value])
    return copy


def copy_body(
    source: ir.Graph, into: ir.Graph, mapping: dict[ir.Value, ir.Value], *, before: ir.Node | None = None
) -> list[ir.Node]:
    """Copy constants and nodes of `source` into another graph; `mapping` gains source value -> copy.

    Returns the nodes made, in order.
    """
    made_nodes: list[ir.Node] = []
    for constant in source.constants.values():
        if constant not in mapping:
            made = into.add_constant(constant.name, constant.tensor_type)
            made.tensor = constant.tensor
            mapping[constant] = made

    def leaf(operand: Any) -> Any:
        return mapping[operand] if isinstance(operand, ir.Value) else operand

    for node in source.nodes:
        made_node = into.add_node(
            node.op,
            ir.map_operand(node.operands, leaf),
            {k: ir.map_operand(v, leaf) for k, v in node.kwargs.items()},
            types=[v.type for v in node.results],
            origin=node.origin,
            regions=[_fill(into.new_region(), r) for r in node.regions],
            impl=node.impl,
            before=before,
        )
        mapping.update(zip(node.results, made_node.results, strict=True))
        made_nodes.append(made_node)
    return made_nodes


def bind(graph: ir.Graph, state: Mapping[str, torch.Tensor]) -> ir.Graph:
    """Give every constant its tensor, those of regions too. Returns the graph; in an error it is as it was.

    Raises:
        KeyError: `state` lacks a constant.
        TypeError: a tensor has another dtype or shape than its constant.
    """
    constants = list(constants_of(graph))
    missing = [c.name for c in constants if c.name not in state]
    if missing:
        more = f" and {len(missing) - 1} more" * (len(missing) > 1)
        raise KeyError(f"no tensor for the constant @{missing[0]}{more}")
    for constant in constants:
        tensor, wanted = state[constant.name], constant.tensor_type
        if (tensor.dtype, tuple(tensor.shape)) != (wanted.dtype, wanted.shape):
            raise TypeError(f"@{constant.name} is {wanted}; the tensor given is {type_of(tensor)}")
    for constant in constants:
        constant.tensor = state[constant.name].detach()
    graph.version += 1
    return graph


def constants_of(graph: ir.Graph) -> Iterator[ir.Constant]:
    """Constants of a graph and of its regions."""
    yield from graph.constants.values()
    for node in graph.nodes:
        for region in node.regions:
            yield from constants_of(region)
