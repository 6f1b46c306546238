"""Groups of channels that go together, and the cut itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from capture.errors import CaptureError
from capture.ir import Constant, Graph, Node, TensorType, Value, op_name
from capture.ir.infer import infer_types
from passes.pruning import compute_rules, view_rules
from passes.pruning.axes import Axes, Axis, indices, unify
from passes.pruning.rules import Kept, adjust, apply_rule

_TABLES = (compute_rules, view_rules)  # imported for what they put into the table of rules


@dataclass(frozen=True)
class Group:
    """Indices that can only go together.

    Attributes:
        name: a weight whose rows they are, ``layer1.0.conv1.weight``; with ``#2`` where they have two groups.
        axis: the leaf that they are the indices of.
        members: (constant, its dimension) for each that is cut with them.
    """

    name: str
    axis: Axis
    members: tuple[tuple[Constant, int], ...]

    @property
    def size(self) -> int:
        return int(self.axis.size)


def dependency_groups(graph: Graph) -> tuple[Axes, list[Group]]:
    """The graph's axes, and the groups that may lose channels, in the order of their first weight."""
    axes = Axes(graph)
    axes.fix(graph.inputs, "an input of the graph")
    for node in graph.nodes:
        apply_rule(node, axes)
    for target, value in graph.writebacks.items():
        for a, b in zip(axes.of(target), axes.of(value), strict=True):
            unify(a, b)
    axes.fix([v for v in graph.results if isinstance(v, Value)], "a result of the graph")
    members: dict[Axis, list[tuple[Constant, int]]] = {}
    for constant in _in_order_of_use(graph):
        for dim, axis in enumerate(axes.of(constant)):
            for leaf in dict.fromkeys(axis.leaves):
                if not leaf.fixed:
                    members.setdefault(leaf, []).append((constant, dim))
    named = Counter[str]()
    groups = []
    for leaf, found in members.items():
        if _cuttable(found):
            name = _name(found)
            named[name] += 1
            groups.append(Group(name if named[name] == 1 else f"{name}#{named[name]}", leaf, tuple(found)))
    return axes, groups


def _in_order_of_use(graph: Graph) -> list[Constant]:
    used = [v for node in graph.nodes for v in node.operand_values if isinstance(v, Constant)]
    return list(dict.fromkeys(v for v in used if isinstance(v.type, TensorType)))


def _cuttable(members: Sequence[tuple[Constant, int]]) -> bool:
    """Whether it is a group of channels: of a matrix or a filter, all with a tensor to cut."""
    return all(c.tensor is not None for c, _ in members) and any(c.tensor_type.rank > 1 for c, _ in members)


def _name(members: Sequence[tuple[Constant, int]]) -> str:
    """A weight that makes the channels (they are its rows), else the first that reads them."""
    rows = [c.name for c, dim in members if dim == 0 and c.tensor_type.rank > 1]
    return rows[0] if rows else members[0][0].name


def cut(graph: Graph, axes: Axes, kept: Kept) -> None:
    """Take indices out of a graph, in place: slice constants, adjust literals, infer all types anew.

    Args:
        kept: per leaf the indices that stay, int64, rising.

    Raises:
        CaptureError: an operator does not take what is left; the graph is then not to be used.
    """
    for constant in list(graph.constants.values()):
        tensor = constant.tensor
        if tensor is None or axes.shape(constant, kept) == constant.tensor_type.shape:
            continue
        for dim, axis in enumerate(axes.of(constant)):
            if (stay := indices(axis, kept)) is not None:
                tensor = tensor.detach().index_select(dim, stay.to(tensor.device))
        constant.tensor = tensor.contiguous()
        graph.set_result_type(constant, constant.tensor_type.with_(shape=tuple(tensor.shape)))
    for node in graph.nodes:
        if _changes(node, axes, kept):
            _infer_again(graph, node, axes, kept)


def _changes(node: Node, axes: Axes, kept: Kept) -> bool:
    values = [*node.operand_values, *node.results]
    return any(isinstance(v.type, TensorType) and any(_cut(a, kept) for a in axes.of(v)) for v in values)


def _cut(axis: Axis, kept: Kept) -> bool:
    return any(leaf in kept for leaf in axis.leaves)


def _infer_again(graph: Graph, node: Node, axes: Axes, kept: Kept) -> None:
    adjust(node, axes, kept)
    for value, type_ in zip(node.results, infer_types(graph, node), strict=True):
        expected = axes.shape(value, kept)
        if not isinstance(type_, TensorType) or type_.shape != expected:
            raise CaptureError(
                f"{op_name(node.op)} does not give what is left of its channels",
                where=node.where,
                why=f"{type_}, where {list(expected)} was expected",
                hint="leave the group out: PruneConfig(exclude=...)",
            )
        graph.set_result_type(value, type_)
