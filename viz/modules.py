"""The module tree of a graph's nodes, by the module paths of their origins.

A module that is called twice makes two trees, and so does one whose nodes lie on both sides of other work:
each tree is convex (no path leaves it and comes back), so that it can be drawn as one box.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from capture.ir import Fusion, Graph, Node
from viz.labels import heaviest

Path = tuple[str, ...]
DIGITS = re.compile(r"\d+")
FRAME = "\u2060"  # in a path's last part: no module, but a frame that a picture puts around some nodes


@dataclass
class Tree:
    """A module (the root has an empty path): its nodes and inner modules, in order of their first node."""

    path: Path
    items: list[Tree | Node] = field(default_factory=list)

    def nodes(self) -> Iterator[Node]:
        for item in self.items:
            if isinstance(item, Tree):
                yield from item.nodes()
            else:
                yield item


def homes(graph: Graph) -> dict[Node, Path]:
    """The module path under which each node is drawn."""
    found = {n: _home(n) for n in graph.nodes}
    for node in reversed(graph.nodes):  # what a pass put in without an origin stands with its users
        if not node.origin.modules:
            near = [found[u] for v in node.results for u in v.users]
            found[node] = _common(near) if near else ()
    return found


def _home(node: Node) -> Path:
    anchor = heaviest(node) if isinstance(node.op, Fusion) else None
    return home_of(node.origin.modules, anchor.origin.modules if anchor is not None else ())


def home_of(names: Sequence[str], anchor: Sequence[str] = ()) -> Path:
    """Common path of modules; of those in several numbered blocks, the path within the anchor's block."""
    modules = [tuple(m.split(".")) for m in names]
    if len(modules) < 2:
        return modules[0] if modules else ()
    common = _common(modules)
    following = {m[len(common)] for m in modules if len(m) > len(common)}
    if len(following) < 2 or len({DIGITS.sub("#", name) for name in following}) > 1:
        return common
    start = tuple(anchor[0].split(".")) if anchor else modules[0]
    block = start[: len(common) + 1]
    return _common([m for m in modules if m[: len(block)] == block] or [block])


def _common(paths: Sequence[Path]) -> Path:
    first = paths[0]
    length = len(first)
    for path in paths[1:]:
        shared = next((i for i, (a, b) in enumerate(zip(first, path, strict=False)) if a != b), len(path))
        length = min(length, shared)
    return first[:length]


def module_tree(graph: Graph, home: Mapping[Node, Path]) -> Tree:
    """The tree of all nodes of the graph."""
    return _build((), list(graph.nodes), home, _Reach(graph))


def _build(path: Path, nodes: Sequence[Node], home: Mapping[Node, Path], reach: _Reach) -> Tree:
    tree, depth = Tree(path), len(path)
    runs: list[tuple[Path, list[Node]]] = []
    latest: dict[Path, int] = {}
    for node in nodes:
        inner = home[node][: depth + 1]
        at = latest.get(inner)
        if (
            len(inner) > depth
            and at is not None
            and (at == len(runs) - 1 or reach.convex([*runs[at][1], node]))
        ):
            runs[at][1].append(node)
            continue
        latest[inner] = len(runs)
        runs.append((inner, [node]))
    for inner, run in runs:
        if len(run) == 1 or len(inner) == depth:
            tree.items.extend(run)
        else:
            tree.items.append(_build(inner, run, home, reach))
    return tree


class _Reach:
    """Which nodes a node leads to and comes from, as bit sets."""

    def __init__(self, graph: Graph) -> None:
        self.bit = {n: 1 << i for i, n in enumerate(graph.nodes)}
        self.before: dict[Node, int] = {}
        self.after: dict[Node, int] = {}
        for node in graph.nodes:
            found = 0
            for value in node.operand_values:
                if value.producer is not None:
                    found |= self.before[value.producer] | self.bit[value.producer]
            self.before[node] = found
        for node in reversed(graph.nodes):
            found = 0
            for value in node.results:
                for user in value.users:
                    found |= self.after[user] | self.bit[user]
            self.after[node] = found

    def convex(self, nodes: Sequence[Node]) -> bool:
        """Whether no path between two of the nodes runs through a third one outside."""
        own = before = after = 0
        for node in nodes:
            own |= self.bit[node]
            before |= self.before[node]
            after |= self.after[node]
        return not before & after & ~own
