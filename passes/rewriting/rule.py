"""What a rule is, and the register of rules."""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from capture.errors import CaptureError, UsageError
from capture.frontends.source import Frame, Sources
from capture.ir import Graph, Range, TensorType, Value, type_of
from capture.ir.dims import free_names
from capture.ir.node import values_in
from passes.rewriting.families import alike, is_holder
from passes.rewriting.literals import frozen
from passes.rewriting.needs import needed_ops
from passes.rewriting.trace import traced

__all__ = ["EXTREMES", "Pattern", "Rule", "register_rule", "remove_rule", "rules"]

EXTREMES = ("large", "infinite", "nan")  # kinds of numbers at which formulas part
_KEPT = 64  # traces of one rule that are remembered, of each of its functions


@dataclass(frozen=True, eq=False)
class Pattern:
    """A traced pattern: what is looked for. `numbers` tells the scalar that a literal stands for."""

    graph: Graph
    numbers: Mapping[Any, str] = field(default_factory=dict)

    @cached_property
    def results(self) -> list[Value]:
        """The values that the pattern returns, the one to begin at first: the last computed."""
        order = self.graph.order()
        made = [v for v in self.graph.results if isinstance(v, Value) and v.producer is not None]
        return sorted(dict.fromkeys(made), key=lambda v: order[v.producer], reverse=True)

    @cached_property
    def size(self) -> int:
        return len(self.graph.nodes)


@dataclass(frozen=True, eq=False)
class Rule:
    """A pattern, what replaces it, and when; made by `register_rule`.

    Attributes:
        names: of the parameters, as the pattern's function calls them.
        example_args: tensors by whose dtype and rank the pattern is traced first, and numbers.
        anchors: operators that every match has, all of them; empty where not told.
        excused: kinds of numbers (of EXTREMES) for which the two sides may differ, and why.
    """

    name: str
    pattern: Callable[..., Any]
    replacement: Callable[..., Any]
    example_args: tuple[Any, ...]
    names: tuple[str, ...]
    guard: Callable[[Any], Any] | None = None
    level: int = 2
    anchors: tuple[Any, ...] = ()
    excused: Mapping[str, str] = field(default_factory=dict)
    _traces: dict[Any, Graph | CaptureError] = field(default_factory=dict, repr=False)

    @property
    def where(self) -> str:
        """File and line of the pattern."""
        return place_of(self.pattern)

    @property
    def is_ours(self) -> bool:
        """Whether it is one of the toolkit's own, which give way to a user's."""
        return _identity(self.pattern)[0].partition(".")[0] == "passes"

    @cached_property
    def skeleton(self) -> Pattern:
        """The pattern at the example's types, with a number of its own for each scalar.

        Raises:
            CaptureError: the rule is not sound; names it, and the line.
        """
        operands, numbers = [], {}
        for index, (name, example) in enumerate(zip(self.names, self.example_args, strict=True)):
            is_size = _is_size(example, self.example_args)
            operands.append(example if is_size else _stand_in(example, index))
            if _is_number(example):
                numbers[operands[-1]] = name
        pattern = Pattern(self._at_examples(self.pattern, operands), numbers)
        self._check(pattern)
        return pattern

    @cached_property
    def needs(self) -> frozenset[str]:
        """Names of operators of which a graph must have every one; found without a trace."""
        return needed_ops(self.pattern, self.example_args)

    @cached_property
    def roots(self) -> tuple[Any, ...]:
        """The operators that a match may begin at: the last one, what only holds its value left aside."""
        root = self.skeleton_root.producer
        assert root is not None
        return tuple(alike(root))

    @cached_property
    def skeleton_root(self) -> Value:
        """The skeleton's value to begin at."""
        value = self.skeleton.results[0]
        while value.producer is not None and is_holder(value.producer):
            inner = value.producer.operands[0]
            if not isinstance(inner, Value) or inner.producer is None:
                break
            value = inner
        return value

    def pattern_at(self, operands: Sequence[Any], ranges: Mapping[str, Range]) -> Graph:
        """The pattern for these operands: types for tensors, numbers for scalars.

        Raises:
            CaptureError: it does not take them.
        """
        return self._at(self.pattern, operands, ranges)

    def replacement_at(self, operands: Sequence[Any], ranges: Mapping[str, Range]) -> Graph:
        """The replacement for these operands.

        Raises:
            CaptureError: it does not take them.
        """
        return self._at(self.replacement, operands, ranges)

    def _at(
        self, function: Callable[..., Any], operands: Sequence[Any], ranges: Mapping[str, Range]
    ) -> Graph:
        types = [t for t in operands if isinstance(t, TensorType)]
        used = {
            n: ranges[n] for n in sorted(set().union(*(free_names(t.shape) for t in types))) if n in ranges
        }
        key = (function, tuple(map(frozen, operands)), tuple(used.items()))
        if key not in self._traces:
            while len(self._traces) >= 2 * _KEPT:
                self._traces.pop(next(iter(self._traces)))
            try:
                self._traces[key] = traced(function, self.names, operands, used)
            except CaptureError as error:
                self._traces[key] = error
        found = self._traces[key]
        if isinstance(found, CaptureError):
            raise found
        return found

    @cached_property
    def sound(self) -> bool:
        """True where pattern and replacement agree on the example: as many results, of the same types.

        Raises:
            CaptureError: they do not.
        """
        operands = [type_of(v) if isinstance(v, torch.Tensor) else v for v in self.example_args]
        before = self._at_examples(self.pattern, operands).results
        after = self._at_examples(self.replacement, operands).results
        place = place_of(self.replacement)
        if len(before) != len(after):
            raise self.error(
                f"the pattern returns {len(before)} tensors, the replacement {len(after)}", place
            )
        for one, other in zip(before, after, strict=True):
            if not one.type.same_value_as(other.type):
                raise self.error(f"the pattern returns {one.type}, the replacement {other.type}", place)
        return True

    def _at_examples(self, function: Callable[..., Any], operands: Sequence[Any]) -> Graph:
        try:
            return traced(function, self.names, operands)
        except CaptureError as error:
            role = "pattern" if function is self.pattern else "replacement"
            hint = (
                "a number among the example arguments stands for an operand such as a factor or an epsilon;"
            )
            hint += " write axes and sizes into the functions"
            numbers = any(map(_is_number, self.example_args))
            why = "\n".join(filter(None, (error.what, error.why)))
            raise CaptureError(
                f"the rule {self.name}: its {role} cannot be traced",
                where=place_of(function),
                why=why,
                hint=hint if numbers else error.hint,
            ) from error

    def _check(self, pattern: Pattern) -> None:
        graph = pattern.graph
        if not pattern.results or any(v.producer is None for v in graph.results):
            raise self.error("the pattern computes nothing, or returns one of its operands", self.where)
        if not _is_connected(pattern.results):
            raise self.error("the pattern's results have no operand in common", self.where)
        literals = {(type(v), v) for node in graph.nodes for v in _literals([node.operands, node.kwargs])}
        for value in graph.inputs:
            if not value.num_uses:
                raise self.error(f"the pattern does not use its operand {value.name}", self.where)
        for number, name in pattern.numbers.items():
            if (type(number), number) not in literals:
                raise self.error(
                    f"the pattern computes with the number {name}, or does not use it", self.where,
                    "pass the number that the operator gets, and compute with it in the replacement",
                )  # fmt: skip

    def error(self, what: str, where: str, hint: str | None = None) -> CaptureError:
        return CaptureError(f"the rule {self.name}: {what}", where=where, hint=hint)


