"""The skeleton: walk the graph, look each op up in the table, give names to what comes out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import onnx_ir as oir
import torch
from torch._ops import OpOverload

from capture.errors import UnsupportedOpError
from capture.ir import Graph
from capture.ir.graph import Constant, Node, Value, map_operand
from capture.ir.ops import Fusion, op_name
from capture.ir.types import LiteralType
from codegen.onnx import table
from codegen.onnx.builder import HINT, Builder, Scope
from codegen.onnx.decompose import decompose
from codegen.onnx.naming import output_names

PRODUCER = "torch-capture"


def translate(graph: Graph, opset: int, *, keep_nan: bool = False) -> tuple[oir.Model, dict[str, Constant]]:
    """The graph as an ONNX model that shares the constants' memory; and the constants by initializer name.

    Raises:
        UnsupportedOpError: an op, or an operand of one, has no lowering.
    """
    builder = Builder(opset, keep_nan)
    inputs: list[oir.Value] = []
    for value in graph.inputs:
        if not isinstance(value.type, LiteralType):
            builder.env[value] = builder.declare(value.name, value.type)
            inputs.append(builder.env[value])
    for value in graph.inputs * 2:  # twice: what a later input tells may solve an earlier one's expression
        if value in builder.env:
            builder.sizes.learn(builder.env[value], value.type)
    names, states = output_names(graph), state_names(graph)
    for name in (*names.values(), *states.values()):
        builder.unique(name)
    lower(builder, graph)
    outputs = _outputs(
        builder,
        [(graph.results[i], name) for i, name in names.items()]
        + [(graph.writebacks[target], name) for target, name in states.items()],
    )
    # The state is an input with a default, so that a caller can pass on what the last call gave.
    inputs += [builder.value(target) for target in states if isinstance(target, Constant)]
    model = oir.Model(
        oir.Graph(
            inputs, outputs, nodes=builder.scope.nodes, initializers=list(builder.initializers.values()),
            opset_imports={"": opset, **builder.domains}, name=graph.name,
        ),
        ir_version=_ir_version(opset),
        producer_name=PRODUCER,
    )  # fmt: skip
    return model, builder.constants


def state_names(graph: Graph) -> dict[Value, str]:
    """Written-back input or constant -> name of the output that carries its new value."""
    return {target: f"{target.name}.updated" for target in graph.writebacks}


def lower(builder: Builder, graph: Graph) -> None:
    """Lower all nodes of a graph, or of a region whose inputs are in `builder.env` already."""
    for node in graph.nodes:
        with builder.at(node):
            outputs = _lower_node(builder, node)
        for value, output in zip(node.results, outputs, strict=False):
            if output is None:
                continue
            builder.env[value] = output
            if output.producer() is not None:
                builder.annotate(output, value.type)
            builder.sizes.learn(output, value.type)


def lower_region(builder: Builder, region: Graph, inputs: Sequence[Any]) -> list[oir.Value]:
    """Lower a region into the present scope, on these operands; returns its results."""
    for value, given in zip(region.inputs, inputs, strict=True):
        builder.env[value] = given if isinstance(given, oir.Value) else builder.value(given)
    lower(builder, region)
    return [builder.value(v) for v in region.results]


def lower_branch(builder: Builder, region: Graph, inputs: Sequence[Any], name: str) -> oir.Graph:
    """A region as a subgraph without inputs: it sees the outer values by itself."""
    scope = Scope(builder.scope)
    with builder.within(scope):
        results = lower_region(builder, region, inputs)
        # A result must be made in the branch, and be returned once.
        own = {id(v) for node in scope.nodes for v in node.outputs}
        outputs: list[oir.Value] = []
        for value, result in zip(region.results, results, strict=True):
            if id(result) not in own or any(result is v for v in outputs):
                result = builder.Identity(result)
                builder.annotate(result, value.type)
            outputs.append(result)
    return oir.Graph([], outputs, nodes=scope.nodes, name=name)


def _lower_node(builder: Builder, node: Node) -> Sequence[oir.Value | None]:
    if isinstance(node.op, Fusion):
        assert node.region is not None
        return lower_region(builder, node.region, node.operands)
    fn = table.find(node.op)
    if fn is None:
        return _lower_decomposed(builder, node)
    operands, keywords = _arguments(node)
    try:
        inspect.signature(fn).bind(builder, *operands, **keywords)
    except TypeError as error:
        raise builder.unsupported(f"its lowering does not take these operands: {error}") from error
    made = fn(builder, *operands, **keywords)
    if made is None or isinstance(made, (oir.Value, Value)):
        made = [] if made is None else [made]
    return [builder.value(v) for v in made]


def _lower_decomposed(builder: Builder, node: Node) -> Sequence[oir.Value | None]:
    found = decompose(node)
    what = f"no ONNX lowering for {op_name(node.op)}"
    if found is None:
        raise UnsupportedOpError(what, where=builder.where, hint=HINT)
    region, operands = found
    try:
        return lower_region(builder, region, operands)
    except UnsupportedOpError as error:
        why = f"torch takes it apart, and then: {error.what}"
        raise UnsupportedOpError(what, where=builder.where, why=why, hint=HINT) from error


def _arguments(node: Node) -> tuple[list[Any], dict[str, Any]]:
    """Operands in schema order with defaults filled in; keyword-only ones where they were given."""

    def leaf(operand: Any) -> Any:
        baked_in = isinstance(operand, Value) and isinstance(operand.type, LiteralType)
        return operand.type.value if baked_in else operand

    operands: list[Any] = list(node.operands)
    if isinstance(node.op, OpOverload):
        operands = [node.arg(a.name) for a in node.op._schema.arguments if not a.kwarg_only]
    return [map_operand(v, leaf) for v in operands], {k: map_operand(v, leaf) for k, v in node.kwargs.items()}


def _outputs(builder: Builder, wanted: Sequence[tuple[Any, str]]) -> list[oir.Value]:
    """Results under their public names: each value is renamed, or copied where it has a name to keep."""
    outputs: list[oir.Value] = []
    for result, name in wanted:
        value = _result(builder, result)
        if value.producer() is None or any(value is v for v in outputs):
            dtype, shape = value.dtype, value.shape
            value = builder.Identity(value)
            value.dtype, value.shape = dtype, shape
        value.name = name
        outputs.append(value)
    return outputs


def _result(builder: Builder, result: Any) -> oir.Value:
    if isinstance(result, Value) and not isinstance(result.type, LiteralType):
        return builder.value(result)
    number = result.type.value if isinstance(result, Value) else result
    kind = {bool: torch.bool, float: torch.float64}.get(type(number), torch.int64)
    made = builder.cast(number, kind)
    made.shape = oir.Shape([])
    return made


def _ir_version(opset: int) -> int:
    """The oldest file format that holds the opset, and the metadata of nodes (10)."""
    from onnx import helper

    return max(10, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
