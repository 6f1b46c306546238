"""What a picture shows, before anyone knows where: boxes, the groups they stand in, links between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from capture.ir import Graph, LiteralType, Node, TensorType, Value
from capture.ir.graph import is_region_op
from capture.ir.text import names
from capture.wording import human_size
from viz import labels
from viz.fold import Block, Folding
from viz.modules import DIGITS, FRAME, Path, homes, module_tree
from viz.style import shorten, text_width

MAX_DEPTH = 3  # groups inside groups; deeper modules are told by the boxes' own labels
_LEAST_GROUP = 3  # boxes that make a group worth its frame
_MOST_RESULTS = 8  # more share one box

LinkKey = tuple[str, int, str]
Line = tuple[str, str, str]  # text, muted text after it, kind of the swatch before it ("" for none)


@dataclass
class Box:
    """A drawn node, input or result.

    `shape` is node, fusion, view, io, ghost (what is drawn in another column) or port (where a line bends).
    """

    key: str
    shape: str
    kind: str
    lines: list[Line]
    tooltip: str
    badge: str = ""
    names: tuple[str, ...] = ()  # printed names of the nodes drawn by this box, folded ones too
    search: str = ""
    place: str = ""  # the full module path

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in px."""
        if self.shape == "port":
            return 4.0, 4.0
        font = 12.0 if self.shape in ("node", "fusion") else 10.5
        bold = self.shape == "node"
        width = max(
            text_width(text, font, bold=bold)
            + (text_width(muted, 10.5) + 7 if muted else 0)
            + (13 if swatch else 0)
            for text, muted, swatch in self.lines
        )
        width += 20 + (text_width(self.badge, 11, bold=True) + 16 if self.badge else 0)
        height = {"node": 26.0, "fusion": 12 + 16.0 * len(self.lines)}.get(self.shape, 20.0)
        return float(max(36, round(width))), height


@dataclass
class Group:
    """A module, or a block that repeats (`badge` "× 12")."""

    key: str
    label: str
    items: list[Group | Box] = field(default_factory=list)
    badge: str = ""
    look: str = ""  # of a frame that is no module

    def boxes(self) -> Iterator[Box]:
        for item in self.items:
            if isinstance(item, Group):
                yield from item.boxes()
            else:
                yield item


@dataclass
class Link:
    """Data that flows between two boxes: the shape as written at the source, the bytes that set its width."""

    source: str
    port: int  # which of the source's results
    target: str
    label: str
    bytes: int
    tooltip: str
    main: bool = False

    @property
    def key(self) -> LinkKey:
        return self.source, self.port, self.target


@dataclass
class Scene:
    root: Group
    links: list[Link]


@dataclass(frozen=True)
class Overlay:
    """What a picture tells of nodes in place of their kinds: a tag that colours, a note, another home."""

    tags: Mapping[Node, str] = field(default_factory=dict)
    notes: Mapping[Node, str] = field(default_factory=dict)
    homes: Mapping[Node, Path] = field(default_factory=dict)


def build(graph: Graph, *, folded: bool, overlay: Overlay | None = None) -> Scene:
    """The scene of a graph."""
    return _Builder(graph, folded, overlay or Overlay()).build()


