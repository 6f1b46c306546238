"""Find a pattern in a graph: unification of two dataflow graphs, from the pattern's last operator upwards.

A goal is a pair: an operand of the pattern and the operand of the graph that should be it. Solving one gives
further goals; where there are several ways (operands that commute, a cast that may be skipped) each is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from capture.ir import Constant, Graph, Node, TensorType, Trait, Value, has, op_name
from capture.ir.node import values_in
from passes.queries import fixed_tensor, packet_name
from passes.rewriting.families import (
    BROADCASTS,
    CASTS,
    COPIES,
    commutes,
    family,
    is_holder,
    is_scaling,
    same_move,
)
from passes.rewriting.literals import number_of, same_literal, same_number, same_shape, similar_literal
from passes.rewriting.rule import Pattern
from passes.view_algebra import RESHAPES

__all__ = ["Found", "Unifier"]


@dataclass(frozen=True)
class Found:
    """What of the pattern has been found so far.

    Attributes:
        values: the graph's value for each of the pattern's.
        nodes: the graph's node for each of the pattern's.
        numbers: the number found for each scalar.
        skipped: nodes of the graph between those, of which the pattern says nothing.
    """

    values: Mapping[Value, Value] = field(default_factory=dict)
    nodes: Mapping[Node, Node] = field(default_factory=dict)
    numbers: Mapping[str, int | float] = field(default_factory=dict)
    skipped: tuple[Node, ...] = ()

    def with_value(self, wanted: Value, given: Value) -> Found:
        return replace(self, values={**self.values, wanted: given})

    def with_number(self, name: str, number: int | float) -> Found:
        return replace(self, numbers={**self.numbers, name: number})

    def with_node(self, wanted: Node, given: Node) -> Found:
        values = {**self.values, **dict(zip(wanted.results, given.results, strict=True))}
        return replace(self, values=values, nodes={**self.nodes, wanted: given})

    def skipping(self, node: Node) -> Found:
        return self if node in self.skipped else replace(self, skipped=(*self.skipped, node))


class Goal(NamedTuple):
    """`given`, an operand of `node`, should be `wanted`; `argument` is its name in the schema."""

    wanted: Any
    given: Any
    node: Node | None = None
    argument: str = ""


class Unifier:
    """One search.

    Args:
        loose: find the shape only: any number may stand for any other, and casts, copies and broadcasts may
            be more or fewer. What is found so says which operands to trace the pattern for.
    """

    def __init__(self, pattern: Pattern, graph: Graph, *, loose: bool) -> None:
        self.pattern = pattern
        self.graph = graph
        self.loose = loose
        self.miss = ""  # the last thing that did not fit, for people

    def search(self, start: Value, root: Node, found: Found) -> Iterator[Found]:
        """Every way in which `root` computes the pattern's value `start`, the other results found nearby."""
        if start.producer is None or start.index >= len(root.results):
            return
        for one in self._solve([Goal(start, root.results[start.index])], found):
            yield from self._others(one)

    def _others(self, found: Found) -> Iterator[Found]:
        """Find the results that do not feed those found: downwards from what they share."""
        missing = next((v for v in self.pattern.results if v not in found.values), None)
        if missing is None or missing.producer is None:
            yield found
            return
        for node in self._nearby(found, missing.producer.op):
            for more in self._solve([Goal(missing, node.results[missing.index])], found):
                yield from self._others(more)

    def _nearby(self, found: Found, op: Any) -> Iterator[Node]:
        """Nodes of that op below the values found, no deeper than the pattern is."""
        level = dict.fromkeys(found.values.values())
        seen: set[Node] = set(found.nodes.values())
        for _ in range(self.pattern.size):
            users = [u for value in level for u in value.users if u not in seen]
            for node in dict.fromkeys(users):
                seen.add(node)
                if node.op in family(op):
                    yield node
            level = dict.fromkeys(v for node in users for v in node.results)

    def _solve(self, goals: Sequence[Goal], found: Found) -> Iterator[Found]:
        if not goals:
            yield found
            return
        for more, extended in self._ways(goals[0], found):
            yield from self._solve([*more, *goals[1:]], extended)

    def _ways(self, goal: Goal, found: Found) -> Iterator[tuple[Sequence[Goal], Found]]:
        """The ways to solve one goal: further goals, and what is found with them."""
        wanted, given = goal.wanted, goal.given
        if isinstance(wanted, Value):
            yield from self._value(goal, found)
        elif any(values_in(wanted)) or any(values_in(given if isinstance(given, (list, tuple)) else [])):
            if isinstance(given, (list, tuple)) and isinstance(wanted, list) and len(wanted) == len(given):
                pairs = zip(wanted, given, strict=True)
                yield [Goal(a, b, goal.node, goal.argument) for a, b in pairs], found
        elif (name := self._scalar(wanted)) is not None:
            number = number_of(self.graph, given)
            if number is not None and same_number(found.numbers.get(name, number), number):
                yield (), found.with_number(name, number)
        elif self._is_literal(goal):
            yield (), found
        else:
            self.miss = f"{_describe(goal.node)} has {goal.argument} = {given!r}, the pattern {wanted!r}"

    def _scalar(self, wanted: Any) -> str | None:
        """The name of the scalar that a literal of the pattern stands for."""
        is_number = isinstance(wanted, (int, float)) and not isinstance(wanted, bool)
        return self.pattern.numbers.get(wanted) if is_number and self.pattern.numbers else None

    def _is_literal(self, goal: Goal) -> bool:
        if self.loose:
            return similar_literal(self.graph, goal.wanted, goal.given)
        assert goal.node is not None
        return same_literal(self.graph, goal.wanted, goal.given, goal.node, goal.argument)

    # -- values

    def _value(self, goal: Goal, found: Found) -> Iterator[tuple[Sequence[Goal], Found]]:
        wanted, given = goal.wanted, goal.given
        known = found.values.get(wanted)
        if known is not None:
            yield from self._known(goal, known, found)
        elif not isinstance(given, Value):
            self.miss = f"{_describe(goal.node)} has the literal {given!r} for a tensor of the pattern"
        elif isinstance(wanted, Constant):
            if self.loose or self._same_constant(wanted, given):  # at other sizes it may be another one
                yield (), found.with_value(wanted, given)
        elif wanted.producer is None:
            if isinstance(given.type, TensorType):
                yield (), found.with_value(wanted, given)
            if self.loose and given.producer is not None and packet_name(given.producer.op) in CASTS:
                yield [goal._replace(given=given.producer.operands[0])], found.skipping(given.producer)
        else:
            yield from self._computed(goal, wanted.producer, found)

    def _known(self, goal: Goal, known: Value, found: Found) -> Iterator[tuple[Sequence[Goal], Found]]:
        """A value of the pattern that has been found before, or is an operand told in advance."""
        wanted, given = goal.wanted, goal.given
        if known is given:
            yield (), found
            return
        if isinstance(given, Value) and (inner := self._held(given, goal.node)) is not None:
            assert given.producer is not None
            yield [goal._replace(given=inner)], found.skipping(given.producer)
        if self.loose and wanted.producer is None and self._held(known, None) is given:
            yield (), found.with_value(wanted, given)  # of an operand and its cast the operand is meant
            return
        self.miss = f"{_describe(goal.node)} takes two values where the pattern takes one"

    def _computed(self, goal: Goal, node: Node, found: Found) -> Iterator[tuple[Sequence[Goal], Found]]:
        wanted, given = goal.wanted, goal.given
        producer = given.producer
        taken = producer in found.nodes.values()
        if producer is not None and given.index == wanted.index and not taken and self._alike(node, producer):
            extended = self._sized(node, producer, found.with_node(node, producer))
            for goals in self._operands(node, producer) if extended is not None else ():
                yield goals, extended
        elif producer is None or not is_holder(producer):
            self.miss = f"{_describe(producer)} stands where the pattern has {op_name(node.op)}"
        if self.loose and is_holder(node) and isinstance(node.operands[0], Value):
            yield [goal._replace(wanted=node.operands[0])], found.with_value(wanted, given)
        if producer is not None and not taken and (inner := self._held(given, goal.node)) is not None:
            yield [goal._replace(given=inner)], found.skipping(producer)

    def _sized(self, wanted: Node, given: Node, found: Found) -> Found | None:
        """The numbers that are sizes of what a reshape gives, which is how its operands are not compared."""
        if not self.loose or wanted.op not in RESHAPES or not self.pattern.numbers:
            return found
        sizes, actual = (n.results[0].tensor_type.shape for n in (wanted, given))
        names = [self._scalar(size) for size in sizes]
        if not any(names):
            return found
        if len(sizes) != len(actual):
            return None
        for name, size in zip(names, actual, strict=True):
            if name is not None:
                if not isinstance(size, int) or found.numbers.get(name, size) != size:
                    return None
                found = found.with_number(name, size)
        return found

    def _operands(self, wanted: Node, given: Node) -> Iterator[list[Goal]]:
        """The operands in pairs, and once more with those swapped that commute."""
        if len(family(wanted.op)) > 1:  # operand and result tell the rest
            yield [Goal(wanted.operands[0], given.operands[0], given)]
            return
        names = [a.name for a in wanted.op._schema.arguments]
        if len(wanted.operands) == len(given.operands) and not wanted.kwargs and not given.kwargs:
            rows = zip(wanted.operands, given.operands, names, strict=False)
            goals = [Goal(a, b, given, name) for a, b, name in rows]
        else:
            goals = [Goal(wanted.arg(name), given.arg(name), given, name) for name in names]
        if wanted.op != given.op:  # clean-up makes x * 0.125 of x / 8: for this number, or the example's
            number = number_of(self.graph, given.operands[1])
            goals[1] = goals[1]._replace(given=1 / number if number else number)
        yield sorted(goals, key=_promise)
        if commutes(wanted) and commutes(given):
            first, second, *rest = goals
            swapped = [first._replace(given=second.given), second._replace(given=first.given), *rest]
            yield sorted(swapped, key=_promise)

    def _alike(self, wanted: Node, given: Node) -> bool:
        """Whether two nodes do the same, if their operands are the same."""
        if self.loose:
            scaling = is_scaling(wanted) and is_scaling(given)
            return scaling or given.op in family(wanted.op)
        return given.op in family(wanted.op) and self._fits(wanted, given) and same_move(wanted, given)

    def _fits(self, wanted: Node, given: Node) -> bool:
        """Whether the results are of the same shapes and dtypes."""
        for one, other in zip(wanted.results, given.results, strict=False):
            if not isinstance(one.type, TensorType) or not isinstance(other.type, TensorType):
                return False
            if not same_shape(one.type, other.type, self.graph.dims):
                self.miss = f"{_describe(given)} is {other.type}, in the pattern {one.type}"
                return False
            if one.type.dtype != other.type.dtype:  # the replacement would compute less precisely, or more
                self.miss = f"{_describe(given)} is {other.type}, in the pattern {one.type}"
                return False
        return True

    def _held(self, value: Value, user: Node | None) -> Value | None:
        """The value that this one is a cast, copy or broadcast of, where `user` does as well without."""
        node = value.producer
        if node is None or not is_holder(node) or not isinstance(node.operands[0], Value):
            return None
        inner = node.operands[0]
        before, after = inner.type, value.type
        if not isinstance(before, TensorType) or not isinstance(after, TensorType):
            return None
        if before.device != after.device:
            return None
        name = packet_name(node.op)
        if self.loose:
            return inner
        if name in CASTS:
            return inner if widens(before.dtype, after.dtype) and _promotes(user) else None
        if name in COPIES or before.shape == after.shape:
            return inner
        if name not in BROADCASTS or not _repeats(before, after, name):
            return None
        return inner if user is None or _broadcasts(user, before, after) else None

    def _same_constant(self, wanted: Constant, given: Value) -> bool:
        tensor = fixed_tensor(self.graph, given)
        if tensor is None or wanted.tensor is None:
            return False
        alike = (tensor.dtype, tensor.shape) == (wanted.tensor.dtype, wanted.tensor.shape)
        return alike and torch.equal(_bits(tensor), _bits(wanted.tensor))


