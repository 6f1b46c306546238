"""Find blocks that repeat, so that each is drawn once.

    encoder.layer.0   encoder.layer.1   ...   encoder.layer.11      ==>      encoder.layer.0 … 11   × 12

A run of items (modules or lone nodes) repeats when the signatures of its items do: the same ops, literals,
kernels, shapes and inner module names, wired alike; module names may differ in their digits only. What is not
numbered (lone nodes, a module that is called again) must also be chained, each round on the one before, so
that three equal branches stay three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any

from capture.ir import Graph, Node, Value
from capture.ir.graph import map_operand
from capture.ir.ops import op_name
from capture.ir.text import format_operand, region_names
from viz.modules import DIGITS, Path, Tree

_LEAST_SAVING = 3  # nodes: folding fewer hides more than it clears


@dataclass
class Repeat:
    """Equal rounds one after the other; the first is drawn."""

    rounds: list[list[Tree | Node]]
    pairs: list[dict[Node, Node]]  # for each round: its nodes -> the first round's


@dataclass
class Block:
    """A module as it is drawn, or the first of `count` equal rounds; `first` and `last` are their paths."""

    path: Path
    entries: list[Block | Node]
    count: int = 1
    first: Path = ()
    last: Path = ()
    chained: bool = True

    @property
    def size(self) -> int:
        """Nodes drawn."""
        return sum(e.size if isinstance(e, Block) else 1 for e in self.entries)


class Folding:
    """A module tree with its repeats folded.

    Attributes:
        root: what is drawn.
        drawn: for each node of the graph the one drawn for it, mostly itself.
    """

    def __init__(
        self, tree: Tree, home: Mapping[Node, Path], tags: Mapping[Node, str], *, folded: bool
    ) -> None:
        self._home, self._tags, self._folded = home, tags, folded
        self._first: dict[Node, Node] = {}
        self._rounds: dict[Node, dict[int, int]] = {}
        self._repeats = 0
        self.root = self._block(tree)
        self.drawn = {n: self._resolve(n) for n in tree.nodes()}

    def between_rounds(self, a: Node, b: Node) -> bool:
        """Whether a link from `a` to `b` goes from one round of a repeat to another."""
        rounds_a, rounds_b = self._all_rounds(a), self._all_rounds(b)
        return any(rounds_b.get(repeat, r) != r for repeat, r in rounds_a.items())

    def _resolve(self, node: Node) -> Node:
        while node in self._first and self._first[node] is not node:
            node = self._first[node]
        return node

    def _all_rounds(self, node: Node) -> dict[int, int]:
        found = dict(self._rounds.get(node, {}))
        while node in self._first and self._first[node] is not node:
            node = self._first[node]
            found = {**self._rounds.get(node, {}), **found}
        return found

    def _block(self, tree: Tree) -> Block:
        entries: list[Tree | Node | Repeat] = list(tree.items)
        if self._folded:
            entries = fold(tree.items, self._home, len(tree.path), self._tags)
        return Block(tree.path, [self._entry(e, tree.path) for e in entries])

    def _entry(self, entry: Tree | Node | Repeat, path: Path) -> Block | Node:
        if isinstance(entry, Node):
            return entry
        if isinstance(entry, Tree):
            return self._block(entry)
        self._repeats += 1
        for number, pairs in enumerate(entry.pairs):
            for node, first in pairs.items():
                self._rounds.setdefault(node, {})[self._repeats] = number
                if node is not first:
                    self._first[node] = first
        first, last = entry.rounds[0], entry.rounds[-1]
        if len(first) == 1 and isinstance(first[0], Tree):
            block = self._block(first[0])
        else:
            block = Block(path, [self._entry(e, path) for e in first])
        block.count = len(entry.rounds)
        block.first, block.last = _path(first[0], self._home), _path(last[-1], self._home)
        block.chained = all(_feeds(a, b) for a, b in pairwise(entry.rounds))
        return block


def _path(item: Tree | Node, home: Mapping[Node, Path]) -> Path:
    return item.path if isinstance(item, Tree) else home[item]


def fold(
    items: Sequence[Tree | Node], home: Mapping[Node, Path], depth: int, tags: Mapping[Node, str]
) -> list[Tree | Node | Repeat]:
    """The items with each repeated run put in a `Repeat`.

    `depth` is the length of the container's path; nodes of unlike `tags` are unlike.
    """
    marks = [_Signature(item, home, depth, tags) for item in items]
    return _fold(list(items), marks)


def _fold(items: list[Tree | Node], marks: list[_Signature]) -> list[Tree | Node | Repeat]:
    best = _best_run(items, marks)
    if best is None:
        return list(items)
    start, period, count = best
    end = start + period * count
    rounds = [items[i : i + period] for i in range(start, end, period)]
    pairs = [
        {
            n: first
            for k in range(period)
            for n, first in zip(marks[i + k].ordered, marks[start + k].ordered, strict=True)
        }
        for i in range(start, end, period)
    ]
    return [*_fold(items[:start], marks[:start]), Repeat(rounds, pairs), *_fold(items[end:], marks[end:])]


def _best_run(items: list[Tree | Node], marks: list[_Signature]) -> tuple[int, int, int] | None:
    """(start, period, count) of the run whose folding saves most nodes; the earliest of equals."""
    keys = [m.key for m in marks]
    best, most = None, _LEAST_SAVING - 1
    for period in range(1, len(keys) // 2 + 1):
        at = 0
        while at + 2 * period <= len(keys):
            length = 0
            while at + length + period < len(keys) and keys[at + length] == keys[at + length + period]:
                length += 1
            count = length // period + 1
            if count > 1:
                numbered = all(m.numbered for m in marks[at : at + period])
                count = count if numbered else _chain(items, at, period, count)
                saved = (count - 1) * sum(m.size for m in marks[at : at + period])
                if saved > most:
                    best, most = (at, period, count), saved
            at += max(1, length - period + 1) if count > 1 else length + 1
    return best


def _chain(items: list[Tree | Node], start: int, period: int, count: int) -> int:
    """How many rounds from `start` each feed the next."""
    rounds = [items[i : i + period] for i in range(start, start + period * count, period)]
    for i, (a, b) in enumerate(pairwise(rounds)):
        if not _feeds(a, b):
            return i + 1
    return count


def _feeds(a: list[Tree | Node], b: list[Tree | Node]) -> bool:
    later = set(_nodes(b))
    return any(user in later for node in _nodes(a) for value in node.results for user in value.users)


def _nodes(items: Sequence[Tree | Node]) -> Iterator[Node]:
    for item in items:
        if isinstance(item, Tree):
            yield from item.nodes()
        else:
            yield item


class _Signature:
    """What two items share when one drawing serves for both.

    Each node's digest covers what it computes from, back to the item's edge, so nodes that correspond have
    equal digests whatever the order of the schedule.
    """

    def __init__(
        self, item: Tree | Node, home: Mapping[Node, Path], depth: int, tags: Mapping[Node, str]
    ) -> None:
        nodes = list(item.nodes()) if isinstance(item, Tree) else [item]
        name = ".".join(home[nodes[0]][: depth + 1][depth:]) if isinstance(item, Tree) else ""
        inner = depth + 1 if isinstance(item, Tree) else depth
        self.numbered = isinstance(item, Tree) and bool(DIGITS.search(name))
        self.size = len(nodes)
        digests: dict[Value, str] = {}
        own: dict[Node, str] = {}
        position = {n: i for i, n in enumerate(nodes)}
        for value in {v for node in nodes for v in node.operand_values if v.is_constant}:
            if all(
                user in position for user in value.users
            ):  # one that others share says nothing of this item
                prefix = "".join(f"{part}." for part in home[nodes[0]][:inner])
                named = value.name.removeprefix(prefix) if value.name.startswith(prefix) else ""
                digests[value] = (
                    f"@{named if isinstance(item, Tree) else DIGITS.sub('#', named)}: {value.type}"
                )
        for node in nodes:
            place = ".".join(home[node][inner:])
            place = place if isinstance(item, Tree) else DIGITS.sub("#", place)
            digest = _digest(node, place, digests)
            own[node] = digest + tags.get(node, "")
            for i, value in enumerate(node.results):
                digests[value] = f"{own[node]}:{i}:{sum(u in position for u in value.users)}"
        self.ordered = sorted(nodes, key=lambda n: (own[n], position[n]))
        self.key = (type(item).__name__, DIGITS.sub("#", name), *(own[n] for n in self.ordered))


def _digest(node: Node, place: str, known: Mapping[Value, str]) -> str:
    def leaf(operand: Any) -> str:
        if isinstance(operand, Value):
            return known.get(operand, f"{'@' if operand.is_constant else '%'}: {operand.type}")
        return format_operand(operand, {})

    parts = [op_name(node.op), place, str(map_operand(node.operands, leaf))]
    parts.append(str({k: map_operand(v, leaf) for k, v in sorted(node.kwargs.items())}))
    parts.append(", ".join(str(v.type) for v in node.results))
    if node.impl is not None:
        parts.append(f"{node.impl.kernel}({sorted((k, str(v)) for k, v in node.impl.options.items())})")
    parts += [_region_text(region) for region in node.regions]
    return blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _region_text(region: Graph) -> str:
    named = region_names(region)

    def line(node: Node) -> str:
        keywords = [f"{k}={format_operand(v, named)}" for k, v in sorted(node.kwargs.items())]
        inner = "".join(_region_text(r) for r in node.regions)
        return f"{op_name(node.op)}({format_operand(list(node.operands), named)}, {keywords}){inner}"

    return "\n".join(line(n) for n in region.nodes)
