"""Graph -> networkx and Graph -> torch.fx."""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import networkx
import sympy
import torch
from torch._ops import OpOverload

from capture.errors import CaptureError
from capture.ir import dims, text
from capture.ir import graph as ir
from capture.ir.ops import Fusion, Trait, has, is_predicate, op_name
from capture.ir.types import ScalarType, TensorType, type_names

aten = torch.ops.aten


def to_networkx(graph: ir.Graph) -> networkx.MultiDiGraph:
    """A node for each node, input and constant, and one for each result and write-back.

    Keys: the printed name of a node's first result (``op#position`` where it has none), of an input or
    constant; ``result 0``, ``write @name``. Node attributes: kind (input, constant, node, result, write), op,
    origin, `node` (the Node itself), type; edge attributes: value, type, bytes.
    """
    named = text.names(graph)
    out = networkx.MultiDiGraph(name=graph.name)
    keys: dict[ir.Value, str] = {}

    def connect(value: ir.Value, key: str) -> None:
        out.add_edge(keys[value], key, value=named[value], type=str(value.type), bytes=_bytes(value))

    for value in (*graph.inputs, *graph.constants.values()):
        keys[value] = named[value]
        out.add_node(named[value], kind="constant" if value.is_constant else "input", type=str(value.type))
    for position, node in enumerate(graph.nodes):
        key = named[node.results[0]] if node.results else f"{op_name(node.op)}#{position}"
        out.add_node(key, kind="node", op=op_name(node.op), origin=str(node.origin), node=node)
        keys.update(dict.fromkeys(node.results, key))
        for value in node.operand_values:
            connect(value, key)
    for position, result in enumerate(graph.results):
        out.add_node(f"result {position}", kind="result")
        if isinstance(result, ir.Value):
            connect(result, f"result {position}")
    for target, value in graph.writebacks.items():
        out.add_node(f"write {named[target]}", kind="write")
        connect(value, f"write {named[target]}")
    return out


def _bytes(value: ir.Value) -> Any:
    return value.type.nbytes if isinstance(value.type, TensorType) else 0


def to_fx(graph: ir.Graph) -> torch.fx.GraphModule:
    """A GraphModule over the flat inputs; returns the tuple of results. Regions become submodules.

    Written-back tensors are updated by ``copy_`` at the end, as the interpreter does.

    Raises:
        CaptureError: a constant is unbound, or a size is used that no input tells.
    """
    return _Converter(graph).convert()


def call_with(
    module: torch.fx.GraphModule,
    graph: ir.Graph,
    tensors: Mapping[str, torch.Tensor],
    flat: Sequence[Any],
) -> list[Any]:
    """The flat results of `to_fx(graph)` with other tensors for some constants; autograd sees them."""
    keys = dict(zip(graph.constants, (key for key, _ in module.named_buffers()), strict=True))
    given = {keys[name]: tensor for name, tensor in tensors.items()}
    return list(torch.func.functional_call(module, given, tuple(flat)))