def widens(before: torch.dtype, after: torch.dtype) -> bool:
    """Whether a cast keeps every value: the dtype is the same, or floating and as fine and wide."""
    return before == after or (
        before.is_floating_point and after.is_floating_point and torch.promote_types(before, after) == after
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """By its bits -0.0 is not 0.0, and NaN is NaN."""
    return tensor.flatten().view(torch.uint8)


def _promotes(user: Node | None) -> bool:
    """Whether an operator does as well without a widening cast, where its result is of the same dtype.

    One that computes numbers computes them in the dtype of its result. One that gives indices or booleans
    looks at the numbers as they are, unless they are compared with one, which is rounded to their dtype.
    """
    if user is None or any(_dtype(v).is_floating_point for v in user.results):
        return True
    pointwise = has(user.op, Trait.POINTWISE)
    return not any(_is_single(v, pointwise=pointwise) for v in user.operands)


def _is_single(operand: Any, *, pointwise: bool) -> bool:
    """Whether an operand is one number; whole ones are axes where the operator is not pointwise."""
    if isinstance(operand, Value):
        return not isinstance(operand.type, TensorType) or operand.type.rank == 0
    return isinstance(operand, float) or (pointwise and isinstance(operand, int))


def _dtype(value: Value) -> torch.dtype:
    return value.type.dtype if isinstance(value.type, TensorType) else torch.float32


def _broadcasts(user: Node, before: TensorType, after: TensorType) -> bool:
    """Whether an operator broadcasts an operand itself: a product does so in front of its last two axes."""
    if packet_name(user.op) == "aten.matmul":
        return before.rank >= 2 and before.shape[-2:] == after.shape[-2:]
    return has(user.op, Trait.POINTWISE)


def _repeats(before: TensorType, after: TensorType, name: str) -> bool:
    """Whether a view only puts axes of size 1 in front, or repeats along such axes, as broadcasting would."""
    if name == "aten.expand":
        return True
    return (
        after.shape[after.rank - before.rank :] == before.shape
        and all(d == 1 for d in after.shape[: max(0, after.rank - before.rank)])
        if after.rank >= before.rank
        else False
    )


def _promise(goal: Goal) -> int:
    """Literals first, then what is computed, then operands: failures come early."""
    if not isinstance(goal.wanted, Value) or not isinstance(goal.given, Value):
        return 0
    return 1 if goal.wanted.producer is not None else 2


def _describe(node: Node | None) -> str:
    return "an input or constant" if node is None else op_name(node.op)
