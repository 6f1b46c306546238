"""A place where a rule's pattern was found, and whether the rule may be applied there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

from capture.errors import CaptureError
from capture.ir import Graph, Node, Origin, TensorType, Value, op_name
from capture.ir.ops import is_pure_call
from passes.rewriting.families import family
from passes.rewriting.literals import frozen
from passes.rewriting.rule import Pattern, Rule
from passes.rewriting.unify import Found, Unifier

__all__ = ["NO", "Match", "Miss", "matches", "refusal"]

NO = "nothing to do"  # not worth a line in the ledger
_TRIES = 16  # ways to lay a pattern over one place; more are given up
Miss = Callable[[Rule, Node, str], None]


@dataclass(frozen=True, eq=False)
class Match:
    """What a guard is asked about.

    `match["x"]` is the Value or the number that the pattern's parameter `x` stands for here.

    Attributes:
        rule, graph: which rule, in which graph (or region).
        operands: by parameter: a Value, a number, or what was given as it is.
        results: the graph's values that the pattern's results stand for; the replacement's take their place.
        nodes: the nodes that the replacement stands for, in order.
        pattern: the pattern's graph at the types of the operands.
    """

    rule: Rule
    graph: Graph
    operands: dict[str, Any]
    results: tuple[Value, ...]
    nodes: tuple[Node, ...]
    pattern: Graph = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        if name not in self.operands:
            raise KeyError(
                f"{name!r}: the rule {self.rule.name} has the parameters {', '.join(self.operands)}"
            )
        return self.operands[name]

    def node(self, op: Any) -> Node | None:
        """The first matched node of that operator (an overload, or a packet for all of its overloads)."""
        return next((n for n in self.nodes if n.is_op(op)), None)

    @property
    def scalars(self) -> dict[str, int | float]:
        """The numbers among the operands."""
        numbers = zip(self.operands.items(), self.rule.example_args, strict=True)
        return {
            n: v
            for (n, v), example in numbers
            if isinstance(example, (int, float)) and not isinstance(example, bool)
        }

    @cached_property
    def leaves(self) -> tuple[Value, ...]:
        """The tensor operands, in order."""
        return tuple(v for v in self.operands.values() if isinstance(v, Value))

    @cached_property
    def arguments(self) -> list[Any]:
        """The operands with types for the tensors: what to trace for."""
        return [v.type if isinstance(v, Value) else v for v in self.operands.values()]

    @property
    def origin(self) -> Origin:
        """The origins of all that is matched, united."""
        origin = Origin()
        for node in self.nodes:
            origin |= node.origin
        return origin

    @property
    def where(self) -> str | None:
        """The user's line of the last node matched."""
        return self.nodes[-1].where


def matches(rule: Rule, graph: Graph, root: Node, miss: Miss) -> Iterator[Match]:
    """The ways in which the rule's pattern ends at `root`; `miss` is told why a similar place is none."""
    loose = Unifier(rule.skeleton, graph, loose=True)
    start = rule.skeleton_root
    seen: set[Any] = set()
    for found in islice(loose.search(start, root, Found()), _TRIES):
        operands = _operands(rule, found)
        key = tuple(id(v) if isinstance(v, Value) else frozen(v) for v in operands.values())
        if key in seen:
            continue
        seen.add(key)
        arguments = [v.type if isinstance(v, Value) else v for v in operands.values()]
        try:
            pattern = rule.pattern_at(arguments, graph.dims)
        except CaptureError as error:
            miss(rule, root, f"the pattern does not take these operands: {error.what}")
            continue
        yield from _exact(rule, graph, root, operands, pattern, miss)


def _operands(rule: Rule, found: Found) -> dict[str, Any]:
    """What each parameter stands for."""
    tensors = {v.name: found.values[v] for v in rule.skeleton.graph.inputs}
    named: dict[str, Any] = {}
    for name, example in zip(rule.names, rule.example_args, strict=True):
        named[name] = tensors.get(name, found.numbers.get(name, example))
    return named


def _exact(
    rule: Rule, graph: Graph, root: Node, operands: dict[str, Any], traced: Graph, miss: Miss
) -> Iterator[Match]:
    """The match with the pattern as it is for these very operands."""
    pattern = Pattern(traced)
    if not pattern.results or any(v.producer is None for v in traced.results):
        miss(rule, root, "for these operands the pattern computes nothing")
        return
    values = {v: operands[v.name] for v in traced.inputs}
    strict = Unifier(pattern, graph, loose=False)
    start = pattern.results[0]
    for node in _ends(root, start.producer):
        found = next(strict.search(start, node, Found(values=values)), None)
        if found is not None:
            order = graph.order()
            nodes = sorted({*found.nodes.values(), *found.skipped}, key=order.__getitem__)
            results = tuple(found.values[v] for v in traced.results)
            inside = _inside(nodes, results, tuple(values.values()))
            yield Match(rule, graph, operands, results, inside, traced)
            return
    miss(rule, root, strict.miss or "it ends in another operator")


def _inside(nodes: Sequence[Node], results: Sequence[Value], leaves: Sequence[Value]) -> tuple[Node, ...]:
    """The matched nodes, less those skipped ones at the rim that make an operand of something outside."""
    needed = {v.producer for v in results}
    for node in reversed(nodes):
        if node in needed:
            needed |= {v.producer for v in node.operand_values if v not in leaves}
    return tuple(n for n in nodes if n in needed)


def _ends(root: Node, wanted: Node | None) -> list[Node]:
    """Where the exact pattern may end: at the root, or at a cast or copy below it."""
    if wanted is None:
        return []
    near = dict.fromkeys([root])
    for _ in range(2):
        near |= dict.fromkeys(u for n in list(near) for v in n.results for u in v.users)
    return [n for n in near if n.op in family(wanted.op)]


def refusal(match: Match) -> str | None:
    """Why a match may not be replaced, whatever by; None where it may."""
    inside = set(match.nodes)
    for node in match.nodes:
        if node.regions or not is_pure_call(node.op, node.operands, node.kwargs):
            return f"{op_name(node.op)} is not pure"
        if node.impl is not None:
            return f"{op_name(node.op)} is lowered already"
        for value in node.results:
            if value in match.results:
                continue
            if value.is_result:
                return f"the graph returns the result of {op_name(node.op)}"
            if not inside.issuperset(value.users):
                return f"the result of {op_name(node.op)} is used elsewhere"
    for value in match.leaves:
        if not isinstance(value.type, TensorType):
            return "an operand is no tensor"
        if value.producer in inside:
            return "an operand is computed inside of the match"
    return asked(match)


def asked(match: Match) -> str | None:
    """What the rule's guard says; None where it agrees.

    Raises:
        CaptureError: the guard failed, or its answer is neither True nor False, nor one with a reason.
    """
    if match.rule.guard is None:
        return None
    from passes.rewriting.rule import place_of

    try:
        answer = match.rule.guard(match)
    except Exception as error:
        raise CaptureError(
            f"the rule {match.rule.name}: its guard failed",
            where=place_of(match.rule.guard),
            why=f"{type(error).__name__}: {error}",
        ) from error
    if isinstance(answer, str) or (isinstance(answer, tuple) and len(answer) != 2):
        raise CaptureError(
            f"the rule {match.rule.name}: its guard answered {answer!r}",
            where=place_of(match.rule.guard),
            hint="True, False, or (False, reason)",
        )
    allowed, reason = answer if isinstance(answer, tuple) else (answer, "")
    return None if allowed else reason or NO
