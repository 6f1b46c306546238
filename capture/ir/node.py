"""What a graph is made of: Value, Constant, Node, and helpers over operands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from capture.ir import dims
from capture.ir.ops import argument, normal_form, op_name
from capture.ir.origin import Origin
from capture.ir.types import TensorType, ValueType

if TYPE_CHECKING:
    from capture.ir.graph import Graph
    from capture.ir.nodelist import Link

Op: TypeAlias = Any  # torch._ops.OpOverload, torch._ops.HigherOrderOperator or Fusion
Operand: TypeAlias = Any  # a Value, a RegionRef, a literal, a size expression, or a list of these


@dataclass(frozen=True)
class RegionRef:
    """An operand that stands for the node's `index`-th region (a branch of ``cond``, say)."""

    index: int


@dataclass(frozen=True)
class Impl:
    """How a node is to be executed, never what it means: a kernel's name and its options (plain literals)."""

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
    """One operation. Made by `Graph.add_node`; `graph` is None once it has been erased."""

    __slots__ = ("_link", "graph", "impl", "kwargs", "op", "operands", "origin", "regions", "results")

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
        self._link: Link | None = None  # the node's place in its graph's list

    @property
    def next(self) -> Node | None:
        """The node after this one in the graph's order; None at the end, or once erased."""
        return None if self._link is None else self._link.next.node

    @property
    def previous(self) -> Node | None:
        """The node before this one in the graph's order; None at the start, or once erased."""
        return None if self._link is None else self._link.previous.node

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
        found: list[Value] = []
        _gather(self.operands, found)
        if self.kwargs:
            _gather(self.kwargs.values(), found)
        return found

    @property
    def where(self) -> str | None:
        """The user's lines that the node stands for, as error messages show them; None where unknown."""
        captured = {} if self.graph is None else list(self.graph.ancestors())[-1].captured
        ops = [captured[i] for i in self.origin.ids if i in captured]
        lines = dict.fromkeys(f"{op.location}   {op.code}" for op in ops if op.location and op.code)
        return "\n".join(lines) or str(self.origin) or None

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
        """Replace all operands (and, where given, all keyword operands).

        Raises:
            TypeError: they do not fit the op's schema.
        """
        self._set(*normal_form(self.op, operands, self.kwargs if kwargs is None else kwargs))

    def replace_operand(self, old: Value, new: Operand) -> None:
        """Put `new` wherever `old` stands among the operands."""

        def swap(v: Operand) -> Operand:
            return new if v is old else v

        self.set_operands(
            map_operand(self.operands, swap), {k: map_operand(v, swap) for k, v in self.kwargs.items()}
        )

    def set_impl(self, impl: Impl | None) -> None:
        self.impl = impl
        self._touch()

    def _set(self, operands: tuple[Operand, ...], kwargs: dict[str, Operand]) -> None:
        """Take these operands; values that stay operands keep their place in the use lists."""
        before = self.operand_values
        self.operands, self.kwargs = operands, kwargs
        after = Counter(self.operand_values)
        for value in before:
            if value not in after:
                value._users.pop(self, None)
        for value, count in after.items():
            value._users[self] = count
        self._touch()

    def _touch(self) -> None:
        if self.graph is not None:
            self.graph.version += 1

    def __repr__(self) -> str:
        return f"<node {op_name(self.op)} {self.origin}>".replace(" >", ">")


def values_in(operand: Operand) -> Iterator[Value]:
    """Every Value in an operand, nested ones too."""
    found: list[Value] = []
    _gather((operand,), found)
    return iter(found)


def _gather(operands: Iterable[Operand], found: list[Value]) -> None:
    """Append the Values among operands; lists, since passes ask for them millions of times."""
    for operand in operands:
        if isinstance(operand, Value):
            found.append(operand)
        elif isinstance(operand, (list, tuple)):
            _gather(operand, found)


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
    "Constant",
    "Impl",
    "Node",
    "Op",
    "Operand",
    "RegionRef",
    "Value",
    "free_dims",
    "map_operand",
    "values_in",
]
