"""The one data structure: Graph, Node, Value.

A graph is an ordered list of nodes; the order is the schedule. Nodes are pure. Use lists are two-way
and kept by the graph: edit through the methods here, never by touching the lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from capture.ir import dims
from capture.ir.ops import Fusion, argument, is_region_op, normal_form, op_name
from capture.ir.origin import CapturedOp, Origin
from capture.ir.types import Range, TensorType, ValueType, type_of

if TYPE_CHECKING:
    import networkx

Op: TypeAlias = Any  # torch._ops.OpOverload, torch._ops.HigherOrderOperator or Fusion
Operand: TypeAlias = Any  # Value, RegionRef, None, bool, int, float, str, dtype, device, size expression, or lists of these


@dataclass(frozen=True)
class RegionRef:
    """An operand that stands for the node's `index`-th region (a branch of ``cond``, say)."""

    index: int


@dataclass(frozen=True)
class Impl:
    """How a node is to be executed: a kernel's name and its options (plain literals). Never changes what it means."""

    kernel: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Value:
    """One thing that flows through a graph: an input, a constant, or a result of a node."""

    __slots__ = ("_result_uses", "_users", "index", "name", "producer", "type")

    def __init__(self, type: ValueType, name: str = "", producer: Node | None = None, index: int = 0) -> None:
        self.type = type
        self.name = name  # inputs and constants have names; results are numbered when printed
        self.producer = producer
        self.index = index  # position among the producer's results
        self._users: dict[Node, int] = {}
        self._result_uses = 0

    @property
    def users(self) -> tuple[Node, ...]:
        """The nodes that take this value as an operand, each once, oldest use first."""
        return tuple(self._users)

    @property
    def num_uses(self) -> int:
        """Uses as an operand (an operand taken twice counts twice) and as a result of the graph."""
        return sum(self._users.values()) + self._result_uses

    @property
    def is_result(self) -> bool:
        """Whether the graph returns this value, or writes it back."""
        return self._result_uses > 0

    @property
    def is_constant(self) -> bool:
        return isinstance(self, Constant)

    @property
    def is_input(self) -> bool:
        return self.producer is None and not isinstance(self, Constant)

    @property
    def tensor_type(self) -> TensorType:
        """The type, where it is known to be a tensor's.

        Raises:
            TypeError: the value is a scalar or a literal.
        """
        if not isinstance(self.type, TensorType):
            raise TypeError(f"{self!r} is not a tensor")
        return self.type

    def __repr__(self) -> str:
        if self.producer is None:
            return f"<{'constant @' if self.is_constant else 'input %'}{self.name}: {self.type}>"
        return f"<result {self.index} of {op_name(self.producer.op)}: {self.type}>"


class Constant(Value):
    """A parameter, buffer or folded tensor, named by its module path. `tensor` is None until bound."""

    __slots__ = ("tensor",)

    def __init__(self, type: TensorType, name: str, tensor: torch.Tensor | None = None) -> None:
        super().__init__(type, name)
        self.tensor = tensor


class Node:
    """One operation. Made by `Graph.add_node`."""

    __slots__ = ("_next", "_prev", "graph", "impl", "kwargs", "op", "operands", "origin", "regions", "results")

    def __init__(
        self, graph: Graph, op: Op, operands: tuple[Operand, ...], kwargs: dict[str, Operand], origin: Origin
    ) -> None:
        self.graph: Graph | None = graph
        self.op = op
        self.operands = operands
        self.kwargs = kwargs
        self.origin = origin
        self.results: list[Value] = []
        self.regions: tuple[Graph, ...] = ()
        self.impl: Impl | None = None
        self._prev: Node | None = None
        self._next: Node | None = None

    @property
    def result(self) -> Value:
        """The only result.

        Raises:
            ValueError: the node has none, or several.
        """
        if len(self.results) != 1:
            raise ValueError(f"{op_name(self.op)} has {len(self.results)} results, not one")
        return self.results[0]

    @property
    def region(self) -> Graph | None:
        """The only region, or None."""
        return self.regions[0] if len(self.regions) == 1 else None

    @property
    def operand_values(self) -> list[Value]:
        """Every Value among the operands, nested ones too, in order, with repeats."""
        return list(values_in((self.operands, tuple(self.kwargs.values()))))

    def is_op(self, *ops: Op) -> bool:
        """Whether this node is one of `ops` (overloads; a packet stands for all of its overloads)."""
        return any(self.op is o or getattr(self.op, "overloadpacket", None) is o or self.op == o for o in ops)

    def arg(self, name: str) -> Operand:
        """The operand of that schema name, or its default.

        Raises:
            KeyError: the op has no such argument.
        """
        return argument(self.op, self.operands, self.kwargs, name)

    def set_operands(self, operands: Sequence[Operand], kwargs: Mapping[str, Operand] | None = None) -> None:
        """Replace all operands (and, where given, all keyword operands)."""
        self._drop_uses()
        self.operands, self.kwargs = normal_form(self.op, operands, self.kwargs if kwargs is None else kwargs)
        self._note_uses()
        self._touch()

    def replace_operand(self, old: Value, new: Operand) -> None:
        """Put `new` wherever `old` stands among the operands."""

        def swap(v: Operand) -> Operand:
            return new if v is old else v

        self._drop_uses()
        self.operands = map_operand(self.operands, swap)
        self.kwargs = {k: map_operand(v, swap) for k, v in self.kwargs.items()}
        self._note_uses()
        self._touch()

    def set_impl(self, impl: Impl | None) -> None:
        self.impl = impl
        self._touch()

    def _note_uses(self) -> None:
        for v in self.operand_values:
            v._users[self] = v._users.get(self, 0) + 1

    def _drop_uses(self) -> None:
        for v in self.operand_values:
            v._users.pop(self, None)

    def _touch(self) -> None:
        if self.graph is not None:
            self.graph.version += 1

    def __repr__(self) -> str:
        return f"<node {op_name(self.op)} {self.origin}>".replace(" >", ">")


