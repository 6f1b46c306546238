"""Check every invariant of a graph; say where it breaks, with the neighbouring nodes and the user's line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import sympy
from torch._ops import HigherOrderOperator, OpOverload

from capture.errors import CaptureError, VerificationError
from capture.ir import dims, text
from capture.ir import graph as ir
from capture.ir.infer import FakeContext, call_types, context_for, parameter_operands, region_op_types
from capture.ir.ops import Fusion, is_predicate, is_region_op, normal_form, op_name
from capture.ir.scan import IDENTIFIER
from capture.ir.types import LiteralType, ScalarType, TensorType, type_names

_NEIGHBOURS = 2


def verify(graph: ir.Graph) -> None:
    """Single definition, definition before use, links, purity, sizes, types as inferred, sound regions.

    Raises:
        VerificationError: the first thing found wrong.
    """
    for name, bounds in graph.dims.items():
        if not dims.is_name(name):
            raise VerificationError(f"a size cannot be named {name!r}")
        if bounds.lower < 0 or (bounds.upper is not None and bounds.upper < bounds.lower):
            raise VerificationError(f"the range {bounds} of the size {name!r} is empty or negative")
    _Check(graph, text.names(graph), context_for(graph)).run()


class _Check:
    """The checks of one graph; each region gets its own."""

    def __init__(
        self,
        graph: ir.Graph,
        named: Mapping[ir.Value, str],
        context: FakeContext,
        known: set[str] | None = None,
        around: tuple[ir.Graph, ...] = (),
    ) -> None:
        self.graph = graph
        self.named = dict(named)
        self.context = context
        self.known = known  # names of the sizes that a region finds defined; None for a whole graph
        self.around = around  # the graphs that a region lies in

    def run(self) -> None:
        defined = self.definitions()
        known = self.input_dims() if self.known is None else set(self.known)
        for node in self.graph.nodes:
            self.operands(node, defined)
            self.literals(node)
            self.sizes(node, known)
            self.results_of(node, defined)
            self.regions(node, known)
            self.types(node)
            defined.update(node.results)
            for value in node.results:
                known |= type_names(value.type)
        self.results(defined, known)
        self.writebacks(defined)
        self.links()

    def fail(self, what: str, node: ir.Node | None = None, why: str | None = None) -> NoReturn:
        if node is None:
            raise VerificationError(what, why=why)
        nodes = list(self.graph.nodes)
        at = nodes.index(node) if node in nodes else len(nodes)
        shown = [] if why is None else [why]
        for neighbour in nodes[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS + 1]:
            shown.append(f"{'>' if neighbour is node else ' '} {self.line(neighbour)}")
        raise VerificationError(what, where=node.where, why="\n".join(shown))

    def line(self, node: ir.Node) -> str:
        try:
            return text.format_call(node, self.named)
        except (TypeError, ValueError):  # what is wrong with it may be just that it cannot be printed
            return f"{op_name(node.op)}(...)"

    def name(self, value: ir.Value) -> str:
        return self.named.get(value, repr(value))

    def definitions(self) -> set[ir.Value]:
        """Each name is defined once; a constant's tensor is what its type says."""
        if self.known is None:  # a region's parameters are named when printed
            twice = [name for name, count in Counter(v.name for v in self.graph.inputs).items() if count > 1]
            if twice:
                self.fail(f"the input {twice[0]!r} is defined twice")
            if self.graph.in_spec is not None and self.graph.in_spec.num_leaves != len(self.graph.inputs):
                self.fail("the structure of the inputs has another number of leaves than there are inputs")
        for name, constant in self.graph.constants.items():
            if constant.name != name:
                self.fail(f"the constant @{name} calls itself @{constant.name}")
            held, wanted = constant.tensor, constant.tensor_type
            if held is not None and (held.dtype, tuple(held.shape)) != (wanted.dtype, wanted.shape):
                self.fail(f"the constant @{name} is {wanted}, its tensor is {held.dtype} {list(held.shape)}")
        return {*self.graph.inputs, *self.graph.constants.values()}

    def input_dims(self) -> set[str]:
        """Names of the sizes that the inputs tell. Each has a range; only data decide the others."""
        known: set[str] = set()
        for value in self.graph.inputs:
            for name in sorted(type_names(value.type)):
                if name not in self.graph.dims and not dims.is_data_dependent(name):
                    self.fail(f"the size {name!r} of {self.name(value)} has no range")
        sizes = [size for value in self.graph.inputs for size in _sizes_of(value)]
        while found := next((u for size in sizes if (u := dims.unknown(size, known))), None):
            known.add(found[0])
        return known

    def operands(self, node: ir.Node, defined: set[ir.Value]) -> None:
        if node.graph is not self.graph:
            self.fail("a node belongs to another graph than it stands in", node)
        if not isinstance(node.op, (OpOverload, HigherOrderOperator, Fusion)):
            self.fail(f"{node.op!r} is no operator", node)
        if isinstance(node.op, OpOverload) and node.op._schema.is_mutable:
            self.fail(f"{op_name(node.op)} writes to its operand; nodes are pure", node)
        for value in node.operand_values:
            if value not in defined:
                self.fail(f"{self.name(value)} is used before it is defined", node)
        try:
            normal = normal_form(node.op, node.operands, node.kwargs)
        except TypeError as error:
            self.fail(str(error), node)
        if normal != (node.operands, node.kwargs):
            self.fail("the operands are not in normal form; set_operands keeps them so", node)

    def literals(self, node: ir.Node) -> None:
        """Text can hold every literal; an impl's options are literals too."""
        operands = [node.operands, list(node.kwargs.values())]
        if node.impl is not None:
            options = list(node.impl.options.values())
            if not all(map(IDENTIFIER.fullmatch, node.impl.options)) or list(ir.values_in(options)):
                self.fail(f"the options of {node.impl.kernel} are not literals by name", node)
            operands.append(options)
        try:
            text.format_operand(operands, self.named)
        except (TypeError, ValueError) as error:
            self.fail(str(error), node)

    def sizes(self, node: ir.Node, known: set[str]) -> None:
        unknown = ir.free_dims(node) - known
        if unknown:
            self.fail(f"the size {min(unknown)!r} is used before an input or result defines it", node)
        for value in node.results:
            new = {n for n in type_names(value.type) - known if not dims.is_data_dependent(n)}
            if new:
                self.fail(f"{self.name(value)} has a size {min(new)!r} that no input defines", node)
            for symbol in _symbols(value.type):
                if symbol != dims.symbol(symbol.name):
                    self.fail(f"the symbol {symbol} is not that of a size: make it with symbol()", node)

    def results_of(self, node: ir.Node, defined: set[ir.Value]) -> None:
        for i, value in enumerate(node.results):
            if value.producer is not node or value.index != i:
                self.fail(f"result {i} names another producer or place", node)
            if value in defined:
                self.fail(f"{self.name(value)} is defined twice", node)
            if isinstance(value.type, LiteralType):
                self.fail(f"{self.name(value)} is a literal; only inputs are baked in", node)

    def types(self, node: ir.Node) -> None:
        try:
            inferred = region_op_types(node) if node.regions else call_types(self.context, node)
        except CaptureError as error:
            self.fail(error.what, node, error.why)
        if inferred is None:  # only the op knows what it makes of its regions
            return
        if len(inferred) != len(node.results) and node.results:
            self.fail(
                f"{op_name(node.op)} gives {len(inferred)} results, the node has {len(node.results)}", node
            )
        for value, wanted in zip(node.results, inferred, strict=False):
            if not self.agree(value.type, wanted):
                self.fail(f"{self.name(value)} is said to be {value.type}, the op gives {wanted}", node)

    def regions(self, node: ir.Node, known: set[str]) -> None:
        if bool(node.regions) != is_region_op(node.op):
            self.fail(f"{op_name(node.op)} {'takes no regions' if node.regions else 'needs a region'}", node)
        if isinstance(node.op, Fusion) and len(node.regions) != 1:
            self.fail(f"a fusion has one region, not {len(node.regions)}", node)
        for leaf in _leaves((node.operands, list(node.kwargs.values()))):
            if isinstance(leaf, ir.RegionRef) and leaf.index not in range(len(node.regions)):
                self.fail(f"there is no region ^{leaf.index}", node)
        around = (*self.around, self.graph)
        for index, region in enumerate(node.regions):
            if any(region is g for g in around):
                self.fail("a region contains itself", node)
            if region.owner is not node:
                self.fail("a region belongs to another node", node)
            if region.dims is not self.graph.dims:
                self.fail("a region has sizes of its own: make it with new_region()", node)
            if region.writebacks:
                self.fail("a region writes back; only whole graphs do", node)
            _Check(region, text.region_names(region), self.context, known, around).run()
            self.parameters(node, region)
            if not is_predicate(node.op, index):
                self.branches(node, region, node.regions[-1])

    def parameters(self, node: ir.Node, region: ir.Graph) -> None:
        """A region's parameters are of the types of the operands they stand for."""
        operands = parameter_operands(node)
        if operands is None:
            return
        if len(region.inputs) != len(operands):
            self.fail(
                f"the region takes {len(region.inputs)} values, the node passes {len(operands)} operands",
                node,
            )
        for inner, outer in zip(region.inputs, operands, strict=True):
            if isinstance(node.op, Fusion) and not isinstance(outer, ir.Value):
                self.fail(f"a fusion takes values only, not {outer!r}", node)
            if isinstance(outer, ir.Value) and not self.agree(inner.type, outer.type):
                self.fail(
                    f"a region's parameter is {inner.type}, its operand {self.name(outer)} {outer.type}", node
                )

    def branches(self, node: ir.Node, region: ir.Graph, last: ir.Graph) -> None:
        """Branches return alike."""
        if region_op_types(node) is None:
            return
        found, wanted = ([getattr(v, "type", None) for v in g.results] for g in (region, last))
        pairs = zip(found, wanted, strict=False)
        if len(found) != len(wanted) or not all(self.agree(a, b) for a, b in pairs if a and b):
            self.fail(f"the regions of {op_name(node.op)} return different things", node)

    def results(self, defined: set[ir.Value], known: set[str]) -> None:
        for result in self.graph.results:
            if isinstance(result, (list, tuple)):
                self.fail("the results are not flat: out_spec says how they nest")
            if isinstance(result, ir.Value) and result not in defined:
                self.fail(f"the graph returns {result!r}, which it does not define")
            try:
                text.format_operand(result, self.named)
            except (TypeError, ValueError) as error:
                self.fail(f"a result: {error}")
        unknown = dims.free_names([r for r in self.graph.results if not isinstance(r, ir.Value)]) - known
        if unknown:
            self.fail(f"the graph returns the size {min(unknown)!r}, which nothing defines")
        if self.graph.out_spec is not None and self.graph.out_spec.num_leaves != len(self.graph.results):
            self.fail("the structure of the results has another number of leaves than there are results")

    def writebacks(self, defined: set[ir.Value]) -> None:
        for target, value in self.graph.writebacks.items():
            if target not in defined or target.producer is not None:
                self.fail(f"the write-back target {target!r} is neither an input nor a constant of the graph")
            if value not in defined:
                self.fail(f"the graph writes back {value!r}, which it does not define")
            if not isinstance(target.type, TensorType) or not self.agree(target.type, value.type):
                self.fail(f"{self.name(target)} is {target.type}, what is written to it {value.type}")

    def links(self) -> None:
        """Use lists say just what the operands and results say."""
        values = [*self.graph.inputs, *self.graph.constants.values()]
        uses: dict[ir.Value, Counter[ir.Node]] = {v: Counter() for v in values}
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

    def agree(self, said: Any, inferred: Any) -> bool:
        """Equal, but for the memory format; a data-dependent size has a new name in each inference."""
        if isinstance(said, ScalarType) and isinstance(inferred, ScalarType):
            sizes = [] if said.expr is None or inferred.expr is None else [(said.expr, inferred.expr)]
            return said.kind == inferred.kind and self.same(sizes)
        if not isinstance(said, TensorType) or not isinstance(inferred, TensorType):
            return bool(said == inferred)
        if (said.dtype, said.rank) != (inferred.dtype, inferred.rank):
            return False
        devices = said.device, inferred.device
        if devices[0].type != devices[1].type or (devices[0].index or 0) != (devices[1].index or 0):
            return False
        return self.same(zip(said.shape, inferred.shape, strict=True))

    def same(self, sizes: Iterable[tuple[dims.Dim, dims.Dim]]) -> bool:
        bounds = {name: (r.lower, r.upper) for name, r in self.graph.dims.items()}
        return all(
            a == b or any(map(dims.is_data_dependent, dims.free_names([a, b]))) or dims.equal(a, b, bounds)
            for a, b in sizes
        )


def _sizes_of(value: ir.Value) -> Sequence[dims.Dim]:
    if isinstance(value.type, TensorType):
        return value.type.shape
    return [value.type.expr] if isinstance(value.type, ScalarType) and value.type.expr is not None else []


def _symbols(type_: Any) -> set[sympy.Symbol]:
    sizes = type_.shape if isinstance(type_, TensorType) else [getattr(type_, "expr", None)]
    return {s for size in sizes if isinstance(size, sympy.Expr) for s in size.free_symbols}


def _leaves(operand: Any) -> list[Any]:
    return (
        [leaf for item in operand for leaf in _leaves(item)]
        if isinstance(operand, (list, tuple))
        else [operand]
    )


__all__ = ["verify"]