class _Builder:
    def __init__(self, graph: Graph, folded: bool, overlay: Overlay) -> None:
        self.graph, self.tags, self.notes = graph, overlay.tags, overlay.notes
        self.named = names(graph)
        self.home = {**homes(graph), **overlay.homes}
        self.dtype = labels.main_dtype(graph)
        self.folding = Folding(module_tree(graph, self.home), self.home, self.tags, folded=folded)
        self.drawn = self.folding.drawn
        self.key = {n: f"n{i}" for i, n in enumerate(graph.nodes)}
        self.copies: dict[Node, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            self.copies[self.drawn[node]].append(node)
        self.groups = 0
        self.whole: Path = ()
        self.links: dict[LinkKey, Link] = {}
        self.input_key: dict[Value, str] = {}

    def build(self) -> Scene:
        root = self.folding.root
        inputs = self._inputs()
        self.whole = _whole(root)
        items = self._place(root, 0, ())
        for node in self.graph.nodes:
            for value in node.operand_values:
                if value.producer is None or not self.folding.between_rounds(value.producer, node):
                    self._link(value, self.key[self.drawn[node]])
        results = self._results()
        links = list(self.links.values())
        order = [*(b.key for b in inputs), *self.key.values(), *(b.key for b in results)]
        _mark_main(links, order, self._weights())
        return Scene(Group("root", "", [*inputs, *items, *results]), links)

    # -- groups and boxes ---------------------------------------------------------------------------------

    def _place(self, block: Block, depth: int, base: Path) -> list[Group | Box]:
        placed: list[Group | Box] = []
        for entry in block.entries:
            if isinstance(entry, Node):
                placed.append(self._box(entry, base))
                continue
            while entry.count == 1 and (child := _sole(entry)):
                entry = child
            if entry.count == 1 and entry.path == self.whole[: len(entry.path)]:
                placed += self._place(entry, depth, entry.path)
                continue
            framed = _is_frame(entry)
            if entry.count == 1 and not framed and (entry.size < _LEAST_GROUP or depth >= MAX_DEPTH):
                placed += self._place(entry, depth, base)
                continue
            within = entry
            while (child := _sole(within)) and child.count == 1 and not _is_frame(child):
                within = child
            inner = self._place(within, depth + 1, within.path[:-1] if framed else within.path)
            badge = f"× {entry.count}" + ("" if entry.chained else " in parallel") if entry.count > 1 else ""
            if len(inner) == 1 and isinstance(inner[0], Box) and not inner[0].badge:
                inner[0].badge = badge
                placed += inner
            else:
                self.groups += 1
                look = "frame" if framed else ""
                placed.append(Group(f"g{self.groups}", _group_label(entry, base), inner, badge, look))
        return placed

    def _box(self, node: Node, base: Path) -> Box:
        copies = self.copies[node]
        also = tuple(".".join(self.home[n]) or self.named[n.results[0]] for n in copies if n.results)
        tag = self.tags.get(node)
        kind = tag or labels.kind(node)
        lines: list[Line] = []
        if is_region_op(node.op):
            shape = "fusion"
            for title, colour, modules in labels.region_lines(node):
                lines.append((title, _relative(modules, base, title), tag or colour))
            lines = lines or [(labels.op_title(node), "", "")]
        else:
            shape = "view" if kind == "move" and not tag else "node"
            title = labels.op_title(node)
            lines = [(title, _relative(node.origin.modules, base, title) if shape == "node" else "", "")]
        text = labels.tooltip(node, self.named, also if len(copies) > 1 else ())
        own = tuple(self.named[n.results[0]] if n.results else self.key[n] for n in copies)
        search = " ".join([labels.op_title(node), *node.origin.modules, *(also[1:]), *own[:1]])
        return Box(
            self.key[node],
            shape,
            kind,
            lines,
            f"{note}\n{text}" if (note := self.notes.get(node)) else text,
            "",
            own,
            search,
            ".".join(self.home[node]),
        )

    def _inputs(self) -> list[Box]:
        """A box for each input that flows; inputs taken alike by rounds of one repeat share a box."""
        alike: dict[object, list[Value]] = defaultdict(list)
        for value in self.graph.inputs:
            if isinstance(value.type, LiteralType) and not value.num_uses:
                continue
            uses = sorted(
                (self.key[self.drawn[n]], i)
                for n in value.users
                for i, v in enumerate(n.operand_values)
                if v is value
            )
            alike[(str(value.type), tuple(uses)) if uses and not value.is_result else value].append(value)
        boxes = []
        for i, values in enumerate(alike.values()):
            first = values[0]
            self.input_key.update(dict.fromkeys(values, f"i{i}"))
            shown = first.name if len(values) == 1 else f"{first.name} … {values[-1].name}"
            muted = shorten(str(first.type), 44)
            text = "\n".join(f"input {self.named[v]}: {v.type}" for v in values[:40])
            badge = f"× {len(values)}" if len(values) > 1 else ""
            own = tuple(self.named[v] for v in values)
            boxes.append(
                Box(
                    f"i{i}", "io", "io", [(shorten(shown, 40), muted, "")], text, badge, own, f"input {shown}"
                )
            )
        return boxes

    def _results(self) -> list[Box]:
        """A box for each value that outlives the graph; all in one where they are many."""
        ends: dict[tuple[str, int], list[tuple[str, Value]]] = defaultdict(list)
        rows = [
            (f"result {i}" if len(self.graph.results) > 1 else "result", v)
            for i, v in enumerate(self.graph.results)
        ]
        rows += [(f"write {target.name}", v) for target, v in self.graph.writebacks.items()]
        for label, value in rows:
            if isinstance(value, Value) and (source := self._source(value)) is not None:
                ends[source].append((label, value))
        if len(ends) > _MOST_RESULTS:
            ends = {("", 0): [row for found in ends.values() for row in found]}
        boxes = []
        for i, found in enumerate(ends.values()):
            first = found[0][0]
            shown = first if len(found) == 1 else f"{first} … {found[-1][0].removeprefix('result ')}"
            text = "\n".join(f"{label}: {self.named[v]}: {v.type}" for label, v in found[:60])
            badge = f"× {len(found)}" if len(found) > 1 else ""
            boxes.append(Box(f"r{i}", "io", "io", [(shorten(shown, 48), "", "")], text, badge, (), shown))
            for _, value in found:
                self._link(value, f"r{i}")
        return boxes

    # -- links --------------------------------------------------------------------------------------------

    def _source(self, value: Value) -> tuple[str, int] | None:
        """The box and result number that a value comes from; None for constants, which are not drawn."""
        if value.producer is not None:
            return self.key[self.drawn[value.producer]], value.index
        return (self.input_key[value], 0) if value in self.input_key else None

    def _link(self, value: Value, target: str) -> None:
        source = self._source(value)
        if source is None or (*source, target) in self.links or source[0] == target:
            return
        size = labels.value_bytes(value, self.graph)
        text = f"{self.named[value]}: {value.type}"
        if isinstance(value.type, TensorType):
            text += f"   {human_size(size)}"
        label = labels.short_shape(value.type, self.dtype)
        self.links[(*source, target)] = Link(*source, target, label, size, text)

    def _weights(self) -> dict[str, int]:
        return {self.key[n]: 3 if labels.kind(n) == "compute" else 1 for n in self.copies}


def _mark_main(links: list[Link], order: list[str], weight: Mapping[str, int]) -> None:
    """Mark the longest path, in which compute counts threefold: the line that runs straight down."""
    position = {key: i for i, key in enumerate(order)}
    best: dict[str, tuple[int, Link | None]] = {}
    for link in sorted(links, key=lambda k: (position[k.source], position[k.target])):
        if position[link.source] >= position[link.target]:
            continue
        reached = best.setdefault(link.source, (weight.get(link.source, 1), None))[0]
        found = reached + weight.get(link.target, 1)
        if found > best.get(link.target, (0, None))[0]:
            best[link.target] = (found, link)
    at = max(best, key=lambda key: best[key][0], default=None)
    while at is not None and (step := best[at][1]) is not None:
        step.main = True
        at = step.source


def _sole(block: Block) -> Block | None:
    """The block that is all there is in another: a frame around a frame tells nothing."""
    child = block.entries[0]
    return child if len(block.entries) == 1 and isinstance(child, Block) else None


def _is_frame(block: Block) -> bool:
    return bool(block.path) and FRAME in block.path[-1]


def _whole(root: Block) -> Path:
    """Path of the module that holds nearly everything: a frame around it, and its name, tell nothing."""
    block = root
    while True:
        inner = max(
            (e for e in block.entries if isinstance(e, Block) and e.count == 1),
            key=lambda b: b.size,
            default=None,
        )
        if inner is None or inner.size < 0.7 * root.size:
            return block.path
        block = inner


def _group_label(block: Block, base: Path) -> str:
    """``layer1.0``; of a repeat ``layer1.1–2``, or the module it lies in where names are unlike."""
    if block.count == 1:
        return shorten(_name(block.path, base), 60)
    first, last = block.first, block.last
    if first == last:
        label = _name(first, base)
    elif DIGITS.sub("#", ".".join(first)) == DIGITS.sub("#", ".".join(last)):
        label = f"{_name(first, base)}–{last[-1]}"
    else:
        label = _name(block.path, base) or f"{_name(first, base)} … {_name(last, base)}"
    return shorten(label, 60)


def _relative(modules: tuple[str, ...], base: Path, title: str) -> str:
    """Modules as a box shows them: below the group's path, without the one that the op's own name repeats."""
    shown = [_name(tuple(m.split(".")), base) for m in modules]
    shown = [name for name in shown if name and name != title.partition(" ")[0]]
    return shorten(", ".join(dict.fromkeys(shown)), 30)


def _name(path: Path, base: Path) -> str:
    """A path below `base`; a bare number takes the name before it along."""
    if path and FRAME in path[-1]:
        return f"{_name(path[:-1], base)} {path[-1].partition(FRAME)[0]}".strip()
    if path[: len(base)] != base:
        return ".".join(path)
    rest = path[len(base) :]
    return ".".join((base[-1], *rest) if rest and base and rest[0].isdigit() else rest)
