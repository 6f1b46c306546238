"""Make one linear layer of several that read the same value.

    q = linear(x, Wq, bq)                       y = linear(x, [Wq Wk Wv], [bq bk bv])
    k = linear(x, Wk, bk)          ==>          q, k, v = split_with_sizes(y, [768, 768, 768], -1)
    v = linear(x, Wv, bv)

One call in place of three, and the input is read once. The new constants are named after what they are made
from: query_key_value.weight.

Does not fire for a layer whose weights are not constant or have another use (they would be held twice), whose
memory the graph returns, whose result is read by what would have to copy its part first (a view that merges
its last axis with another, a linear layer, a norm), or that has an activation after it which its own kernel
does: unless its input is so wide that reading it once less saves more. Nor where the peak of memory would
rise, since the joined result lives as long as any part of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from capture.errors import CaptureError
from capture.ir import Constant, Graph, Node, TensorType, Trait, Value, has, op_name
from capture.ir.infer import FakeRun
from capture.ir.types import CONTIGUOUS, STRIDED
from passes.aliases import Aliases, may_share
from passes.base import Pass, PassResult, register_pass
from passes.fusion import epilogue, target_of
from passes.fusion.pressure import Pressure
from passes.layout import contiguous_copy, reads_strides
from passes.ledger import KEPT, REPLACED, Fate, fates_of
from passes.queries import fixed_tensor, packet_name

aten = torch.ops.aten

_READ_PARTS = {
    "aten.scaled_dot_product_attention", "aten.matmul", "aten.bmm", "aten.baddbmm", "aten.cat", "aten.stack",
}  # fmt: skip


@register_pass
@dataclass(frozen=True)
class MergeLinear(Pass):
    name = "merge-linear"
    target: str = "auto"  # cpu, gpu, or auto: where the graph's tensors lie; decides which activations count

    def run(self, graph: Graph) -> PassResult:
        fates: dict[int, Fate] = {}
        merged = 0
        families = [family for family in siblings(graph) if len(family) > 1]
        if not families:
            return PassResult(False)
        judge = _Judge(graph, self.target)
        pressure = Pressure(graph, late=[node for family in families for node in family])
        for family in families:
            reasons = {node: judge.refusal(node) for node in family}
            runs = affordable([node for node in family if reasons[node] is None], pressure)
            together = {node for run in runs for node in run}
            for node in family:
                if node not in together:
                    reason = reasons[node] or "one buffer for all would raise the peak of memory"
                    fates.update(fates_of(node, KEPT, f"not merged with its siblings: {reason}"))
            for run in runs:
                told = f"by one linear layer together with {len(run) - 1} more of the same input"
                for node in run:
                    fates.update(fates_of(node, REPLACED, told))
                merge(graph, run)
                merged += len(run)
        if merged:
            note_strides(graph)
        return PassResult(merged > 0, {"merged": merged} if merged else {}, fates)


def affordable(nodes: list[Node], pressure: Pressure) -> list[list[Node]]:
    """Runs of two or more of these that may share a buffer; what may not is divided where it is widest."""
    if len(nodes) < 2:
        return []
    if pressure.join([node.result for node in nodes]):
        return [nodes]
    gaps = [pressure.order[b] - pressure.order[a] for a, b in pairwise(nodes)]
    at = gaps.index(max(gaps)) + 1
    return affordable(nodes[:at], pressure) + affordable(nodes[at:], pressure)


def siblings(graph: Graph) -> Iterable[list[Node]]:
    """The linear layers of each input, those with a bias apart from those without, in graph order."""
    families: dict[tuple[Any, ...], list[Node]] = defaultdict(list)
    for node in graph.find(aten.linear.default):
        x, weight = node.operands[:2]
        if node.impl is None and weight.tensor_type.rank == 2:
            families[x, node.arg("bias") is None, weight.tensor_type.dtype].append(node)
    return families.values()


class _Judge:
    """Says of each layer why it may not be merged, or that it pays not."""

    def __init__(self, graph: Graph, target: str) -> None:
        self.graph = graph
        self.target = target_of(graph, target)
        self.aliases = Aliases(graph)
        self.fake = FakeRun(graph)

    def refusal(self, node: Node) -> str | None:
        """The first reason against, or None."""
        weight, bias = node.operands[1], node.arg("bias")
        if fixed_tensor(self.graph, weight) is None:
            return "its weight is not constant"
        if bias is not None and fixed_tensor(self.graph, bias) is None:
            return "its bias is not constant"
        if weight.num_uses > 1:
            return "its weight is used elsewhere too, and would be held twice"
        if self.aliases.escapes(node.result):
            return "the graph returns its memory"
        after = epilogue(self.graph, node, self.target)[1:]
        width, height = weight.tensor_type.shape
        if after and height < 2 * width:  # its result is written and read once more, its input read once less
            return f"{op_name(after[0].op)} runs inside its own kernel, which saves more"
        if (reader := self.copier(node)) is not None:
            return f"{op_name(reader.op)} would have to copy its part of the result first"
        return None

    def copier(self, node: Node) -> Node | None:
        """The first reader of the layer's result that would copy it if it were every other row of columns."""
        type_ = node.result.tensor_type
        fakes = self.fake.values
        with self.fake.context.active(), self.fake.context.mode:
            whole = self.fake.context.tensor(type_.with_(shape=(*type_.shape[:-1], 2 * type_.shape[-1])))
            fakes[node.result] = whole.narrow(-1, 0, type_.shape[-1])
        storage = whole.untyped_storage()._cdata
        waiting = [node.result]
        while waiting:
            for user in waiting.pop().users:
                if reads_strides(user.op) and packet_name(user.op) not in ("aten.view", "aten._unsafe_view"):
                    return user
                if not may_share(user.op):
                    if has(user.op, Trait.POINTWISE) or packet_name(user.op) in _READ_PARTS:
                        continue
                    return user
                try:
                    made = self.fake.step(user)
                except CaptureError:
                    return user
                if any(fake.untyped_storage()._cdata != storage for fake in made):
                    return user
                waiting += user.results
        return None


