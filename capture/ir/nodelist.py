"""A graph's nodes in order: a doubly linked list that may be edited while it is walked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capture.ir.node import Node


class Link:
    """One place in the list. A node that moves gets a new place; the old one stays behind, empty.

    An empty place keeps its `next`, so that a walk standing on it finds back into the list.
    """

    __slots__ = ("next", "node", "previous")

    def __init__(self, node: Node | None) -> None:
        self.node = node
        self.next: Link = self
        self.previous: Link = self


class NodeList:
    """The nodes of a graph in order. Edit it through the graph's methods.

    A walk (in either direction) survives every edit: a node that is taken out before its turn is not met, one
    put behind the present place is, one that moves behind it is met there. A node put where the present one
    was taken out is not met, so that a loop may replace nodes without meeting its own replacements.
    `Graph.reorder` ends the walks that are under way.
    """

    def __init__(self) -> None:
        self._ends = Link(None)  # before the first node and behind the last
        self._length = 0

    def __iter__(self) -> Iterator[Node]:
        link = self._ends.next
        while link is not self._ends:
            if link.node is not None:
                yield link.node
            link = link.next

    def __reversed__(self) -> Iterator[Node]:
        link = self._ends.previous
        while link is not self._ends:
            if link.node is not None:
                yield link.node
            link = link.previous

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Node:
        return list(self)[index]

    def _insert(self, node: Node, before: Node | None, after: Node | None) -> None:
        """Put the node beside another one of the list; without one, at the end."""
        if after is not None:
            assert after._link is not None
            following = after._link.next
        else:
            following = self._ends if before is None or before._link is None else before._link
        link = Link(node)
        link.previous, link.next = following.previous, following
        following.previous.next = link
        following.previous = link
        node._link = link
        self._length += 1

    def _remove(self, node: Node) -> None:
        link = node._link
        assert link is not None
        link.previous.next = link.next
        link.next.previous = link.previous
        link.node = node._link = None
        self._length -= 1

    def _clear(self) -> None:
        """Empty every place; walks under way end."""
        for node in list(self):
            self._remove(node)


__all__ = ["Link", "NodeList"]
