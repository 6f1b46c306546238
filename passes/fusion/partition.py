"""Divide pointwise operators and reductions into groups, each of which may be one region.

Each operator begins as a group of its own. A group joins one that reads it, as long as what comes of it is
sound and pays; larger groups may join where smaller could not, so this goes on until nothing changes.

No cycle can arise between groups: a group stands where its last operator stood, and whoever uses one of its
results from outside comes later. So the order of the groups is still an order of definition before use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from capture.ir import Graph, Node, TensorType, Value, op_name
from passes.fusion.reductions import Rows, rows_of
from passes.fusion.target import Target, exports_of, is_fusable
from passes.updates import first_updates

_ROUNDS = 8  # a round joins whole chains; each reduction on the way may ask for one more


@dataclass(eq=False)
class Group:
    """Operators in graph order, and the rows that they work along where one of them is a reduction."""

    nodes: list[Node]
    rows: Rows | None

    @property
    def kind(self) -> str:
        return "reduction" if self.rows is not None else "pointwise"


def partition(
    graph: Graph, target: Target, taken: Iterable[Node] = ()
) -> tuple[list[Group], dict[Node, str]]:
    """(groups of two or more operators, why each other operator stays alone), both in graph order.

    Args:
        taken: nodes that belong to other regions.
    """
    work = _Partition(graph, target, set(taken))
    for _ in range(_ROUNDS):
        if not work.round():
            break
    found = sorted(dict.fromkeys(work.group_of.values()), key=lambda g: work.order[g.nodes[-1]])
    groups = [g for g in found if len(g.nodes) > 1]
    return groups, {g.nodes[0]: work.why(g.nodes[0]) for g in found if len(g.nodes) == 1}


class _Partition:
    def __init__(self, graph: Graph, target: Target, taken: set[Node]) -> None:
        self.target = target
        self.order: Mapping[Node, int] = graph.order()
        self.updates = {v: n for v, n in first_updates(graph).items() if not is_fusable(n)}
        self.group_of: dict[Node, Group] = {}
        self.reasons: dict[Node, str] = {}
        for node in graph.nodes:
            if node in taken:
                continue
            rows = rows_of(node)
            if rows is not None or is_fusable(node):
                self.group_of[node] = Group([node], rows)

    def round(self) -> bool:
        """Let each group join one that reads it, last first; whether any did."""
        joined = False
        for node in sorted(self.group_of, key=self.order.__getitem__, reverse=True):
            group = self.group_of[node]
            if node is group.nodes[-1]:
                joined |= any(self.join(group, reader) for reader in self.readers(group))
        return joined

    def readers(self, group: Group) -> list[Group]:
        """The groups that read this one, the first in the graph first."""
        users = (user for n in group.nodes for v in n.results for user in v.users)
        found = {self.group_of[u]: None for u in users if self.group_of.get(u, group) is not group}
        return sorted(found, key=lambda g: self.order[g.nodes[-1]])

    def join(self, group: Group, reader: Group) -> bool:
        nodes = sorted([*group.nodes, *reader.nodes], key=self.order.__getitem__)
        rows = reader.rows or group.rows
        checks: tuple[Callable[[], str | None], ...] = (
            lambda: self.refuses_kinds(group, reader),
            lambda: self.target.refusal(nodes),
            lambda: self.refuses_results(nodes),
            lambda: self.refuses_reads(nodes),
            lambda: misaligned(nodes, rows),
        )
        for check in checks:
            if (reason := check()) is not None:
                self.reasons[group.nodes[-1]] = reason
                return False
        made = Group(nodes, rows)
        self.group_of.update(dict.fromkeys(nodes, made))
        return True

    def refuses_kinds(self, group: Group, reader: Group) -> str | None:
        for one in (group, reader):
            if one.rows is not None and not self.target.one_kernel:
                return "on a CPU a reduction is a call of its own"
        if group.rows is not None and reader.rows is not None and group.rows != reader.rows:
            return "what reads it reduces along other axes"
        return None

    def refuses_results(self, nodes: list[Node]) -> str | None:
        """The results of a region must be few, and wanted only after its last operator."""
        exports = exports_of(nodes)
        if nodes[-1].results[0] not in exports:
            return "nothing needs what reads it"
        if len(exports) > self.target.max_results:
            if any(v.is_result for v in exports if v.producer is not nodes[-1]):
                return "the graph returns its result"
            return "its result is used elsewhere too, and computing it twice costs more than reading it"
        inside, end = set(nodes), self.order[nodes[-1]]
        if any(self.order[user] < end for v in exports for user in v.users if user not in inside):
            return "its result is wanted before the region would end"
        return None

    def refuses_reads(self, nodes: list[Node]) -> str | None:
        """What an update writes over in place is to be read before it, and so not where the region stands."""
        end = self.order[nodes[-1]]
        for node in nodes:
            for update in (self.updates[v] for v in node.operand_values if v in self.updates):
                if self.order[node] < self.order[update] <= end:
                    return "it reads what is updated in place before the region would run"
        return None

    def why(self, node: Node) -> str:
        """Why a node stays alone."""
        if node in self.reasons:
            return self.reasons[node]
        if not self.target.one_kernel and node not in self.reasons and self.group_of[node].rows is not None:
            return "on a CPU a reduction is a call of its own"
        values = [v for v in node.results if v.num_uses]
        users = [user for v in values for user in v.users]
        if any(v.is_result for v in values) and not users:
            return "the graph returns its result, and it has no neighbour to join"
        names = ", ".join(dict.fromkeys(op_name(user.op) for user in users))
        return f"{names} reads it, which takes in no operator before it" if names else "it has no reader"


def misaligned(nodes: list[Node], rows: Rows | None) -> str | None:
    """Why the operators do not work on the same elements, or the same rows, at the same time; or None."""
    made = {v for n in nodes for v in n.results}
    device = _type(nodes[0].results[0]).device
    for node in nodes:
        result = _type(node.results[0])
        if result.device != device:
            return "what reads it lies on another device"
        if rows is not None and not rows.holds(result.shape):
            return "what reads it has another shape"
        for value in node.operand_values:
            if value in made and not _fits(value, node, rows):
                return "what reads it has another shape, and computing it once is cheaper"
    return None


def _fits(value: Value, node: Node, rows: Rows | None) -> bool:
    """Whether the node, at an element or in a row, reads just that element, or that row's elements."""
    given = _type(value).shape
    if rows_of(node) is not None:  # its other operands are weights, along the axes that it reduces
        return rows is not None and node.operands[0] is value and node.operand_values.count(value) == 1
    if given == _type(node.results[0]).shape:
        return True
    return rows is not None and not rows.rule and given in ((), rows.kept)


def _type(value: Value) -> TensorType:
    return value.tensor_type


__all__ = ["Group", "misaligned", "partition"]
