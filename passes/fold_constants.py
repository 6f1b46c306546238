"""Compute once what depends on constants alone.

    %0 = aten.arange(4)                         @embeddings.add: i64[4]
    %1 = aten.add.Tensor(%0, 2)   ==>           %0 = aten.embedding(@weight, @embeddings.add)
    %2 = aten.embedding(@weight, %1)            return %0
    return %2

    %0 = aten.where.self(@mask, %x, %y)   ==>   %x, where all of @mask is true and the types agree

Values are computed by the node's own op in its own dtype: the very bits that the model would compute.

Does not fire on random numbers, effects, uninitialised memory (empty), symbolic sizes, unbound constants,
constants that are written back, weights kept in a quantised form, or what the graph returns (the caller would
get hold of the constant itself). A new constant of more than `max_bytes` is not made unless it is no larger
than what it is made from; a broadcast (expand) is not made at all: it would only be more to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload

from capture.ir import Graph, Node, TensorType, Trait, Value, dims, has, is_pure, op_name
from capture.ir.graph import map_operand
from capture.ir.types import TORCH_FORMATS
from passes.aliases import Aliases
from passes.base import Pass, PassResult, register_pass
from passes.ledger import FOLDED, Fate, fates_of
from passes.queries import fixed_tensor, packet_name

_UNINITIALISED = {
    "aten.empty", "aten.empty_like", "aten.new_empty", "aten.empty_strided", "aten.new_empty_strided",
    "aten.empty_permuted",
}  # fmt: skip
_LIKE = {"aten.zeros_like", "aten.ones_like", "aten.full_like"}  # of the operand only the type matters
_NEW = {"aten.new_zeros", "aten.new_ones", "aten.new_full"}  # only dtype and device
_WHERES = ("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf")
_MASKED_FILLS = ("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
_COPYING_VIEWS = {"aten.reshape", "aten.flatten", "aten.contiguous", "aten.to"}


@register_pass
@dataclass(frozen=True)
class FoldConstants(Pass):
    """Options: `max_bytes`, the size up to which a constant may be larger than what it is made from."""

    max_bytes: int = 16 * 2**20
    name = "fold-constants"

    def run(self, graph: Graph) -> PassResult:
        folder = _Folder(graph, self.max_bytes)
        for node in graph.nodes:
            folder.visit(node)
        folded = folder.finish()
        stats = {"folded": folded, "constants": folder.made, "selections": folder.selections}
        changed = folded + folder.selections > 0
        return PassResult(changed, {k: n for k, n in stats.items() if n}, folder.fates)


class _Folder:
    """Evaluates forwards, then makes constants of just those values that remaining nodes want."""

    def __init__(self, graph: Graph, max_bytes: int) -> None:
        self.graph = graph
        self.max_bytes = max_bytes
        self.aliases = Aliases(graph)
        self.known: dict[Value, torch.Tensor] = {}
        self.evaluated: dict[Node, None] = {}
        self.fates: dict[int, Fate] = {}
        self.made = self.selections = 0

    def tensor(self, value: Value) -> torch.Tensor | None:
        """What the value is known to hold, the same at every call of the graph."""
        return self.known[value] if value in self.known else fixed_tensor(self.graph, value)

    def visit(self, node: Node) -> None:
        if can_evaluate(node) and not any(map(self.aliases.escapes, node.results)):
            if (results := self.evaluate(node)) is not None:
                self.known.update(zip(node.results, results, strict=True))
                for value in node.results:
                    self.aliases.becomes_constant(value)
                self.evaluated[node] = None
                return
        if (chosen := self.decided(node)) is not None and self.aliases.may_replace(node.result, chosen):
            self.fates.update(fates_of(node, FOLDED, "its constant mask chooses one operand everywhere"))
            self.aliases.replaced(node.result, chosen)
            self.graph.replace_node(node, [chosen])
            self.selections += 1

    # -- evaluation

    def evaluate(self, node: Node) -> list[torch.Tensor] | None:
        """The node's results; None where an operand is not known, the size forbids it, or the op refuses."""
        given = {v: t for v in node.operand_values if (t := self.tensor(v)) is not None}
        if not self.is_affordable(node, given):
            return None
        for value in node.operand_values:
            if value not in given and (like := _stand_in(node, value)) is not None:
                given[value] = like
        if any(v not in given for v in node.operand_values):
            return None

        def leaf(operand: Any) -> Any:
            return given[operand] if isinstance(operand, Value) else operand

        try:
            with torch.no_grad():
                kwargs = {k: map_operand(v, leaf) for k, v in node.kwargs.items()}
                results = node.op(*map_operand(node.operands, leaf), **kwargs)
        except (RuntimeError, TypeError, IndexError, ValueError, NotImplementedError):
            return None  # left to fail, if it must, where the user's own line is known
        flat = [results] if isinstance(results, torch.Tensor) else list(results)
        agree = len(flat) == len(node.results) and all(map(_fits, flat, node.results))
        return flat if agree else None

    def is_affordable(self, node: Node, given: Mapping[Value, torch.Tensor]) -> bool:
        if is_view(node):
            return True
        made = sum(int(v.tensor_type.nbytes) for v in node.results)
        source = sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in given.values())
        return made <= max(self.max_bytes, source)

    # -- selection

    def decided(self, node: Node) -> Value | None:
        """The operand that a `where` or `masked_fill` gives everywhere."""
        name = op_name(node.op)
        if name not in _WHERES + _MASKED_FILLS:
            return None
        is_fill = name in _MASKED_FILLS
        condition = node.operands[1 if is_fill else 0]
        mask = self.tensor(condition)
        if mask is None or mask.dtype is not torch.bool:
            return None
        if is_fill:
            chosen = None if mask.any() else node.operands[0]
        else:
            chosen = node.operands[1] if mask.all() else None if mask.any() else node.operands[2]
        same = isinstance(chosen, Value) and chosen.type == node.result.type
        return chosen if same else None

    # -- the new constants

    def finish(self) -> int:
        """Make the constants that are wanted and erase what they stand for; returns how many nodes went."""
        for node in reversed(list(self.evaluated)):
            if any(self.is_wanted(v) and _is_bloated(self.known[v]) for v in node.results):
                del self.evaluated[node]
        for node in self.evaluated:
            names = [self.materialise(node, v) for v in node.results if self.is_wanted(v)]
            reason = f"into @{names[0]}" if names else "depends on constants alone"
            self.fates.update(fates_of(node, FOLDED, reason))
        for node in reversed(list(self.evaluated)):
            self.graph.erase(node)
        return len(self.evaluated)

    def is_wanted(self, value: Value) -> bool:
        return any(user not in self.evaluated for user in value.users)

    def materialise(self, node: Node, value: Value) -> str:
        module = node.origin.modules[-1] + "." if node.origin.modules else ""
        constant = self.graph.add_constant(
            module + packet_name(node.op).partition(".")[2], _compact(self.known[value])
        )
        self.graph.replace_uses(value, constant)
        self.made += 1
        return constant.name


