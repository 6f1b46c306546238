"""What pays where: what a region may hold on a target, and the reason where it may not hold more.

On a CPU the operators of a region are calls one after the other, but for what oneDNN does in the kernel of a
convolution or linear layer. A region then saves no reads and writes; it must not cost memory either, so it
holds only what runs in the memory of its result. A reduction allocates its own result and stays alone.

On a GPU a region is one kernel, its temporaries are registers: a value that stays inside is neither written
nor read. Reductions join what is computed over the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from capture.errors import UsageError
from capture.ir import Graph, Node, TensorType, Trait, Value, has, op_name
from passes.aliases import may_share
from passes.destinations import takes_destination


@dataclass(frozen=True)
class Target:
    """What a region may hold.

    Attributes:
        name: "cpu" or "gpu".
        one_kernel: whether a region is one kernel, so that temporaries inside cost no memory.
        max_ops: operators in a region.
        max_inputs: tensors that it reads: each is a pointer and registers of the kernel.
        max_results: tensors that it writes.
    """

    name: str
    one_kernel: bool
    max_ops: int
    max_inputs: int
    max_results: int

    def refusal(self, nodes: Sequence[Node]) -> str | None:
        """Why these nodes, in order, may not be one region; None where they may."""
        if len(nodes) > self.max_ops:
            return f"the region would have more than {self.max_ops} operators"
        if len(inputs_of(nodes)) > self.max_inputs:
            return f"the region would read more than {self.max_inputs} tensors"
        return None if self.one_kernel else needs_memory(nodes)


def target_of(graph: Graph, name: str = "auto", max_ops: int = 32, max_inputs: int = 16) -> Target:
    """The target of that name; `auto` is a GPU where most of the graph's tensors lie on one.

    Raises:
        UsageError: another name.
    """
    if name not in ("auto", "cpu", "gpu"):
        raise UsageError(f"there is no target {name!r}", hint="auto, cpu or gpu")
    if name == "auto":
        values = (*graph.inputs, *graph.constants.values(), *(v for n in graph.nodes for v in n.results))
        count = Counter(v.type.device.type for v in values if isinstance(v.type, TensorType))
        name = "cpu" if not count or count.most_common(1)[0][0] == "cpu" else "gpu"
    on_gpu = name == "gpu"
    return Target(name, on_gpu, max_ops, max_inputs, max_results=4 if on_gpu else 1)


def inputs_of(nodes: Sequence[Node]) -> list[Value]:
    """The values that the nodes read and do not make, each once."""
    made = {v for n in nodes for v in n.results}
    return list(dict.fromkeys(v for n in nodes for v in n.operand_values if v not in made))


def exports_of(nodes: Sequence[Node]) -> list[Value]:
    """The values of the nodes that others use, or that the graph returns."""
    inside = set(nodes)
    return [v for n in nodes for v in n.results if v.is_result or any(user not in inside for user in v.users)]


def needs_memory(nodes: Sequence[Node]) -> str | None:
    """Why calls in that order would need more memory at once than the result's own, or None."""
    final = nodes[-1].results[0].type
    last = {v: n for n in nodes for v in n.operand_values}
    alive: set[Value] = set()
    for node in nodes:
        if node.results[0].type != final:
            return "on a CPU a temporary of another type would need memory beside the result's"
        if not takes_destination(node):
            return f"{op_name(node.op)} allocates its own result"
        alive = {v for v in alive if last[v] is not node} | {node.results[0]}
        if len(alive) > 1:
            return "on a CPU a second temporary would need memory beside the result's"
    return None


def is_fusable(node: Node) -> bool:
    """A pure pointwise operator with one tensor result in memory of its own.

    Generated code overwrites a region's temporaries: one that is an input itself (a cast to the dtype it has)
    may not be among them.
    """
    return (
        len(node.results) == 1
        and not node.regions
        and has(node.op, Trait.POINTWISE)
        and not has(node.op, Trait.EFFECTFUL | Trait.RANDOM | Trait.MOVE)
        and not may_share(node.op)
        and isinstance(node.results[0].type, TensorType)
    )


def keeps_type(value: Value, user: Node) -> bool:
    """The user's result has the value's own shape, dtype and device: no broadcast, no cast."""
    given, made = value.type, user.results[0].type
    return isinstance(given, TensorType) and isinstance(made, TensorType) and given.same_value_as(made)
