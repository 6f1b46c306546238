"""Operators that say one thing in several ways, and those that say little: what unification may look past."""

from __future__ import annotations

from typing import Any

import torch

from capture.ir import Node, Value
from passes.queries import packet_name
from passes.view_algebra import PERMUTATIONS, RESHAPES, permutation

__all__ = [
    "BROADCASTS", "CASTS", "COPIES", "alike", "commutes", "family", "is_holder", "is_scaling", "same_move",
]  # fmt: skip

aten = torch.ops.aten

# Nodes that a graph may have more of, or fewer, than a pattern: they only say how a value is held.
CASTS = ("aten._to_copy", "aten.to")
COPIES = ("aten.clone", "aten.contiguous", "aten.alias", "aten.detach")
BROADCASTS = ("aten.expand", "aten.reshape", "aten.unsqueeze", "aten.view")
_HOLDERS = frozenset((*CASTS, *COPIES, *BROADCASTS))

_COMMUTATIVE = frozenset(
    f"aten.{name}"
    for name in """add mul minimum maximum eq ne logical_and logical_or logical_xor bitwise_and bitwise_or
    bitwise_xor fmin fmax""".split()
)

_BY_SHAPE = frozenset(RESHAPES - {aten.view_as.default, aten.reshape_as.default})
_EXPANSIONS = frozenset({aten.expand.default, aten.broadcast_to.default})
_SCALINGS = frozenset({aten.mul.Tensor, aten.div.Tensor})
_FAMILIES = (frozenset(PERMUTATIONS), _BY_SHAPE, _EXPANSIONS)


def is_holder(node: Node) -> bool:
    """Whether a node may only cast, copy or broadcast."""
    return packet_name(node.op) in _HOLDERS


def commutes(node: Node) -> bool:
    """Whether the first two operands may be swapped."""
    return packet_name(node.op) in _COMMUTATIVE and len(node.operands) >= 2 and not node.kwargs


def family(op: Any) -> frozenset[Any]:
    """The operators that move data as this one may: permutations, reshapes, expansions; itself for any other.

    Which of them two calls are does not matter, where operand and result are the same.
    """
    return next((ops for ops in _FAMILIES if op in ops), frozenset({op}))


def same_move(wanted: Node, given: Node) -> bool:
    """Of two nodes of one family whose results have the same shape: whether they move alike."""
    return wanted.op not in PERMUTATIONS or permutation(wanted) == permutation(given)


def is_scaling(node: Node) -> bool:
    """A product with a number, or a quotient by one; clean-up makes the one of the other for some numbers."""
    return node.op in _SCALINGS and not node.kwargs and isinstance(node.operands[1], (int, float))


def alike(node: Node) -> frozenset[Any]:
    """The operators that a graph may have in the place of a pattern's node."""
    scales = node.op in _SCALINGS and not isinstance(node.operands[1], Value)
    return _SCALINGS if scales else family(node.op)