def can_evaluate(node: Node) -> bool:
    """Whether a call of the node gives the same static tensors at every call, given the same operands."""
    return (
        isinstance(node.op, OpOverload)
        and is_pure(node.op)
        and node.op.namespace != "quantized_decomposed"
        and packet_name(node.op) not in _UNINITIALISED
        and any(v.num_uses for v in node.results)
        and all(isinstance(v.type, TensorType) and v.type.is_static for v in node.results)
        and not dims.free_names([*node.operands, *node.kwargs.values()])
    )


def is_view(node: Node) -> bool:
    """Whether the result takes no memory of its own."""
    return has(node.op, Trait.VIEW) and packet_name(node.op) not in _COPYING_VIEWS


def _fits(tensor: Any, value: Value) -> bool:
    type_ = value.tensor_type
    return isinstance(tensor, torch.Tensor) and (tensor.dtype, tuple(tensor.shape)) == (
        type_.dtype,
        type_.shape,
    )


def _stand_in(node: Node, value: Value) -> torch.Tensor | None:
    """A tensor like the operand, for an op that does not read it: ``zeros_like``, ``new_full``."""
    type_, is_like = value.type, packet_name(node.op) in _LIKE
    if not (is_like or packet_name(node.op) in _NEW) or not isinstance(type_, TensorType):
        return None
    if is_like and not type_.is_static:
        return None
    format_ = TORCH_FORMATS.get(type_.memory_format, torch.contiguous_format) if is_like else None
    shape = type_.shape if is_like else ()
    return torch.empty(shape, dtype=type_.dtype, device=type_.device, memory_format=format_)


def _is_bloated(tensor: torch.Tensor) -> bool:
    """Whether it shows more elements than it holds: a broadcast, or overlapping windows."""
    repeats = any(
        stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return repeats or tensor.nbytes > tensor.untyped_storage().nbytes()


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory without gaps; a transposed weight goes on sharing the weight's."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor
