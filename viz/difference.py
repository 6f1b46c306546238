"""What became of one graph in another that passes made from it, as one picture.

    a:  conv2d -> batch_norm -> relu             .- fusion.conv ----------------------.
    b:  clone -> fusion.conv             ==>     | conv2d -> batch_norm -> relu        |     clone is new
                                                 '-(fused)----(folded)-----(fused)----'

The picture shows graph `a`, each node coloured by its fate, with the nodes that only `b` has put in. Nodes
correspond by the ids of the captured ops that they stand for; graphs read from text have no ids, and are
matched by op, module path and source line, those in regions too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from capture.ir import Constant, Graph, Node, TensorType, Value, op_name
from capture.ir.graph import map_operand
from viz.modules import FRAME, Path, home_of
from viz.picture import draw
from viz.scene import Overlay, build
from viz.style import FATES, counted


def diff_svg(a: Graph, b: Graph, *, folded: bool = True) -> str:
    """The picture as SVG text."""
    found = Difference(a, b)
    count = Counter(found.fates.values())
    told = " · ".join(f"{count[fate]} {fate}" for fate in FATES if count[fate])
    facts = f"{counted(len(a.nodes), 'node')} → {counted(len(b.nodes), 'node')}" + (
        f" · {told}" if told else ""
    )
    overlay = Overlay(found.fates, found.notes, found.homes())
    name = a.name if a.name == b.name else f"{a.name} → {b.name}"
    return draw(build(found.merged, folded=folded, overlay=overlay), f"{name}: what changed", facts, FATES)


@dataclass
class Difference:
    """Graph `a` with the new nodes of `b` put in.

    Attributes:
        merged: a copy of `a`, with copies of the new nodes of `b`. It is for drawing, not for running.
        fates: fate (a key of `style.FATES`) of each node of `merged`.
        notes: the same in words.
        carriers: for the nodes of `merged` that came from `a`, the nodes of `b` that share their origin.
        chosen: of these, the one that stands for the node; `stands_for` is the reverse.
    """

    a: Graph
    b: Graph
    merged: Graph = field(init=False)
    fates: dict[Node, str] = field(default_factory=dict)
    notes: dict[Node, str] = field(default_factory=dict)
    carriers: dict[Node, list[Node]] = field(default_factory=dict)
    chosen: dict[Node, Node] = field(default_factory=dict)
    stands_for: dict[Node, list[Node]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.merged = self.a.clone()
        old = dict(zip(self.merged.nodes, self.a.nodes, strict=True))
        by_id = any(n.origin.ids for n in old.values())
        standing: dict[Hashable, list[Node]] = defaultdict(list)
        for node, keys in _keys(self.b, by_id).items():
            for key in keys:
                standing[key].append(node)
        for node, keys in zip(old, _keys(self.a, by_id).values(), strict=True):
            self.carriers[node] = list(dict.fromkeys(n for key in keys for n in standing.get(key, ())))
        self._choose()
        for node in old:
            self.fates[node], self.notes[node] = self._fate(node)
        self._insert_new()

    def _choose(self) -> None:
        """Which node of `b` stands for each of `a`: one that has its op, else one that stands for others."""
        rest = []
        for node, carriers in self.carriers.items():
            same = [c for c in carriers if any(n.op == node.op for n in _with_inner(c))]
            if same:
                self.stands_for[same[0]].append(node)
            elif carriers:
                rest.append(node)
        for node in rest:
            busy = [c for c in self.carriers[node] if c in self.stands_for]
            self.stands_for[busy[0] if busy else self.carriers[node][-1]].append(node)
        self.chosen = {node: carrier for carrier, nodes in self.stands_for.items() for node in nodes}

    # -- fates --------------------------------------------------------------------------------------------

    def _fate(self, node: Node) -> tuple[str, str]:
        """The pass's own word where it left one, else what can be seen."""
        told = [
            self.b.fates[i] for i in node.origin.ids if self.b.fates.get(i) not in (None, self.a.fates.get(i))
        ]
        seen = self._seen(node)
        if told and (told[0].kind == seen or told[0].kind in ("folded", "removed")) and told[0].kind in FATES:
            note = f"{told[0].kind} by {told[0].pass_name}: {told[0].reason}"
            return told[0].kind, note.removesuffix(": ")
        into = op_name(self.chosen[node].op) if node in self.chosen else ""
        words = {
            "fused": f"fused into {into}",
            "replaced": f"replaced by {into}",
            "folded": f"folded into {into}",
        }
        return seen, words.get(seen, seen)

    def _seen(self, node: Node) -> str:
        carrier = self.chosen.get(node)
        if carrier is None:
            return "removed"
        if carrier.op == node.op:
            return "kept"
        if any(n.op == node.op for n in _with_inner(carrier)):
            return "fused"
        ours = {n.op for n in self.stands_for[carrier] if n is not node}
        taken_up = any(n.op in ours for n in _with_inner(carrier))
        return "folded" if taken_up else "replaced"

    # -- frames -------------------------------------------------------------------------------------------

    def homes(self) -> dict[Node, Path]:
        """Homes of nodes that one node of `b` stands for: the path they share, and in it a frame."""
        found: dict[Node, Path] = {}
        counts: Counter[Path] = Counter()
        for carrier in self.b.nodes:
            nodes = self.stands_for.get(carrier, ())
            if len(nodes) < 2:
                continue
            modules = list(dict.fromkeys(m for n in nodes for m in n.origin.modules))
            shared = home_of(modules) if modules else ()
            found.update(dict.fromkeys(nodes, (*shared, f"→ {op_name(carrier.op)}{FRAME}{counts[shared]}")))
            counts[shared] += 1
        return found

    # -- what only b has ----------------------------------------------------------------------------------

    def _insert_new(self) -> None:
        values: dict[Value, Value] = {}
        own = {v.name: v for v in self.merged.inputs}
        values.update({v: own[v.name] for v in self.b.inputs if v.name in own})
        for node in self.b.nodes:
            held = self.stands_for.get(node)
            if held:
                last = max(held, key=self.merged.order().__getitem__)
                for i, value in enumerate(node.results):
                    values[value] = last.results[min(i, len(last.results) - 1)]
                continue
            copy = self._insert(node, values)
            self.fates[copy], self.notes[copy] = "new", "only in the second graph"
            values.update(zip(node.results, copy.results, strict=True))

    def _insert(self, node: Node, values: dict[Value, Value]) -> Node:
        """Copy a node of `b` into the merged graph, behind what it takes and before what takes it."""

        def leaf(operand: Any) -> Any:
            if not isinstance(operand, Value):
                return operand
            if isinstance(operand, Constant) and operand not in values:
                same = self.merged.constants.get(operand.name)
                values[operand] = same or self.merged.add_constant(operand.name, operand.tensor_type)
            return values.get(operand)

        operands = map_operand(node.operands, leaf)
        kwargs = {k: map_operand(v, leaf) for k, v in node.kwargs.items()}
        order = self.merged.order()
        sources = [values[v] for v in node.operand_values if v in values]
        before = [v.producer for v in sources if v.producer is not None]
        after = max(before, key=order.__getitem__, default=None)
        first = None if after is not None else next(iter(self.merged.nodes), None)
        copy = self.merged.add_node(
            node.op, operands, kwargs, types=[v.type for v in node.results], origin=node.origin,
            regions=node.regions, impl=node.impl, after=after, before=first,
        )  # fmt: skip
        self._redirect(node, copy, sources)
        return copy

    def _redirect(self, node: Node, copy: Node, sources: list[Value]) -> None:
        """What takes the new node's result in `b` takes it here too, in place of the node's own operand."""
        order = self.merged.order()
        takers = {n for v in node.results for user in v.users for n in self.stands_for.get(user, ())}
        for source in sources[:1]:
            for user in source.users:
                if user in takers and order[user] > order[copy] and copy.results:
                    user.replace_operand(source, copy.results[0])


