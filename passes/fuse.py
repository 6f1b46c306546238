"""Group operators into fusion regions.

    y = conv2d(x, W, b)                         z = fusion.conv(x, W, b, r) {
    s = y + r                      ==>              relu(conv2d(x, W, b) + r)
    z = relu(s)                                 }

    t = x * a;  u = tanh(t);  v = u + b  ==>    v = fusion.pointwise(x, a, b) { tanh(x * a) + b }

    m = mean(x ** 2, -1);  y = x * rsqrt(m)  ==>    y = fusion.reduction(x) { ... }         (on a GPU)

    y = x * cos + rotate_half(x) * sin           ==>  y = fusion.rope(x, cos, sin) { ... }       (on a GPU)

Convolutions and linear layers take the pointwise operators after them as an epilogue, products too; what is
left gathers into groups, on a GPU around reductions along the same rows. `target` says where the graph is to
run (auto: where its tensors lie): on a GPU a region is one kernel, and a value that stays inside is neither
written nor read. On a CPU it is a row of calls, so it holds what oneDNN does in one kernel, or what runs in
the memory of its result; more would cost memory and save nothing.

Does not fire over a value that has another use (on a GPU a region may return it, if it is used later only),
that the graph returns, whose shape the next operator changes (broadcasting it), over a change of dtype on a
CPU, of device, over reductions along unlike axes, on random numbers, over a read of a state that is updated
before the region would run, or for a lone operator. The ledger tells why an operator stays alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from capture.ir import Fusion, Graph, Node, TensorType, dims, op_name
from capture.ir.dims import Dim
from passes.base import Pass, PassResult, register_pass
from passes.fusion import anchored_groups, is_fusable, partition, rope_groups, target_of
from passes.fusion.target import exports_of
from passes.ledger import FUSED, KEPT, Fate, fates_of
from passes.regions import make_region


@register_pass
@dataclass(frozen=True)
class Fuse(Pass):
    name = "fuse"
    target: str = "auto"  # cpu, gpu, or auto: where the graph's tensors lie
    max_ops: int = 32  # operators in one region; bounds the size of a generated kernel
    max_inputs: int = 16  # tensors that a region reads; bounds the registers of a generated kernel

    def run(self, graph: Graph) -> PassResult:
        target = target_of(graph, self.target, self.max_ops, self.max_inputs)
        ropes = [("rope", group) for group in rope_groups(graph, target)]
        anchored = anchored_groups(graph, target, _nodes(ropes))
        groups, alone = partition(graph, target, _nodes([*ropes, *anchored]))
        fates = _alone(graph, alone)
        stats: Counter[str] = Counter()
        chosen = [(kind, kind, group) for kind, group in ropes]
        chosen += [(label(group), kind, group) for kind, group in anchored]
        chosen += [(found.kind, found.kind, found.nodes) for found in groups]
        for counted, kind, group in chosen:
            stats[counted] += 1
            if target.one_kernel:
                fates.update(_together(graph, kind, group))
            make_region(graph, Fusion(kind), group)
        return PassResult(bool(stats), dict(stats), fates)


def _nodes(groups: list[tuple[str, list[Node]]]) -> list[Node]:
    return [node for _, group in groups for node in group]


def label(group: list[Node]) -> str:
    """``conv+add+relu``: how a group is counted in the report."""
    return "+".join(op_name(n.op).split(".")[1].removesuffix("2d") for n in group)


def saved_bytes(group: list[Node]) -> Dim:
    """Bytes that a kernel of the group need not write and read: each result of one that another one reads."""
    exports, inside = set(exports_of(group)), set(group)
    total: Dim = 0
    for value in (v for n in group for v in n.results if isinstance(v.type, TensorType)):
        reads = sum(user in inside for user in value.users)
        total = total + value.tensor_type.nbytes * (reads + (reads > 0 and value not in exports))
    return dims.canonical(total)


def _together(graph: Graph, kind: str, group: list[Node]) -> dict[int, Fate]:
    """What captured ops gain by their fusion."""
    reason = (
        f"into fusion.{kind}, which saves {dims.format_dim(saved_bytes(group))} bytes of reads and writes"
    )
    return _new(graph, [fates_of(node, FUSED, reason) for node in group])


def _alone(graph: Graph, alone: dict[Node, str]) -> dict[int, Fate]:
    """Why captured ops stay alone."""
    return _new(graph, [fates_of(node, KEPT, f"not fused: {reason}") for node, reason in alone.items()])


def _new(graph: Graph, told: list[dict[int, Fate]]) -> dict[int, Fate]:
    """The fates of those ops of which there is nothing else to tell."""
    return {number: fate for fates in told for number, fate in fates.items() if number not in graph.fates}


__all__ = ["Fuse", "is_fusable", "label", "saved_bytes"]
