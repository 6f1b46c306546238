"""How many bytes are alive at each step, and what joining several results in one buffer would do to the peak.

    q = linear(x)   [3, 4)                          qkv = linear(x)   [3, 9): alive as long as any part
    k = linear(x)   [5, 7)           ==>            the peak over all steps may not rise by it
    v = linear(x)   [8, 9)

An estimate in the graph's own order, near-linear in its nodes: views live in their operand's buffer, a
pointwise result in that of an operand that ends there; sizes that are not known count at their upper bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from capture.ir import Graph, Node, TensorType, Trait, Value, dims, has
from passes.aliases import may_share

_UNBOUNDED = 1024  # what a size without an upper bound counts as


@dataclass
class _Buffer:
    """Alive in the steps [first, end); from step `handed` on for a result written over it."""

    first: int
    end: int
    nbytes: int
    handed: int | None = None


class Pressure:
    """Live bytes by step, kept up while results are joined.

    Args:
        late: nodes of one operand that a good schedule would run just before their result is first read.
    """

    def __init__(self, graph: Graph, late: Iterable[Node] = ()) -> None:
        self.order: Mapping[Node, int] = graph.order()
        self.sizes = {
            name: range_.upper or max(range_.lower, _UNBOUNDED) for name, range_ in graph.dims.items()
        }
        self.last = {v: step for node, step in self.order.items() for v in node.operand_values}
        self.born = {node: self._first_read(node) for node in late}
        for node, step in self.born.items():
            x = node.operands[0]
            self.last[x] = max(self.last[x], step)
        self.buffers: dict[Value, _Buffer] = {}
        change = [0] * (len(self.order) + 1)
        for buffer in self._find():
            change[buffer.first] += buffer.nbytes
            change[buffer.end] -= buffer.nbytes
        self.live = list(accumulate(change[:-1]))

    def _find(self) -> list[_Buffer]:
        """The buffers in order of birth; fills the map from values."""
        found = []
        for node, step in self.order.items():
            source = self._source(node)
            over = self._overwritten(node, step) if source is None else None
            for value in node.results:
                if not isinstance(value.type, TensorType) or value.is_result:
                    continue
                buffer = source or over
                if buffer is None:
                    buffer = _Buffer(self.born.get(node, step), step + 1, self._bytes(value.type))
                    found.append(buffer)
                elif buffer is over and buffer.handed is None:
                    buffer.handed = step
                buffer.end = max(buffer.end, self.last.get(value, step) + 1)
                self.buffers[value] = buffer
        return found

    def _first_read(self, node: Node) -> int:
        """The step of the first node that reads the result itself, not to make a view of it."""
        waiting, steps = list(node.results), []
        while waiting:
            for user in waiting.pop().users:
                if may_share(user.op):
                    waiting += user.results
                else:
                    steps.append(self.order[user])
        return min(steps, default=self.order[node])

    def _bytes(self, type_: TensorType) -> int:
        unknown = dict.fromkeys(dims.free_names(list(type_.shape)), _UNBOUNDED)
        return dims.evaluate(type_.nbytes, {**unknown, **self.sizes})

    def _source(self, node: Node) -> _Buffer | None:
        """The buffer that a view lies in."""
        operands = [v for v in node.operand_values if isinstance(v.type, TensorType)]
        return self.buffers.get(operands[0]) if operands and may_share(node.op) else None

    def _overwritten(self, node: Node, step: int) -> _Buffer | None:
        """The buffer of an operand that ends here, of the result's size."""
        if len(node.results) != 1 or not has(node.op, Trait.POINTWISE):
            return None
        for value in node.operand_values:
            buffer = self.buffers.get(value)
            if buffer is not None and buffer.end == step + 1 and value.type == node.results[0].type:
                return buffer
        return None

    def join(self, values: Sequence[Value]) -> bool:
        """Let the values share one buffer from now on, unless the peak would rise; whether they do."""
        parts = [self.buffers[v] for v in values if v in self.buffers]
        if len(parts) < len(values):
            return False
        owned = [part.end if part.handed is None else part.handed + 1 for part in parts]
        whole = _Buffer(min(p.first for p in parts), max(owned), sum(p.nbytes for p in parts))
        rest = [_Buffer(p.handed, p.end, p.nbytes) for p in parts if p.handed is not None]
        start, end = whole.first, max(whole.end, *(p.end for p in parts))
        change = [0] * (end - start + 1)
        for sign, buffers in ((-1, parts), (1, [whole, *rest])):
            for buffer in buffers:
                change[buffer.first - start] += sign * buffer.nbytes
                change[buffer.end - start] -= sign * buffer.nbytes
        after = [b + c for b, c in zip(self.live[start:end], accumulate(change[:-1]), strict=True)]
        if max(after) > max(self.live):
            return False
        self.live[start:end] = after
        return True


__all__ = ["Pressure"]
