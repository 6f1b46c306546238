"""Rotary positions (Su et al., 2021): the operators that turn pairs of features by tables of their angles.

    %0, %1 = split(%x, D/2, -1)
    %2 = cat([neg(%1), %0], -1)                                  ==>    %3 = fusion.rope(%x, %cos, %sin)
    %3 = add(mul(%x, %cos), mul(%2, %sin))

ATen has no operator for it, so it is a region: on a GPU one kernel, which reads x once where the operators
read or write it ten times. Each spelling is a PyTorch function, found as the pattern of a rule is; queries
and keys may differ in their number of heads, and the tables be broadcast in any way.

Is not formed for a CPU, where the region would be the same calls and its temporaries would lie outside of the
arena; nor where an inner value is used elsewhere, where other features turn (the sign at the other half,
parts that differ in size), or where the tables meet two different tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from capture.ir import Graph, Node
from passes.fusion.target import Target
from passes.rewriting.match import matches, refusal
from passes.rewriting.rule import Rule

aten = torch.ops.aten
X = torch.empty(2, 2, 3, 4)
TABLE = torch.empty(3, 4)
HALF_TABLE = torch.empty(3, 2)
ANGLES = torch.empty(3, 2, dtype=torch.complex64)
REST = torch.empty(2, 2, 3, 2)

Parts = Callable[[Tensor], tuple[Tensor, Tensor]]
Join = Callable[[Tensor, Tensor], Tensor]


def chunks(x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, -1)
    return first, second


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    middle = x.shape[-1] // 2
    return x[..., :middle], x[..., middle:]


def every_other(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., ::2], x[..., 1::2]


def neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return first, second


def behind(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second], -1)


def between(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first, second], -1).flatten(-2)


# -- spellings: a pattern, its operands, and operators that every place has ---------------------------------


def with_full_tables(parts: Parts, join: Join) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """x * cos + rotated(x) * sin, with tables as wide as x."""

    def pattern(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = parts(x)
        return x * cos + join(-second, first) * sin

    return pattern


def with_half_tables(parts: Parts, join: Join) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Both members of each pair on their own, with one number of the tables for the two."""

    def pattern(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = parts(x)
        return join(first * cos - second * sin, second * cos + first * sin)

    return pattern


def with_complex_table(x: Tensor, angles: Tensor) -> Tensor:
    """Each pair as a complex number."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * angles).flatten(-2)


def partly(turned: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The first features turn, the rest stay (GPT-NeoX)."""

    def pattern(x: Tensor, cos: Tensor, sin: Tensor, rest: Tensor) -> Tensor:
        return torch.cat([turned(x, cos, sin), rest], -1)

    return pattern


def widened(turned: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Half precision is turned in fp32."""

    def pattern(x: Tensor, *tables: Tensor) -> Tensor:
        return turned(x.float(), *tables).to(x.dtype)

    def same_type(x: Tensor, *tables: Tensor) -> Tensor:
        return turned(x.float(), *tables).type_as(x)

    return same_type if turned is with_complex_table else pattern


def _spellings() -> Iterator[Rule]:
    """The larger patterns first."""
    full = [(chunks, behind), (halves, behind), (every_other, between)]
    half = [*full, (neighbours, between)]
    plain: list[tuple[Callable[..., Tensor], tuple[Tensor, ...], set[Any]]] = [
        *((with_half_tables(*way), (X, HALF_TABLE, HALF_TABLE), {aten.sub, *_joins(way[1])}) for way in half),
        *((with_full_tables(*way), (X, TABLE, TABLE), {aten.neg, *_joins(way[1])}) for way in full),
        (with_complex_table, (X, ANGLES), {aten.view_as_complex, aten.view_as_real}),
    ]
    for turned, operands, anchors in plain:
        if turned is not with_complex_table:
            yield _spelling(partly(turned), (*operands, REST), anchors | {aten.cat})
        yield _spelling(widened(turned), (X.bfloat16(), *operands[1:]), anchors)
        yield _spelling(turned, operands, anchors)


def _joins(join: Join) -> set[Any]:
    return {aten.cat} if join is behind else {aten.stack}


def _spelling(pattern: Callable[..., Tensor], operands: tuple[Tensor, ...], anchors: set[Any]) -> Rule:
    """A pattern that is looked for, and never replaced."""
    names = tuple(inspect.signature(pattern).parameters)
    if len(names) != len(operands):  # *tables
        names = (names[0], *(f"table{i}" for i in range(1, len(operands))))
    return Rule("rope", pattern, pattern, operands, names, anchors=tuple(anchors))


SPELLINGS = tuple(_spellings())


# -- where they are -----------------------------------------------------------------------------------------


def rope_groups(graph: Graph, target: Target) -> list[list[Node]]:
    """The operators of each place where pairs of features are turned, in graph order; disjoint."""
    if not target.one_kernel:
        return []
    packets = {getattr(node.op, "overloadpacket", None) for node in graph.nodes}
    near = [rule for rule in SPELLINGS if packets.issuperset(rule.anchors)]
    found: list[list[Node]] = []
    taken: set[Node] = set()
    for rule in sorted(near, key=lambda rule: -rule.skeleton.size):
        for root in graph.find(*rule.roots):
            if root in taken:
                continue
            for match in matches(rule, graph, root, lambda *_: None):
                group = list(match.nodes)
                if refusal(match) is None and taken.isdisjoint(group) and target.refusal(group) is None:
                    found.append(group)
                    taken.update(group)
                    break
    order = graph.order()
    return sorted(found, key=lambda group: order[group[-1]])


__all__ = ["SPELLINGS", "rope_groups"]