_RULES: dict[str, Rule] = {}


def register_rule(
    name: str,
    pattern: Callable[..., Any],
    replacement: Callable[..., Any],
    example_args: Sequence[Any],
    *,
    guard: Callable[[Any], Any] | None = None,
    level: int = 2,
    anchors: Sequence[Any] = (),
    excused: Mapping[str, str] | None = None,
) -> Rule:
    """Have the `rewrite` pass put the replacement wherever the pattern occurs.

    Nothing is traced before a graph is rewritten, with `anchors` not before all of them occur. A pattern is
    traced once at the examples' types to know its shape, then at the very types, sizes and numbers of each
    place where it may occur, as is the replacement: both may ask for sizes, ranks and dtypes.

    Args:
        name: what the ledger calls the rule.
        pattern, replacement: functions of the same arguments that return a tensor, or a tuple of them.
        example_args: one for each argument. A tensor stands for any tensor: its rank and dtype are a hint,
            every size is a wildcard. An int or float stands for any number that is an operand of the
            pattern as it is; the replacement and the guard are given the one found. An int that divides a
            size of the example tensors, and is greater than their ranks, may be a size that a reshape of the
            pattern gives. Anything else (a bool, a dtype) is passed on as it is.
        guard: called with a `Match`; True, or (False, "reason"), and so on.
        level: the lowest optimisation level that runs the rule.
        anchors: operators (overloads, or packets for all of their overloads) that every match has: the rule
            is not looked at in a graph that lacks one of them.
        excused: the kinds of numbers ("large", "infinite", "nan") for which replacement and pattern may
            differ, each with the reason: the rule is applied none the less, and not replayed on them.

    Raises:
        UsageError: the arguments do not fit the functions, one of them has no hash (a set, say), another rule
            has this name, or an excuse is for no kind of numbers.
    """
    args = tuple(example_args)
    for role, function in (("pattern", pattern), ("replacement", replacement)):
        try:
            if (signature := _signature(function)) is not None:
                signature.bind(*args)
        except TypeError as error:
            raise UsageError(
                f"the rule {name}: its {role} does not take the {len(args)} example arguments ({error})",
                where=place_of(function),
            ) from error
    for value in args:
        try:
            if not isinstance(value, torch.Tensor):
                frozen(value)
        except TypeError as error:
            raise UsageError(
                f"the rule {name}: its example argument {value!r} has no hash, and cannot be compared",
                where=place_of(pattern),
                hint="numbers, dtypes, strings, and lists, tuples or dicts of them",
            ) from error
    if not any(isinstance(v, torch.Tensor) for v in args):
        raise UsageError(
            f"the rule {name} has no tensor among its example arguments", where=place_of(pattern)
        )
    if unknown := sorted({*(excused or {})} - {*EXTREMES}):
        raise UsageError(
            f"the rule {name} is excused for {', '.join(unknown)}", where=place_of(pattern),
            hint=f"kinds of numbers: {', '.join(EXTREMES)}",
        )  # fmt: skip
    taken = _RULES.get(name)
    if taken is not None and _identity(taken.pattern) != _identity(pattern):
        raise UsageError(f"there is a rule named {name!r} already: {taken.where}", where=place_of(pattern))
    names = _parameters(pattern, len(args))
    rule = Rule(name, pattern, replacement, args, names, guard, level, tuple(anchors), dict(excused or {}))
    _RULES[name] = rule
    return rule


