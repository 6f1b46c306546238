"""Put a rule's replacement in the place of what its pattern matched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from capture.errors import CaptureError
from capture.ir import Constant, Graph, Node, TensorType, Value
from capture.ir.graph import map_operand
from capture.ir.infer import infer_types
from passes.aliases import Aliases, may_share
from passes.rewriting.literals import frozen, same_type
from passes.rewriting.match import NO, Match

__all__ = ["Refused", "apply", "infer_again", "replacement_of"]


class Refused(Exception):  # noqa: N818
    """A match that may not be replaced; the message says why."""


def replacement_of(match: Match) -> Graph:
    """The rule's replacement at the operands of the match.

    Raises:
        Refused: it does not take them, or gives other types than the matched nodes do.
        CaptureError: the rule is not sound.
    """
    assert match.rule.sound
    try:
        made = match.rule.replacement_at(match.arguments, match.graph.dims)
    except CaptureError as error:
        raise Refused(f"the replacement does not take these operands: {error.what}") from error
    if len(made.results) != len(match.results):
        raise Refused(f"the replacement returns {len(made.results)} tensors here, not {len(match.results)}")
    if _same_graph(match.pattern, made):
        raise Refused(NO)
    for old, new in zip(match.results, made.results, strict=True):
        if not same_type(old.type, new.type, match.graph.dims):
            raise Refused(f"the replacement gives {new.type} for {old.type}")
    return made


def _same_graph(one: Graph, other: Graph) -> bool:
    """Whether two traces are equal: here the replacement is the pattern, as where a cast changes nothing."""
    if len(one.nodes) != len(other.nodes) or one.constants or other.constants:
        return False
    number = {v: i for g in (one, other) for i, v in enumerate(_values(g))}

    def told(operand: Any) -> Any:
        return ("value", number[operand]) if isinstance(operand, Value) else frozen(operand)

    def calls(graph: Graph) -> list[Any]:
        rows = [(n.op, map_operand([n.operands, list(n.kwargs.items())], told)) for n in graph.nodes]
        return [*rows, [number[v] for v in graph.results]]

    return calls(one) == calls(other)


def _values(graph: Graph) -> list[Value]:
    return [*graph.inputs, *(v for node in graph.nodes for v in node.results)]


def apply(match: Match, made: Graph, aliases: Aliases, constants: dict[Any, Constant]) -> dict[Value, Value]:
    """Replace the match by `made`; returns the graph's value for each of `made`.

    Args:
        constants: those that replacements have brought so far, by tensor; equal rules share them.

    Raises:
        Refused: there is no place for the replacement, or a caller could notice it; nothing has changed.
    """
    graph, before = match.graph, _place(match)
    mapping: dict[Value, Value] = {value: match[value.name] for value in made.inputs}
    for constant in made.constants.values():
        if constant.num_uses:
            mapping[constant] = _constant(match, constant, constants)
    added = _copy(match, made, mapping, before)
    for node in added:
        aliases.add(node)
    new = [mapping[v] for v in made.results]
    if not _unnoticed(match.results, new, aliases):
        for node in reversed(added):
            graph.erase(node)
        raise Refused("a caller could tell that results share memory which did not")
    changed = []
    for old, value in zip(match.results, new, strict=True):
        aliases.replaced(old, value)
        graph.replace_uses(old, value)
        if old.type != value.type:
            changed.append(value)
    for node in reversed(match.nodes):
        graph.erase(node)
    infer_again(graph, changed)
    return mapping


def _unnoticed(old: Sequence[Value], new: Sequence[Value], aliases: Aliases) -> bool:
    """Whether no caller can tell that the new results are not the old ones: by memory that they share."""
    if len(set(new)) < len(set(old)) or not all(map(aliases.may_replace, old, new)):
        return False
    returned = [b for a, b in zip(old, new, strict=True) if aliases.escapes(a)]
    return sum(v.producer is None or may_share(v.producer.op) for v in returned) < 2


def _copy(match: Match, made: Graph, mapping: dict[Value, Value], before: Node) -> list[Node]:
    """The replacement's nodes in front of `before`. Types are known, but for operands that lie otherwise."""
    origin = match.origin
    plain = all(v.type == inner.type for v, inner in zip(match.leaves, made.inputs, strict=True))

    def leaf(operand: Any) -> Any:
        return mapping[operand] if isinstance(operand, Value) else operand

    added = []
    for node in made.nodes:
        copy = match.graph.add_node(
            node.op,
            map_operand(node.operands, leaf),
            {k: map_operand(v, leaf) for k, v in node.kwargs.items()},
            types=[v.type for v in node.results] if plain else None,
            origin=origin,
            before=before,
        )
        mapping.update(zip(node.results, copy.results, strict=True))
        added.append(copy)
    return added


def _constant(match: Match, constant: Constant, known: dict[Any, Constant]) -> Constant:
    key = (match.graph, constant)
    if key not in known or match.graph.constants.get(known[key].name) is not known[key]:
        made = match.graph.add_constant(f"{match.rule.name}.{constant.name}", constant.tensor_type)
        made.tensor = constant.tensor
        known[key] = made
    return known[key]


def _place(match: Match) -> Node:
    """The node to put the replacement before: behind all its operands, ahead of all who use its results.

    Raises:
        Refused: an operand is computed from a result.
    """
    graph, order = match.graph, match.graph.order()
    inside = set(match.nodes)
    users = {u for value in match.results for u in value.users} - inside
    first = min((order[u] for u in users), default=len(order))
    late = {v.producer for v in match.leaves if v.producer is not None and order[v.producer] >= first}
    last = match.nodes[-1]
    if not late:
        # The last node comes after every operand; with one result it is ahead of the users, too.
        return last if order[last] < first else next(n for n in users if order[n] == first)
    user = next(n for n in users if order[n] == first)
    below = _closure(users, lambda n: (u for v in n.results for u in v.users))
    above = _closure(late, lambda n: (v.producer for v in n.operand_values if v.producer is not None))
    if not below.isdisjoint(above):
        raise Refused("an operand is computed from a result")
    moving = sorted((n for n in above if order[n] >= first), key=order.__getitem__)
    if not inside.isdisjoint(moving):
        raise Refused("an operand is computed from a result")
    for node in moving:
        graph.move(node, before=user)
    return user


def _closure(nodes: Iterable[Node], step: Any) -> set[Node]:
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += step(node)
    return found


def infer_again(graph: Graph, values: list[Value]) -> None:
    """Types of what depends on values whose memory format is another one now."""
    waiting = [user for value in values for user in value.users]
    while waiting:
        node = waiting.pop()
        if node.regions:
            continue
        for value, type_ in zip(node.results, infer_types(graph, node), strict=True):
            if isinstance(type_, TensorType) and value.type != type_ and type_.same_value_as(value.type):
                graph.set_result_type(value, type_)
                waiting += value.users
