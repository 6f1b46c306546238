"""The ledger: what became of each captured op, which pass did it, and why.

Rewrites unite origins (`Graph.replace_node`), so most of it can be seen: an id that moved into a fusion, one
whose op changed, one that is on no node any more. A pass says the rest in `PassResult.fates`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from capture.ir import Fusion, Graph, Node, op_name
from capture.ir.text import names
from passes.queries import live_nodes

KEPT, FUSED, FOLDED, REMOVED, REPLACED = "kept", "fused", "folded", "removed", "replaced"
_SETTLED = (FOLDED, REMOVED)  # what happens later to the node that took an op's place is not that op's fate


@dataclass(frozen=True)
class Fate:
    """What became of a captured op.

    Attributes:
        kind: "kept", "fused" (computed inside a fusion), "folded" (computed once, into a constant),
            "removed" (not computed, nor needed) or "replaced" (another op computes it).
        pass_name: the pass that did it; the manager fills it in.
        reason: half a sentence for people: "its result is used nowhere".
        final: whether it stays, whatever becomes of the node that stands for the op now.
    """

    kind: str
    pass_name: str = ""
    reason: str = ""
    final: bool = False


@dataclass(frozen=True)
class LedgerRow:
    """A captured op and its fate; `node` is the printed name of what stands for it now, "" for nothing."""

    id: int
    op: str
    module: str
    file: str
    line: int
    kind: str
    pass_name: str
    reason: str
    node: str


def fates_of(node: Node, kind: str, reason: str) -> dict[int, Fate]:
    """The same fate for each captured op that a node stands for. Ask before the node is replaced."""
    return dict.fromkeys(node.origin.ids, Fate(kind, reason=reason))


Carriers = Mapping[int, tuple[Any, ...]]


def carriers(graph: Graph) -> Carriers:
    """For each id on a node, the ops of the live nodes that stand for it; a region counts as its node's.

    A node that nothing depends on still has its ids, but is no carrier: so what removed or replaced it is the
    pass that made it dead, not the one that sweeps it up.
    """
    made: Carriers = graph.analysis("carriers", lambda: _carriers(graph))
    return made


def _carriers(graph: Graph) -> Carriers:
    found: dict[int, tuple[Any, ...]] = {}
    live = live_nodes(graph)
    for node in graph.nodes:
        ops = (node.op,) if node in live else ()
        for number in dict.fromkeys(_ids(node)):
            found[number] = found.get(number, ()) + ops
    return found


def _ids(node: Node) -> Iterator[int]:
    yield from node.origin.ids
    for region in node.regions:
        for inner in region.nodes:
            yield from _ids(inner)


def record_fates(
    graph: Graph, pass_name: str, before: Carriers, told: Mapping[int, Fate], reason: str
) -> None:
    """Enter into `graph.fates` what one pass did: what it told, and what can be seen.

    Args:
        before: `carriers` of the graph before the pass.
        told: the pass's own fates. Of an op that several nodes stood for, one may be gone while others stay;
            such a fate counts only once none is left.
        reason: for the ops that vanished and of which nothing was told.
    """
    after = carriers(graph)
    for number, ops in before.items():
        now = after.get(number, ())
        if number in told and (len(ops) <= 1 or not now):
            _settle(graph, number, replace(told[number], pass_name=pass_name))
        elif number not in after or (ops and not now):
            _settle(graph, number, Fate(REMOVED, pass_name, reason or "nothing needs it any more"))
        elif now != ops:
            _see_move(graph, pass_name, number, ops, now)


def _see_move(graph: Graph, pass_name: str, number: int, before: Iterable[Any], now: Iterable[Any]) -> None:
    fusions = [op for op in now if isinstance(op, Fusion)]
    if fusions and not any(isinstance(op, Fusion) for op in before):
        _settle(graph, number, Fate(FUSED, pass_name, f"into {op_name(fusions[0])}"))
    elif not fusions and not set(before) & set(now) and number not in graph.fates:
        _settle(graph, number, Fate(REPLACED, pass_name, "by " + ", ".join(dict.fromkeys(map(op_name, now)))))


def _settle(graph: Graph, number: int, fate: Fate) -> None:
    known = graph.fates.get(number)
    if known is None or not (known.final or known.kind in _SETTLED):
        graph.fates[number] = fate


def ledger(graph: Graph) -> list[LedgerRow]:
    """One row per captured op, in the order of capture."""
    named = names(graph)
    places: dict[int, list[str]] = {}
    for node in graph.nodes:
        place = named[node.results[0]] if node.results else op_name(node.op)
        for number in dict.fromkeys(_ids(node)):
            places.setdefault(number, []).append(place)
    rows = []
    for number, op in sorted(graph.captured.items()):
        living = ", ".join(places.get(number, ()))
        default = Fate(KEPT) if living else Fate(REMOVED, "capture", "the captured graph has no such node")
        fate = graph.fates.get(number, default)
        rows.append(
            LedgerRow(
                number, op.op, op.module, op.file, op.line, fate.kind, fate.pass_name, fate.reason, living
            )
        )
    return rows