def remove_rule(name: str) -> None:
    """Forget a rule. Raises KeyError where there is none of that name."""
    del _RULES[name]


def rules() -> dict[str, Rule]:
    """Every registered rule by name, the built-in ones too."""
    importlib.import_module("passes.rulebook")  # not before somebody asks: there are many
    return dict(_RULES)


def place_of(function: Callable[..., Any]) -> str:
    """``file.py:12   def pattern(x):``"""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return repr(function)
    found = Sources().frame(Frame(code.co_filename, code.co_firstlineno, ""))
    place = f"{found.file}:{found.line}" if found else f"{code.co_filename}:{code.co_firstlineno}"
    return f"{place}   {getattr(function, '__name__', '')}"


def _identity(function: Callable[..., Any]) -> tuple[str, str]:
    return (getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(function)))


def _parameters(function: Callable[..., Any], count: int) -> tuple[str, ...]:
    """Names of the first `count` positional parameters."""
    names: list[str] = []
    signature = _signature(function)
    if signature is None:
        return tuple(f"x{i}" for i in range(count))
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}{i}" for i in range(count - len(names))]
        else:
            names.append(parameter.name)
    return tuple(names[:count])


def _is_connected(results: Sequence[Value]) -> bool:
    """Whether each result shares a value with another one, so that all are found from one."""
    cones = [_cone(value) for value in results]
    joined = cones.pop()
    while near := next((cone for cone in cones if not joined.isdisjoint(cone)), None):
        cones.remove(near)
        joined |= near
    return not cones


def _cone(value: Value) -> set[Value]:
    """A value and all that it is computed from."""
    found, waiting = set[Value](), [value]
    while waiting:
        value = waiting.pop()
        if value not in found:
            found.add(value)
            waiting += value.producer.operand_values if value.producer is not None else []
    return found


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """None for functions of torch's that are written in C."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _stand_in(example: Any, index: int) -> Any:
    """A type for a tensor; for a number one of the same kind that nobody writes."""
    if isinstance(example, torch.Tensor):
        return type_of(example)
    if isinstance(example, bool) or not isinstance(example, (int, float)):
        return example
    return 7919 + 104 * index if isinstance(example, int) else 0.71302816 + index / 1019


def _is_size(example: Any, args: Sequence[Any]) -> bool:
    """Whether a whole number divides a size of the example tensors, and can be no axis of theirs."""
    shapes = [v.shape for v in args if isinstance(v, torch.Tensor)]
    if type(example) is not int or example <= max(map(len, shapes)):
        return False
    return any(size and size % example == 0 for shape in shapes for size in shape)


def _literals(operand: Any) -> list[Any]:
    if isinstance(operand, Mapping):
        operand = list(operand.values())
    if isinstance(operand, (list, tuple)):
        return list(itertools.chain.from_iterable(map(_literals, operand)))
    return [operand] if _is_number(operand) and not list(values_in(operand)) else []