class NodeList:
    """A graph's nodes in order. Safe to iterate while nodes are added or erased."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __iter__(self) -> Iterator[Node]:
        node = self._graph._first
        while node is not None:
            following = node._next
            yield node
            # Where the body erased `following`, go on from the erased link's own successor.
            node = following if node.graph is None else node._next
            while node is not None and node.graph is None:
                node = node._next

    def __reversed__(self) -> Iterator[Node]:
        node = self._graph._last
        while node is not None:
            preceding = node._prev
            yield node
            node = preceding if node.graph is None else node._prev
            while node is not None and node.graph is None:
                node = node._prev

    def __len__(self) -> int:
        return self._graph._length

    def __getitem__(self, index: int) -> Node:
        return list(self)[index]


class Dims(dict[str, Range]):
    """Ranges of a graph's symbolic sizes by name; regions share their graph's. Keeps the fake context made for it."""

    context: Any = None


class Graph:
    """An ordered, pure dataflow graph over ATen operators.

    Attributes:
        inputs: Values that a caller passes, one per flattened argument.
        constants: Constants by module path.
        dims: ranges of the symbolic sizes by name.
        results: what the graph returns: Values, literals or sizes, flat.
        writebacks: the tensor to be updated (a Constant or an input) -> the Value it gets when the graph ends.
        in_spec, out_spec: pytree structure of ``(args, kwargs)`` and of the returned object; None means flat.
        captured: what capture saw, by id; `Node.origin` points into it.
        history: a row per pass that has run.
        version: grows with every edit; analyses name the version they were made for.
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
        self.frontend: str = ""
        self.version = 0
        self._first: Node | None = None
        self._last: Node | None = None
        self._length = 0
        self._analyses: dict[str, Any] = {}

    # -- looking -----------------------------------------------------------------------------------------

    @property
    def nodes(self) -> NodeList:
        return NodeList(self)

    def find(self, *ops: Op) -> Iterator[Node]:
        """Nodes of any of `ops`, in order."""
        return (n for n in self.nodes if n.is_op(*ops))

    def order(self) -> dict[Node, int]:
        """Position of each node; made once per version."""
        cached: dict[Node, int] = self.analysis("order", lambda: {n: i for i, n in enumerate(self.nodes)})
        return cached

    def analysis(self, name: str, make: Callable[[], Any]) -> Any:
        """The analysis of that name for the graph as it stands, made anew where the graph has changed."""
        version, value = self._analyses.get(name, (-1, None))
        if version != self.version:
            value = make()
            self._analyses[name] = (self.version, value)
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

    # -- building ----------------------------------------------------------------------------------------

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
        """
        args, kw = normal_form(op, operands, kwargs or {})
        node = Node(self, op, args, kw, origin or Origin())
        node.regions = tuple(regions)
        node.impl = impl
        if types is None:
            from capture.ir.infer import infer_types

            types = infer_types(self, node)
        node.results = [Value(t, "", node, i) for i, t in enumerate(types)]
        self._link(node, before, after)
        node._note_uses()
        return node

    def set_results(self, results: Sequence[Operand]) -> None:
        for v in self.results:
            if isinstance(v, Value):
                v._result_uses -= 1
        self.results = list(results)
        for v in self.results:
            if isinstance(v, Value):
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

    # -- editing -----------------------------------------------------------------------------------------

    def replace_uses(self, old: Value, new: Operand) -> None:
        """Put `new` wherever `old` is used, results and write-backs included."""
        if old is new:
            return
        for user in old.users:
            user.replace_operand(old, new)
        if not old.is_result:
            return
        if any(v is old for v in self.results):
            self.set_results([new if v is old else v for v in self.results])
        for target, value in list(self.writebacks.items()):
            if value is old:
                if not isinstance(new, Value):
                    raise TypeError(f"the write-back of @{target.name} needs a value, not {new!r}")
                self.set_writeback(target, new)

    def replace_node(self, old: Node, new: Sequence[Operand]) -> None:
        """Put `new[i]` for the old node's i-th result, unite the origins, erase the old node."""
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
            ValueError: a result is still used.
        """
        for v in node.results:
            if v.num_uses:
                raise ValueError(f"cannot erase {op_name(node.op)}: its result {v.index} is still used")
        node._drop_uses()
        self._unlink(node)
        node.graph = None

    def erase_constant(self, name: str) -> None:
        if self.constants[name].num_uses or self.constants[name] in self.writebacks:
            raise ValueError(f"cannot erase the constant @{name}: it is still used")
        del self.constants[name]
        self.version += 1

    def move(self, node: Node, *, before: Node | None = None, after: Node | None = None) -> None:
        """Put a node elsewhere in the order; without a place, at the end."""
        self._unlink(node)
        self._link(node, before, after)

    def reorder(self, nodes: Iterable[Node]) -> None:
        """Give the nodes a new order (a permutation of the present ones)."""
        wanted = list(nodes)
        if len(wanted) != self._length or set(wanted) != set(self.nodes):
            raise ValueError("a new order must hold each node of the graph once")
        self._first, self._last, self._length = None, None, 0
        for node in wanted:
            node._prev = node._next = None
            self._link(node, None, None)

    def _link(self, node: Node, before: Node | None, after: Node | None) -> None:
        if before is not None and after is not None:
            raise ValueError("give `before` or `after`, not both")
        if before is not None:
            prev, following = before._prev, before
        elif after is not None:
            prev, following = after, after._next
        else:
            prev, following = self._last, None
        node._prev, node._next = prev, following
        if prev is None:
            self._first = node
        else:
            prev._next = node
        if following is None:
            self._last = node
        else:
            following._prev = node
        self._length += 1
        self.version += 1

    def _unlink(self, node: Node) -> None:
        if node._prev is None:
            self._first = node._next
        else:
            node._prev._next = node._next
        if node._next is None:
            self._last = node._prev
        else:
            node._next._prev = node._prev
        self._length -= 1
        self.version += 1

    # -- whole-graph operations, each in a file of its own ------------------------------------------------

    def clone(self) -> Graph:
        """A copy that shares constant tensors and nothing else."""
        from capture.ir.copying import clone

        return clone(self)

    def verify(self) -> Graph:
        """Check every invariant. Returns the graph; raises VerificationError showing the place."""
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
        """A runnable GraphModule that takes the flat inputs and returns the tuple of results."""
        from capture.ir.convert import to_fx

        return to_fx(self)

    def __str__(self) -> str:
        from capture.ir.text import format_graph

        return format_graph(self)

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {len(self.inputs)} inputs, {self._length} nodes>"


def values_in(operand: Operand) -> Iterator[Value]:
    """Every Value in an operand, nested ones too."""
    if isinstance(operand, Value):
        yield operand
    elif isinstance(operand, (list, tuple)):
        for item in operand:
            yield from values_in(item)


def map_operand(operand: Operand, fn: Callable[[Operand], Operand]) -> Operand:
    """Apply `fn` to each leaf of an operand."""
    if isinstance(operand, list):
        return [map_operand(v, fn) for v in operand]
    if isinstance(operand, tuple):
        return tuple(map_operand(v, fn) for v in operand)
    return fn(operand)


def free_dims(node: Node) -> set[str]:
    """Names of the symbolic sizes that a node's operands mention."""
    return dims.free_names(list(node.operands)) | dims.free_names(list(node.kwargs.values()))


__all__ = [
    "CapturedOp", "Constant", "Fusion", "Graph", "Impl", "Node", "Origin", "RegionRef", "Value",
    "free_dims", "is_region_op", "map_operand", "values_in",
]  # fmt: skip
