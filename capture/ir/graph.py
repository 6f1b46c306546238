"""The one data structure: Graph.

A graph is an ordered list of nodes; the order is the schedule. Nodes are pure. Use lists are two-way
and kept by the graph: edit through the methods here, never by touching the lists.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from capture.errors import CaptureError
from capture.ir.node import (
    Constant,
    Impl,
    Node,
    Op,
    Operand,
    RegionRef,
    Value,
    free_dims,
    map_operand,
    values_in,
)
from capture.ir.nodelist import NodeList
from capture.ir.ops import Fusion, is_region_op, normal_form, op_name
from capture.ir.origin import CapturedOp, Origin
from capture.ir.types import Range, TensorType, ValueType, type_of

if TYPE_CHECKING:
    import networkx


class Dims(dict[str, Range]):
    """Ranges of a graph's symbolic sizes by name; regions share their graph's.

    Keeps the fake context that was made for them.
    """

    context: Any = None


class Graph:
    """An ordered, pure dataflow graph over ATen operators.

    Attributes:
        inputs: Values that a caller passes, one per flattened argument.
        constants: Constants by module path.
        dims: ranges of the symbolic sizes by name.
        nodes: the nodes in order; safe to edit while it is walked.
        results: what the graph returns: Values, literals or sizes, flat.
        writebacks: the tensor to be updated (a Constant or an input) -> the Value it gets at the end.
        in_spec, out_spec: pytree structure of ``(args, kwargs)`` and of the returned object; None means flat.
        captured: what capture saw, by id; `Node.origin` points into it.
        history: a row per pass that has run.
        fates: what passes did to captured ops, by id; the rest are as captured.
        frontend: how the graph was captured; `attempts`: a row (front end, reason) for each one tried.
        owner: of a region, the node that it belongs to.
    """

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.constants: dict[str, Constant] = {}
        self.dims = Dims()
        self.results: list[Operand] = []
        self.writebacks: dict[Value, Value] = {}
        self.in_spec: Any = None
        self.out_spec: Any = None
        self.captured: dict[int, CapturedOp] = {}
        self.history: list[Any] = []
        self.fates: dict[int, Any] = {}
        self.frontend: str = ""
        self.attempts: list[tuple[str, str]] = []
        self.owner: Node | None = None
        self.nodes = NodeList()
        self._version = 0
        self._analyses: dict[str, Any] = {}

    @property
    def version(self) -> int:
        """Grows with every edit, of a region too; analyses name the version they were made for."""
        return self._version

    @version.setter
    def version(self, version: int) -> None:
        self._version = version
        if self.owner is not None and self.owner.graph is not None:
            self.owner.graph.version += 1

    def find(self, *ops: Op) -> Iterator[Node]:
        """Nodes of any of `ops`, in order."""
        return (n for n in self.nodes if n.is_op(*ops))

    def ancestors(self) -> Iterator[Graph]:
        """The graph itself, the one that it is a region of, and so on outwards."""
        graph: Graph | None = self
        while graph is not None:
            yield graph
            graph = graph.owner.graph if graph.owner is not None else None

    def order(self) -> dict[Node, int]:
        """Position of each node; made once per version."""
        order: dict[Node, int] = self.analysis("order", lambda: {n: i for i, n in enumerate(self.nodes)})
        return order

    def analysis(self, name: str, make: Callable[[], Any]) -> Any:
        """The analysis of that name for the graph as it stands, made anew where the graph has changed."""
        version, value = self._analyses.get(name, (-1, None))
        if version != self.version:
            value = make()
            self.attach(name, value)
        return value

    def attach(self, name: str, value: Any) -> None:
        """Keep an analysis made for this version."""
        self._analyses[name] = (self.version, value)

    def attached(self, name: str) -> Any:
        """The analysis of that name, or None where there is none for the graph as it stands."""
        version, value = self._analyses.get(name, (-1, None))
        return value if version == self.version else None

    @property
    def memory_plan(self) -> Any:
        """The MemoryPlan for the graph as it stands, or None."""
        return self.attached("memory_plan")

    @property
    def result_values(self) -> list[Value]:
        """Values that outlive the graph: results and written-back ones."""
        return [v for v in self.results if isinstance(v, Value)] + list(self.writebacks.values())

    def add_input(self, name: str, type: ValueType) -> Value:
        value = Value(type, name)
        self.inputs.append(value)
        self.version += 1
        return value

    def new_region(self) -> Graph:
        """An empty graph for a region of one of this graph's nodes: it shares the dims."""
        region = Graph("region")
        region.dims = self.dims
        return region

    def add_constant(self, name: str, data: torch.Tensor | TensorType) -> Constant:
        """Add a constant under `name` (made unique by a suffix), bound if given a tensor."""
        unique, n = name, 1
        while unique in self.constants:
            unique, n = f"{name}.{n}", n + 1
        if isinstance(data, TensorType):
            constant = Constant(data, unique)
        else:
            data = data.detach()
            constant = Constant(type_of(data), unique, data)
        self.constants[unique] = constant
        self.version += 1
        return constant

    def add_node(
        self,
        op: Op,
        operands: Sequence[Operand] = (),
        kwargs: Mapping[str, Operand] | None = None,
        *,
        types: Sequence[ValueType] | None = None,
        origin: Origin | None = None,
        regions: Sequence[Graph] = (),
        impl: Impl | None = None,
        before: Node | None = None,
        after: Node | None = None,
    ) -> Node:
        """Add a node at the end, or beside another. Without `types` they are inferred by a fake call.

        Raises:
            TypeError: the operands do not fit the op's schema.
            ValueError: a region contains itself, or the place is not in this graph.
            CaptureError: inference fails, since the op refuses the operands.
        """
        self._check_place(before, after)
        if any(region is around for around in self.ancestors() for region in regions):
            raise ValueError("a region cannot contain itself")
        node = Node(self, op, (), {}, origin or Origin())
        node.operands, node.kwargs = args, kw = normal_form(op, operands, kwargs or {})
        node.regions = tuple(regions)
        node.impl = impl
        if types is None:
            from capture.ir.infer import infer_types

            types = infer_types(self, node)
        node.results = [Value(t, "", node, i) for i, t in enumerate(types)]
        for region in node.regions:
            region.owner = node
        self.nodes._insert(node, before, after)
        node._set(args, kw)
        return node

    def set_results(self, results: Sequence[Operand]) -> None:
        for v in values_in(self.results):
            v._result_uses -= 1
        self.results = list(results)
        for v in values_in(self.results):
            v._result_uses += 1
        self.version += 1

    def set_writeback(self, target: Value, value: Value) -> None:
        """When the graph ends, `target` (a constant or an input) is given `value`."""
        if target in self.writebacks:
            self.writebacks[target]._result_uses -= 1
        self.writebacks[target] = value
        value._result_uses += 1
        self.version += 1

    def set_result_type(self, value: Value, type: ValueType) -> None:
        value.type = type
        self.version += 1

    def replace_uses(self, old: Value, new: Operand) -> None:
        """Put `new` wherever `old` is used, results and write-backs included.

        Raises:
            TypeError: `old` is written back, and `new` is not a Value; nothing is changed.
        """
        if old is new:
            return
        written = [target for target, value in self.writebacks.items() if value is old]
        if written and not isinstance(new, Value):
            raise TypeError(f"the write-back of {written[0]!r} needs a value, not {new!r}")
        for user in old.users:
            user.replace_operand(old, new)
        for target in written:
            self.set_writeback(target, new)
        if any(v is old for v in self.results):
            self.set_results([new if v is old else v for v in self.results])

    def replace_node(self, old: Node, new: Sequence[Operand]) -> None:
        """Put `new[i]` for the old node's i-th result, unite the origins, erase the old node.

        Raises:
            ValueError: the counts differ, or `old` is not (or no longer) a node of this graph.
        """
        self._check_own(old)
        if len(new) != len(old.results):
            raise ValueError(f"{op_name(old.op)} has {len(old.results)} results; {len(new)} given")
        for before, after in zip(old.results, new, strict=True):
            if isinstance(after, Value) and after.producer is not None:
                after.producer.origin = after.producer.origin | old.origin
            self.replace_uses(before, after)
        self.erase(old)

    def erase(self, node: Node) -> None:
        """Take out a node whose results nobody uses.

        Raises:
            ValueError: a result is still used, or this is not (or no longer) a node of this graph.
        """
        self._check_own(node)
        for v in node.results:
            if v.num_uses:
                raise ValueError(f"cannot erase {op_name(node.op)}: its result {v.index} is still used")
        for v in node.operand_values:
            v._users.pop(node, None)
        self.nodes._remove(node)
        node.graph = None
        self.version += 1

    def erase_constant(self, name: str) -> None:
        """Take out a constant that nobody uses.

        Raises:
            KeyError: there is none of that name.
            ValueError: it is still used, or written back to.
        """
        if self.constants[name].num_uses or self.constants[name] in self.writebacks:
            raise ValueError(f"cannot erase the constant @{name}: it is still used")
        del self.constants[name]
        self.version += 1

    def move(self, node: Node, *, before: Node | None = None, after: Node | None = None) -> None:
        """Put a node elsewhere in the order; without a place, at the end."""
        self._check_own(node)
        self._check_place(before, after)
        if node is before or node is after:
            return
        self.nodes._remove(node)
        self.nodes._insert(node, before, after)
        self.version += 1

    def reorder(self, nodes: Iterable[Node]) -> None:
        """Give the nodes a new order.

        Raises:
            ValueError: `nodes` is not a permutation of the present ones.
        """
        wanted = list(nodes)
        if len(wanted) != len(self.nodes) or set(wanted) != set(self.nodes):
            raise ValueError("a new order must hold each node of the graph once")
        self.nodes._clear()
        for node in wanted:
            self.nodes._insert(node, None, None)
        self.version += 1

    def _check_own(self, node: Node) -> None:
        if node.graph is not self:
            raise ValueError(f"{node!r} is not a node of this graph" + " any more" * (node.graph is None))

    def _check_place(self, before: Node | None, after: Node | None) -> None:
        if before is not None and after is not None:
            raise ValueError("give `before` or `after`, not both")
        for node in (before, after):
            if node is not None:
                self._check_own(node)

    # -- whole-graph operations, each in a file of its own ------------------------------------------------

    def clone(self) -> Graph:
        """A copy that shares constant tensors and nothing else."""
        from capture.ir.copying import clone

        return clone(self)

    def verify(self) -> Graph:
        """Check every invariant. Returns the graph; raises VerificationError."""
        from capture.ir.verify import verify

        verify(self)
        return self

    def run(self, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
        """Call the ops in order. `dtype=torch.float64` computes every floating value in fp64."""
        from capture.ir.interpreter import run

        return run(self, args, kwargs, dtype=dtype)

    def bind(self, state: Mapping[str, torch.Tensor]) -> Graph:
        """Give constants their tensors by name. Raises KeyError or TypeError on a missing or unfit one."""
        from capture.ir.copying import bind

        return bind(self, state)

    @staticmethod
    def parse(text: str) -> Graph:
        """Read a graph from its text; constants are unbound."""
        from capture.ir.parse import parse

        return parse(text)

    def save(self, path: Any) -> None:
        """Write structure and weights to one safetensors file."""
        from capture.ir.serialize import save

        save(self, path)

    @staticmethod
    def load(path: Any) -> Graph:
        """Read what `save` wrote. Nothing in the file is executed."""
        from capture.ir.serialize import load

        return load(path)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """Values as edges between nodes; keys are the printed names."""
        from capture.ir.convert import to_networkx

        return to_networkx(self)

    def to_fx(self) -> torch.fx.GraphModule:
        """A runnable GraphModule from the flat inputs to the tuple of results."""
        from capture.ir.convert import to_fx

        return to_fx(self)

    def __str__(self) -> str:
        from capture.ir.text import format_graph

        return format_graph(self)

    def _repr_svg_(self) -> str | None:
        """What a notebook shows; None, and so the text, where the drawing tools are not installed."""
        try:
            picture: str = importlib.import_module("viz").svg(self)  # by name: imports run down
        except CaptureError:
            return None
        return picture

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {len(self.inputs)} inputs, {len(self.nodes)} nodes>"


__all__ = [
    "CapturedOp", "Constant", "Dims", "Fusion", "Graph", "Impl", "Node", "NodeList", "Op", "Operand",
    "Origin", "RegionRef", "Value", "free_dims", "is_region_op", "map_operand", "values_in",
]  # fmt: skip