def merge(graph: Graph, nodes: list[Node]) -> Node:
    """Put one linear layer and a split in place of these, which read the same value; returns the split."""
    first = nodes[0]
    origin = first.origin
    for node in nodes[1:]:
        origin |= node.origin
    parameters = [joined(graph, [n.operands[1] for n in nodes])]
    if first.arg("bias") is not None:
        parameters.append(joined(graph, [n.arg("bias") for n in nodes]))
    made = graph.add_node(
        aten.linear.default, [first.operands[0], *parameters], origin=origin, before=first
    ).result
    sizes = [n.operands[1].tensor_type.shape[0] for n in nodes]
    split = graph.add_node(aten.split_with_sizes.default, [made, sizes, -1], origin=origin, before=first)
    for node, part in zip(nodes, split.results, strict=True):
        constants = [v for v in node.operand_values if isinstance(v, Constant) and v is not node.operands[0]]
        graph.replace_node(node, [part])
        for constant in constants:
            if not constant.num_uses and graph.constants.get(constant.name) is constant:
                graph.erase_constant(constant.name)
    return split


def joined(graph: Graph, constants: list[Constant]) -> Constant:
    """The constants one below the other, as a new one: a.q.weight and a.k.weight give a.q_k.weight."""
    paths = [c.name.split(".") for c in constants]
    if len({len(path) for path in paths}) == 1:
        columns = [list(dict.fromkeys(parts)) for parts in zip(*paths, strict=True)]
        name = ".".join("_".join(parts) for parts in columns)
    else:
        name = "_".join(c.name for c in constants)
    with torch.no_grad():
        return graph.add_constant(name, torch.cat([c.tensor for c in constants if c.tensor is not None]))


def note_strides(graph: Graph) -> None:
    """Write into the types how parts of a joined result, and what is made from them, lie in memory.

    What is returned goes on being contiguous where it was.
    """
    fake = FakeRun(graph)
    before = {v: v.type for v in graph.results if isinstance(v, Value)}
    for node in graph.nodes:
        if not any(map(_is_strided, (*node.operand_values, *node.results))):
            continue  # the types tell all that there is to know
        try:
            made = fake.step(node)
        except CaptureError:  # sizes that depend on data, say: what the types tell has to do
            continue
        for value, result in zip(node.results, made, strict=True):
            found = fake.context.type(result)
            if isinstance(found, TensorType) and found.memory_format != value.tensor_type.memory_format:
                type_ = value.tensor_type.with_(memory_format=found.memory_format)
                graph.set_result_type(value, type_)
    for value, type_ in before.items():
        if value.type != type_ and type_.memory_format == CONTIGUOUS:
            copy = contiguous_copy(graph, value)
            graph.set_results([copy.result if v is value else v for v in graph.results])


def _is_strided(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.memory_format == STRIDED


__all__ = ["MergeLinear", "joined", "merge", "note_strides", "siblings"]
