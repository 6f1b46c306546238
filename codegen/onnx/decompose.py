"""An operator without a lowering, as a graph of operators that have one, by torch's own decompositions."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch._decomp import core_aten_decompositions, decomposition_table
from torch._ops import OpOverload
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx import Node as FxNode
from torch.fx.experimental.proxy_tensor import make_fx

from capture.ir import Graph, TensorType, Value, dims
from capture.ir.graph import Node, map_operand
from capture.ir.infer import FakeContext, context_for
from codegen.onnx import table


def decompose(node: Node) -> tuple[Graph, list[Value]] | None:
    """A graph that computes what the node does, and the operands that it takes; None where torch knows none.

    The op is traced below dispatch and functionally, so composite operators fall apart by themselves;
    others do by their entry in torch's table. Those that have a lowering stay whole.
    """
    if not isinstance(node.op, OpOverload) or node.graph is None:
        return None
    values = list(dict.fromkeys(node.operand_values))
    if not all(isinstance(v.type, TensorType) for v in values):
        return None
    context = context_for(node.graph)
    fakes = [context.value(v.type) for v in values]

    def call(*tensors: torch.Tensor) -> Any:
        given = dict(zip(values, tensors, strict=True))

        def leaf(operand: Any) -> Any:
            return context.operand(operand, given)

        args = [map_operand(v, leaf) for v in node.operands]
        return node.op(*args, **{k: map_operand(v, leaf) for k, v in node.kwargs.items()})

    known = {op: fn for op, fn in core_aten_decompositions().items() if table.find(op) is None}
    if node.op in decomposition_table:
        known[node.op] = decomposition_table[node.op]
    try:
        with torch.no_grad():
            traced = make_fx(dispatch_functionalize(call), decomposition_table=known)(*fakes)
        graph = _Importer(node, context).run(traced, values)
    except Exception:  # torch's decompositions raise what they like; the op is then one without a lowering
        return None
    return None if graph is None else (graph, values)


class _Importer:
    """A traced decomposition as a Graph that shares the dims of the node's."""

    def __init__(self, node: Node, context: FakeContext) -> None:
        self.node = node
        self.context = context
        assert node.graph is not None
        self.graph = node.graph.new_region()
        self.env: dict[FxNode, Any] = {}
        self.known_dims = set(node.graph.dims).union(*(self._names(v) for v in node.operand_values))

    @staticmethod
    def _names(value: Value) -> set[str]:
        return dims.free_names(list(getattr(value.type, "shape", ())))

    def run(self, module: torch.fx.GraphModule, values: list[Value]) -> Graph | None:
        inputs = iter(values)
        for step in module.graph.nodes:
            if step.op == "placeholder":
                self.env[step] = self.graph.add_input("", next(inputs).type)
            elif step.op == "get_attr":
                self.env[step] = self.graph.add_constant(str(step.target), getattr(module, step.target))
            elif step.op == "call_function":
                self.env[step] = self._call(step)
            else:
                results = step.args[0] if isinstance(step.args[0], (list, tuple)) else [step.args[0]]
                self.graph.set_results([self._operand(r) for r in results])
        circular = any(n.op is self.node.op for n in self.graph.nodes)
        names = set().union(*(self._names(v) for n in self.graph.nodes for v in n.results)) - self.known_dims
        strange = not all(map(dims.is_data_dependent, names))
        return None if circular or strange else self.graph

    def _call(self, step: FxNode) -> Any:
        made = step.meta.get("val")
        if step.target is operator.getitem:
            return self.env[step.args[0]][step.args[1]]  # type: ignore[index]
        if isinstance(made, (torch.SymInt, int)):
            return self.context.dim(made)
        if not isinstance(step.target, OpOverload) or step.target._schema.is_mutable:
            raise NotImplementedError(str(step.target))
        op = torch.ops.aten.reshape.default if step.target is torch.ops.aten.view.default else step.target
        several = isinstance(made, (list, tuple))
        types = [self.context.type(v) for v in (made if several else [made])]
        node = self.graph.add_node(
            op,
            [self._operand(a) for a in step.args],
            {k: self._operand(v) for k, v in step.kwargs.items()},
            types=types,
            origin=self.node.origin,
        )
        return list(node.results) if several else node.result

    def _operand(self, arg: Any) -> Any:
        if isinstance(arg, (list, tuple)):
            return [self._operand(a) for a in arg]
        found = self.env[arg] if isinstance(arg, FxNode) else arg
        if isinstance(found, torch.SymInt):
            found = self.context.dim(found)
        if isinstance(found, (torch.SymFloat, torch.SymBool)):
            raise NotImplementedError("a number computed from sizes")
        return found
