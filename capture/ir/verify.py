"""Check every invariant of a graph; say where it breaks, with the neighbouring nodes and the user's line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import sympy
import torch

from capture.errors import CaptureError, VerificationError
from capture.ir import dims, text
from capture.ir import graph as ir
from capture.ir.infer import FakeContext, context_for, fake_call
from capture.ir.ops import Fusion, is_region_op, op_name
from capture.ir.types import ScalarType, TensorType

_NEIGHBOURS = 2


def verify(graph: ir.Graph) -> None:
    """Single definition, definition before use, two-way links, dims defined, types as inferred, sound regions.

    Raises:
        VerificationError: the first thing found wrong.
    """
    _verify(graph, context_for(graph), text.names(graph))


def _verify(graph: ir.Graph, context: FakeContext, named: Mapping[ir.Value, str]) -> None:
    check = _Check(graph, named)
    defined = check.definitions()
    known = _input_dims(graph)
    for node in graph.nodes:
        check.operands(node, defined)
        check.dims(node, known)
        defined.update(node.results)
        for value in node.results:
            known |= _new_dims(value)
        check.types(node, context)
        for region in node.regions:
            check.region(node, region)
            region_graph_names = text.region_names(region)
            _verify(region, context, region_graph_names)
    check.results(defined)
    check.links()


class _Check:
    def __init__(self, graph: ir.Graph, named: Mapping[ir.Value, str]) -> None:
        self.graph = graph
        self.named = dict(named)

    def fail(self, what: str, node: ir.Node | None = None, why: str | None = None) -> None:
        if node is None:
            raise VerificationError(what, why=why)
        nodes = list(self.graph.nodes)
        at = nodes.index(node) if node in nodes else len(nodes)
        shown = []
        for neighbour in nodes[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS + 1]:
            mark = ">" if neighbour is node else " "
            shown.append(f"{mark} {text.format_node(neighbour, self.named)[0]}")
        raise VerificationError(
            what, where=str(node.origin) or None, why="\n".join(filter(None, [why, *shown]))
        )

    def name(self, value: ir.Value) -> str:
        return self.named.get(value, repr(value))

    def definitions(self) -> set[ir.Value]:
        """Each name and each value is defined once."""
        for kind, listed in (
            ("input", [v.name for v in self.graph.inputs]),
            ("constant", list(self.graph.constants)),
        ):
            twice = [name for name, count in Counter(listed).items() if count > 1]
            if twice and self.graph.name != "region":
                self.fail(f"the {kind} {twice[0]!r} is defined twice")
        for name, constant in self.graph.constants.items():
            if constant.name != name:
                self.fail(f"the constant @{name} calls itself @{constant.name}")
            held = constant.tensor
            if held is not None and (held.dtype, tuple(held.shape)) != (
                constant.tensor_type.dtype,
                constant.tensor_type.shape,
            ):
                self.fail(
                    f"the constant @{name} is {constant.type}, its tensor is {held.dtype} {list(held.shape)}"
                )
        return {*self.graph.inputs, *self.graph.constants.values()}

    def operands(self, node: ir.Node, defined: set[ir.Value]) -> None:
        if node.graph is not self.graph:
            self.fail("a node belongs to another graph than it stands in", node)
        for value in node.operand_values:
            if value not in defined:
                self.fail(f"{self.name(value)} is used before it is defined", node)
        for i, value in enumerate(node.results):
            if value.producer is not node or value.index != i:
                self.fail(f"result {i} names another producer or place", node)
            if value in defined:
                self.fail(f"{self.name(value)} is defined twice", node)

    def dims(self, node: ir.Node, known: set[str]) -> None:
        unknown = ir.free_dims(node) - known
        if unknown:
            self.fail(f"the size {sorted(unknown)[0]!r} is used before an input or result defines it", node)

    def types(self, node: ir.Node, context: FakeContext) -> None:
        if node.op is torch.ops.higher_order.cond:
            inferred = [v.type for v in node.regions[0].result_values]
        elif node.regions and not isinstance(node.op, Fusion):
            return  # loops stack and carry what their regions return, each in its own way
        elif isinstance(node.op, Fusion):
            inferred = [v.type for v in node.region.result_values] if node.region else []
        else:
            try:
                args = ir.map_operand(node.operands, context.operand)
                kwargs = {k: ir.map_operand(v, context.operand) for k, v in node.kwargs.items()}
                inferred = list(fake_call(context, node.op, args, kwargs))
            except CaptureError as error:
                self.fail(error.what, node, error.why)
        if len(inferred) != len(node.results) and node.results:
            self.fail(
                f"{op_name(node.op)} gives {len(inferred)} results, the node has {len(node.results)}", node
            )
        for value, wanted in zip(node.results, inferred, strict=False):
            if not _agree(value.type, wanted):
                self.fail(f"{self.name(value)} is said to be {value.type}, the op gives {wanted}", node)

    def region(self, node: ir.Node, region: ir.Graph) -> None:
        if region is self.graph or not is_region_op(node.op):
            self.fail("a region contains itself, or stands on an op that takes none", node)
        if not isinstance(node.op, Fusion):
            return
        if len(region.inputs) != len(node.operands):
            self.fail(
                f"the region takes {len(region.inputs)} values, the node has {len(node.operands)} operands",
                node,
            )
        for inner, outer in zip(region.inputs, node.operands, strict=True):
            if not isinstance(outer, ir.Value) or not _agree(inner.type, outer.type):
                self.fail(f"a region's parameter is {inner.type}, its operand {outer!r}", node)

    def results(self, defined: set[ir.Value]) -> None:
        for value in self.graph.result_values:
            if value not in defined:
                self.fail(f"the graph returns {value!r}, which it does not define")
        for target in self.graph.writebacks:
            if target not in defined or target.producer is not None:
                self.fail(f"the write-back target {target!r} is neither an input nor a constant of the graph")

    def links(self) -> None:
        """Use lists say just what the operands and results say."""
        uses: dict[ir.Value, Counter[ir.Node]] = {
            v: Counter() for v in (*self.graph.inputs, *self.graph.constants.values())
        }
        for node in self.graph.nodes:
            uses.update({v: Counter() for v in node.results})
            for value in node.operand_values:
                uses[value][node] += 1
        returned = Counter(self.graph.result_values)
        for value, users in uses.items():
            if value._users != users:
                self.fail(f"the use list of {self.name(value)} does not match its uses", value.producer)
            if value._result_uses != returned[value]:
                self.fail(f"{self.name(value)} miscounts its uses as a result", value.producer)


def _agree(said: object, inferred: object) -> bool:
    """Equal, but for the memory format; a data-dependent size has a new name in each inference."""
    if not isinstance(said, TensorType) or not isinstance(inferred, TensorType):
        return said == inferred or (
            isinstance(said, ScalarType) and isinstance(inferred, ScalarType) and said.kind == inferred.kind
        )
    if (said.dtype, said.device, said.rank) != (inferred.dtype, inferred.device, inferred.rank):
        return False
    return all(_same_size(a, b) for a, b in zip(said.shape, inferred.shape, strict=True))


def _same_size(a: dims.Dim, b: dims.Dim) -> bool:
    if a == b or any(name.startswith("u") for name in dims.free_names([a, b])):
        return True
    return isinstance(a, (int, sympy.Expr)) and sympy.simplify(sympy.sympify(a) - sympy.sympify(b)) == 0


def _new_dims(value: ir.Value) -> set[str]:
    if isinstance(value.type, TensorType):
        return dims.free_names(list(value.type.shape))
    return dims.free_names(value.type.expr) if isinstance(value.type, ScalarType) else set()


def _input_dims(graph: ir.Graph) -> set[str]:
    if graph.name == "region":
        return set(graph.dims)
    return set().union(*(_new_dims(v) for v in graph.inputs)) if graph.inputs else set()


__all__ = ["verify"]
