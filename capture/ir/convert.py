"""Graph -> networkx and Graph -> torch.fx."""

from __future__ import annotations

import operator
import re
from typing import Any

import networkx
import sympy
import torch

from capture.ir import dims, text
from capture.ir import graph as ir
from capture.ir.ops import Fusion, op_name
from capture.ir.types import ScalarType, TensorType


def to_networkx(graph: ir.Graph) -> networkx.MultiDiGraph:
    """Nodes are keyed by the printed name of their first result (or ``op#position``), other values by theirs.

    Node attributes: kind, op, origin, and `node` (the Node itself); edge attributes: value, type, bytes.
    """
    named = text.names(graph)
    out = networkx.MultiDiGraph(name=graph.name)
    keys: dict[ir.Value, str] = {}
    for value in (*graph.inputs, *graph.constants.values()):
        keys[value] = named[value]
        out.add_node(named[value], kind="constant" if value.is_constant else "input", type=str(value.type))
    for position, node in enumerate(graph.nodes):
        key = named[node.results[0]] if node.results else f"{op_name(node.op)}#{position}"
        out.add_node(key, kind="node", op=op_name(node.op), origin=str(node.origin), node=node)
        keys.update(dict.fromkeys(node.results, key))
        for value in node.operand_values:
            out.add_edge(keys[value], key, value=named[value], type=str(value.type), bytes=_bytes(value))
    for position, value in enumerate(graph.result_values):
        out.add_node(f"result {position}", kind="result")
        out.add_edge(
            keys[value], f"result {position}", value=named[value], type=str(value.type), bytes=_bytes(value)
        )
    return out


def _bytes(value: ir.Value) -> Any:
    return value.type.nbytes if isinstance(value.type, TensorType) else 0


def to_fx(graph: ir.Graph) -> torch.fx.GraphModule:
    """A GraphModule over the flat inputs; returns the tuple of results. Regions become submodules.

    Written-back tensors are updated by ``copy_`` at the end, as the interpreter does.
    """
    return _Converter(graph).convert()


class _Converter:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.root = torch.nn.Module()
        self.fx = torch.fx.Graph()
        self.values: dict[ir.Value, Any] = {}
        self.sizes: dict[str, Any] = {}

    def convert(self, outer_dims: list[str] | None = None) -> torch.fx.GraphModule:
        for name in outer_dims or []:
            self.sizes[name] = self.fx.placeholder(f"dim_{name}")
        for value in self.graph.inputs:
            self._define(value, self.fx.placeholder(_identifier(value.name or "arg")))
        for i, constant in enumerate(self.graph.constants.values()):
            attribute = f"constant_{i}_{_identifier(constant.name)}"
            self.root.register_buffer(attribute, constant.tensor)
            self.values[constant] = self.fx.get_attr(attribute)
        for node in self.graph.nodes:
            self._node(node)
        for target, value in self.graph.writebacks.items():
            self.fx.call_function(torch.ops.aten.copy_.default, (self.values[target], self.values[value]))
        self.fx.output(tuple(self._leaf(v) for v in self.graph.results))
        module = torch.fx.GraphModule(
            self.root, self.fx, class_name=_identifier(self.graph.name).capitalize()
        )
        module.graph.lint()
        return module

    def _node(self, node: ir.Node) -> None:
        args = ir.map_operand(node.operands, self._leaf)
        kwargs = {k: ir.map_operand(v, self._leaf) for k, v in node.kwargs.items()}
        if isinstance(node.op, Fusion):
            made = self._call_region(node, args)
        else:
            args = ir.map_operand(
                args, lambda v: self._region(node, v.index) if isinstance(v, ir.RegionRef) else v
            )
            made = self.fx.call_function(node.op, args, kwargs)
        made.meta["origin"] = node.origin
        made.meta["stack_trace"] = "\n".join(
            f'  File "{f}", line {n}, in forward' for f, n in node.origin.locations
        )
        single = len(node.results) == 1 and not isinstance(node.op, Fusion) and not _returns_list(node)
        if single:
            self._define(node.results[0], made)
            return
        for i, value in enumerate(node.results):
            self._define(value, self.fx.call_function(operator.getitem, (made, i)))

    def _call_region(self, node: ir.Node, args: Any) -> torch.fx.Node:
        assert node.region is not None
        needed = sorted(set().union(*(ir.free_dims(n) for n in node.region.nodes)))
        name = f"{_identifier(str(node.op))}_{len(self.root._modules)}"
        self.root.add_module(name, _Converter(node.region).convert(needed))
        return self.fx.call_module(name, tuple(self.sizes[d] for d in needed) + tuple(args))

    def _region(self, node: ir.Node, index: int) -> torch.fx.Node:
        name = f"{_identifier(op_name(node.op))}_{len(self.root._modules)}"
        self.root.add_module(name, _Converter(node.regions[index]).convert())
        return self.fx.get_attr(name)

    def _define(self, value: ir.Value, made: torch.fx.Node) -> None:
        self.values[value] = made
        if isinstance(value.type, ScalarType) and isinstance(value.type.expr, sympy.Symbol):
            self.sizes.setdefault(value.type.expr.name, made)
        if isinstance(value.type, TensorType):
            for axis, dim in enumerate(value.type.shape):
                if isinstance(dim, sympy.Symbol) and dim.name not in self.sizes:
                    self.sizes[dim.name] = self.fx.call_function(torch.ops.aten.sym_size.int, (made, axis))

    def _leaf(self, operand: Any) -> Any:
        if isinstance(operand, ir.Value):
            return self.values[operand]
        if isinstance(operand, sympy.Expr):
            return dims.fold(
                operand, lambda s: _Size(self.fx, self.sizes[s.name]), minimum=_min, maximum=_max
            ).node
        return operand


class _Size:
    """A size under construction: Python arithmetic on it adds nodes to the fx graph."""

    def __init__(self, graph: torch.fx.Graph, node: Any) -> None:
        self.graph, self.node = graph, node

    def apply(self, fn: Any, *others: Any) -> _Size:
        return _Size(self.graph, self.graph.call_function(fn, tuple(getattr(o, "node", o) for o in others)))

    def __add__(self, other: Any) -> _Size:
        return self.apply(operator.add, self, other)

    def __mul__(self, other: Any) -> _Size:
        return self.apply(operator.mul, self, other)

    def __floordiv__(self, other: Any) -> _Size:
        return self.apply(operator.floordiv, self, other)

    def __rfloordiv__(self, other: Any) -> _Size:
        return self.apply(operator.floordiv, other, self)

    def __mod__(self, other: Any) -> _Size:
        return self.apply(operator.mod, self, other)

    def __rmod__(self, other: Any) -> _Size:
        return self.apply(operator.mod, other, self)

    __radd__, __rmul__ = __add__, __mul__


def _min(a: Any, b: Any) -> Any:
    return (a if isinstance(a, _Size) else b).apply(torch.sym_min, a, b)


def _max(a: Any, b: Any) -> Any:
    return (a if isinstance(a, _Size) else b).apply(torch.sym_max, a, b)


def _returns_list(node: ir.Node) -> bool:
    if node.regions:
        return True
    returns = node.op._schema.returns
    return len(returns) != 1 or str(returns[0].type).startswith("List")


def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W", "_", name)
    return f"_{cleaned}" if cleaned[:1].isdigit() else cleaned
