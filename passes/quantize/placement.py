"""Where integers flow: which values are quantised, who reads them so, and which share one scale.

    conv -> relu -> [q] -> [dq] -> max_pool2d -> [q] -> [dq] -> conv        one scale before and after a pool
    conv -> [q] -> [dq] -> add <- conv                                     a residual sum adds integers

The input of each quantised layer is quantised. From there integers spread upwards through what only moves or
compares numbers (pools, concats, reshapes) where an int8 layer makes them anyway, and into the sums that
oneDNN's convolutions do in their kernel. What an int8 layer makes is read as integers by everybody; what a
norm or softmax makes stays float for those who are no int8 layers: it is there in float already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from capture.ir import Graph, Node, TensorType, Value
from passes.lower import UNARIES
from passes.quantize.layers import CONV, is_tensor_like

aten = torch.ops.aten

MOVES = (
    aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.permute.default,
    aten.transpose.int, aten.squeeze.dim, aten.unsqueeze.default, aten.clone.default,
)  # fmt: skip
POOLS = (aten.max_pool2d.default,)
CATS = (aten.cat.default,)


@dataclass
class Placement:
    """Values to quantise, each with the nodes that read it as integers, in the order they were found."""

    readers: dict[Value, list[Node]] = field(default_factory=dict)
    _above: dict[Value, Value] = field(default_factory=dict)

    def want(self, value: Value, reader: Node) -> None:
        readers = self.readers.setdefault(value, [])
        if reader not in readers:
            readers.append(reader)

    def share(self, a: Value, b: Value) -> None:
        """Both get one scale and zero point."""
        a, b = self.root(a), self.root(b)
        if a is not b:
            self._above[b] = a

    def root(self, value: Value) -> Value:
        """The value that stands for all that share its scale."""
        while value in self._above:
            value = self._above[value]
        return value

    def groups(self) -> dict[Value, list[Value]]:
        """The values of each scale."""
        found: dict[Value, list[Value]] = {}
        for value in self.readers:
            found.setdefault(self.root(value), []).append(value)
        return found


def place(graph: Graph, layers: list[Node]) -> Placement:
    """Decide for these layers, in graph order."""
    placement, chosen = Placement(), set(layers)
    for layer in layers:
        placement.want(layer.operands[0], layer)
    for add, other in _sums(layers):
        if other in placement.readers or _made_by(other, chosen):
            placement.want(other, add)
            tail = _tail(add)
            for reader in tail.users:
                placement.want(tail, reader)
    waiting = list(placement.readers)
    while waiting:
        value = waiting.pop(0)
        for source in _sources(value, placement, chosen):
            if source not in placement.readers:
                waiting.append(source)
            placement.want(source, value.producer)
            placement.share(value, source)
    for value, readers in placement.readers.items():
        if _made_by(value, chosen) or (value.producer is not None and value.producer.is_op(*POOLS, *CATS)):
            readers += [user for user in value.users if user not in readers]
    return placement


def _sums(layers: list[Node]) -> Iterator[tuple[Node, Value]]:
    """(add, its other operand) for sums right after a convolution, each once, as fusion will group them."""
    taken: set[Node] = set()
    for layer in layers:
        value = layer.results[0]
        if not layer.is_op(CONV) or value.num_uses != 1 or not value.users:
            continue
        add = value.users[0]
        if add in taken or not add.is_op(aten.add.Tensor) or add.kwargs:
            continue
        left, right = add.operands
        other = right if left is value else left
        if other is not value and is_tensor_like(other, value):
            taken.add(add)
            yield add, other


def _tail(add: Node) -> Value:
    """The sum, or the ReLU that alone reads it."""
    value = add.results[0]
    alone = value.num_uses == 1 and value.users and value.users[0].is_op(aten.relu.default)
    return value.users[0].results[0] if alone else value


def _made_by(value: Value, layers: set[Node]) -> bool:
    """Whether an int8 kernel can give the value as integers: a layer, with a chain after it."""
    node = value.producer
    while node is not None and node not in layers:
        if node.is_op(aten.add.Tensor):
            return any(v.producer in layers and v.producer.is_op(CONV) for v in node.operand_values)
        if node.op not in UNARIES:
            return False
        value = node.operands[0]
        if value.num_uses != 1:
            return False
        node = value.producer
    return node is not None


def _sources(value: Value, placement: Placement, layers: set[Node]) -> list[Value]:
    """What to quantise in place of `value`: the operands of a pool, concat or move that makes it."""
    node = value.producer
    if node is None or not node.is_op(*MOVES, *POOLS, *CATS):
        return []
    found = [
        v for v in node.operand_values if isinstance(v.type, TensorType) and v.type.dtype == torch.float32
    ]
    if any(v.is_constant for v in found):
        return []
    carried = [v for v in found if v in placement.readers or _carries(v, layers)]
    return list(dict.fromkeys(found)) if carried else []


def _carries(value: Value, layers: set[Node]) -> bool:
    """Whether integers come from above: from a layer, perhaps through pools and moves."""
    node = value.producer
    while node is not None and node.is_op(*MOVES, *POOLS, *CATS):
        value = node.operand_values[0]
        node = value.producer
    return _made_by(value, layers)


__all__ = ["CATS", "MOVES", "POOLS", "Placement", "place"]