def _with_inner(node: Node) -> list[Node]:
    """A node, and those of its regions."""
    return [node, *(inner for region in node.regions for n in region.nodes for inner in _with_inner(n))]


def _keys(graph: Graph, by_id: bool) -> dict[Node, list[Hashable]]:
    """What each node is known by in the other graph, the closest first.

    Without ids: its op and those of its regions, each with module and source line (or else shapes), and which
    of those alike it is; then module and line alone, where another op may have taken its place.
    """
    found: dict[Node, list[Hashable]] = {}
    seen: Counter[Hashable] = Counter()
    for node in graph.nodes:
        nodes = _with_inner(node)
        numbers = dict.fromkeys(number for n in nodes for number in n.origin.ids)
        if by_id and numbers:
            found[node] = list(numbers)
            continue
        exact: list[Hashable] = []
        for n in nodes:
            spots = [] if by_id else _spots(n)
            for alike in [(op_name(n.op), s) for s in spots or [tuple(_shape(v) for v in n.results)]]:
                exact.append((alike, seen[alike]))
                seen[alike] += 1
        found[node] = [*exact, *([] if by_id else _spots(node))]
    return found


def _spots(node: Node) -> list[Hashable]:
    """Modules and source lines of a node, in pairs."""
    modules, places = node.origin.modules, node.origin.locations
    if not (modules or places):
        return []
    return [(module, place) for module in modules or ("",) for place in places or (("", 0),)]


def _shape(value: Value) -> str:
    """A type without its memory format, which layout changes."""
    kind = value.type
    return f"{kind.dtype}{list(kind.shape)}" if isinstance(kind, TensorType) else str(kind)