class _Converter:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.root = torch.nn.Module()
        self.fx = torch.fx.Graph()
        self.values: dict[ir.Value, Any] = {}
        self.sizes: dict[str, _Size] = {}
        self.told: list[tuple[dims.Dim, Any, int | None]] = []  # a size; the fx node and axis that tell it

    def convert(self, sizes: Iterable[str] = (), *, bare: bool = False) -> torch.fx.GraphModule:
        """`sizes` are the names that a region is given behind its operands; `bare` results are no tuple."""
        taken: set[str] = set()
        for value in self.graph.inputs:
            self._define(value, self.fx.placeholder(_identifier(value.name or "arg", taken)))
        for name in sizes:
            self.sizes[name] = _Size(self.fx, self.fx.placeholder(_identifier(name, taken)))
        for i, constant in enumerate(self.graph.constants.values()):
            if constant.tensor is None:
                raise CaptureError(
                    f"the constant @{constant.name} has no value", hint="graph.bind(state_dict)"
                )
            attribute = f"constant_{i}_{_identifier(constant.name, set())}"
            self.root.register_buffer(attribute, constant.tensor)
            self.values[constant] = self.fx.get_attr(attribute)
        for node in self.graph.nodes:
            self._node(node)
        self._finish(bare)
        class_name = _identifier(self.graph.name, set()).capitalize()
        module = torch.fx.GraphModule(self.root, self.fx, class_name=class_name)
        module.graph.lint()
        return module

    def _finish(self, bare: bool) -> None:
        """Results, and before them the write-backs; what shares memory with a target is copied first."""
        results = [self._leaf(v) for v in self.graph.results]
        if self.graph.writebacks:
            results = [
                self._copied(v) if isinstance(v, ir.Value) else result
                for v, result in zip(self.graph.results, results, strict=True)
            ]
            written = [self._copied(v) for v in self.graph.writebacks.values()]
            for target, value in zip(self.graph.writebacks, written, strict=True):
                self.fx.call_function(aten.copy_.default, (self.values[target], value))
        self.fx.output(results[0] if bare else tuple(results))

    def _copied(self, value: ir.Value) -> Any:
        made = self.values[value]
        fresh = not isinstance(value.type, TensorType) or (value.producer and _makes_memory(value.producer))
        return made if fresh else self.fx.call_function(aten.clone.default, (made,))

    def _node(self, node: ir.Node) -> None:
        args = list(ir.map_operand(node.operands, self._leaf))
        kwargs = {k: ir.map_operand(v, self._leaf) for k, v in node.kwargs.items()}
        if isinstance(node.op, Fusion):
            name, sizes = self._region(node, 0)
            made = self.fx.call_module(name, (*args, *sizes))
        else:
            args = [self._branch(node, a.index) if isinstance(a, ir.RegionRef) else a for a in args]
            made = self.fx.call_function(node.op, tuple(args), kwargs)
        made.meta["origin"] = node.origin
        made.meta["stack_trace"] = "\n".join(
            f'  File "{f}", line {n}, in forward' for f, n in node.origin.locations
        )
        if len(node.results) == 1 and not node.regions and not _returns_list(node):
            self._define(node.results[0], made)
            return
        for i, value in enumerate(node.results):
            self._define(value, self.fx.call_function(operator.getitem, (made, i)))

    def _region(self, node: ir.Node, index: int) -> tuple[str, list[Any]]:
        """Make a submodule of a region; returns its name, and the sizes to be passed behind its operands."""
        region = node.regions[index]
        converter = _Converter(region)
        names = sorted(_names_used(region)) if isinstance(node.op, Fusion) else []
        name = f"{_identifier(op_name(node.op), set())}_{len(self.root._modules)}"
        self.root.add_module(name, converter.convert(names, bare=is_predicate(node.op, index)))
        return name, [self._size(n).node for n in names]

    def _branch(self, node: ir.Node, index: int) -> torch.fx.Node:
        return self.fx.get_attr(self._region(node, index)[0])

    def _define(self, value: ir.Value, made: torch.fx.Node) -> None:
        self.values[value] = made
        if isinstance(value.type, ScalarType) and value.type.expr is not None:
            self.told.append((value.type.expr, made, None))
        if isinstance(value.type, TensorType):
            self.told += [
                (dim, made, axis) for axis, dim in enumerate(value.type.shape) if dims.is_symbolic(dim)
            ]

    def _size(self, name: str) -> _Size:
        """The size of that name, computed from the first value that tells it."""
        progress = True
        while name not in self.sizes and progress:
            progress = False
            for dim, made, axis in self.told:
                if found := dims.unknown(dim, self.sizes):
                    size = _Size(self.fx, made)
                    if axis is not None:
                        size = size.apply(aten.sym_size.int, made, axis)
                    self.sizes[found[0]] = self._solved(size, found[1], found[2])
                    progress = True
        if name not in self.sizes:
            raise CaptureError(f"nothing tells the size {name} where it is needed")
        return self.sizes[name]

    def _solved(self, size: _Size, slope: dims.Dim, rest: dims.Dim) -> _Size:
        if rest != 0:
            size = size + self._expression(-rest)
        return size if slope == 1 else size // self._expression(slope)

    def _expression(self, expr: dims.Dim) -> Any:
        return dims.fold(dims.canonical(expr), lambda s: self._size(s.name), minimum=_min, maximum=_max)

    def _leaf(self, operand: Any) -> Any:
        if isinstance(operand, ir.Value):
            return self.values[operand]
        if isinstance(operand, sympy.Expr):
            return getattr(found := self._expression(operand), "node", found)
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


def _names_used(graph: ir.Graph) -> set[str]:
    """Names of the sizes that a region's nodes and results mention, but for those it defines itself."""
    used = dims.free_names([r for r in graph.results if not isinstance(r, ir.Value)])
    made: set[str] = set()
    for node in graph.nodes:
        used |= ir.free_dims(node).union(*map(_names_used, node.regions))
        made |= {n for v in node.results for n in type_names(v.type) if dims.is_data_dependent(n)}
    return used - made


def _returns_list(node: ir.Node) -> bool:
    returns = node.op._schema.returns
    return len(returns) != 1 or str(returns[0].type).startswith("List")


def _makes_memory(node: ir.Node) -> bool:
    """Whether a node's results surely share no memory with its operands."""
    computes = Trait.POINTWISE | Trait.REDUCTION | Trait.MATMUL | Trait.CONV | Trait.NORM
    if (
        not isinstance(node.op, OpOverload)
        or not has(node.op, computes)
        or has(node.op, Trait.RANDOM | Trait.VIEW)
    ):
        return False
    return all(r.alias_info is None for r in node.op._schema.returns)


def _identifier(name: str, taken: set[str]) -> str:
    """A Python name like `name`, unlike those taken; it is taken from then on."""
    cleaned = re.sub(r"\W", "_", name) or "_"
    if cleaned[0].isdigit() or keyword.iskeyword(cleaned) or cleaned == "self":
        cleaned = f"_{cleaned}"
    unique, n = cleaned, 1
    while unique in taken:
        unique, n = f"{cleaned}_{n}", n + 1
    taken.add(unique)
    return unique
