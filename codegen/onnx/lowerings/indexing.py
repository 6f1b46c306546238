"""Reading by index: gather, embedding, and NumPy's indexing with tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as oir
import torch

from codegen.onnx.builder import Builder
from codegen.onnx.table import lowers

aten = torch.ops.aten


@lowers(aten.embedding)
def embedding(op: Builder, weight: Any, indices: Any, *_: Any) -> oir.Value:
    return op.Gather(weight, indices, axis=0)


@lowers(aten.index_select)
def index_select(op: Builder, x: Any, dim: int, index: Any) -> oir.Value:
    index = op.Reshape(index, [-1]) if index.type.rank == 0 else index
    if x.type.rank == 0:
        return op.Reshape(x, op.const(torch.zeros(0)))
    return op.Gather(x, index, axis=dim)


@lowers(aten.gather)
def gather(op: Builder, x: Any, dim: int, index: Any, **_: Any) -> oir.Value:
    if not x.type.rank:
        return op.Reshape(op.Gather(op.Reshape(x, [-1]), index, axis=0), op.const(torch.zeros(0)))
    return op.GatherElements(x, index, axis=dim)


@lowers(aten.take_along_dim)
def take_along_dim(op: Builder, x: Any, index: Any, dim: Any = None) -> oir.Value:
    if dim is None:
        return op.GatherElements(op.Reshape(x, [-1]), op.Reshape(index, [-1]), axis=0)
    shapes = zip(x.type.shape, index.type.shape, strict=True)
    if any(a != b for i, (a, b) in enumerate(shapes) if i != dim % x.type.rank):
        raise op.unsupported("the index is broadcast")
    return op.GatherElements(x, index, axis=dim)


@lowers(aten.nonzero)
def nonzero(op: Builder, x: Any) -> oir.Value:
    return op.Transpose(op.NonZero(x), perm=[1, 0])


@lowers(aten.masked_select)
def masked_select(op: Builder, x: Any, mask: Any) -> oir.Value:
    """The true elements' positions in the broadcast tensor, gathered."""
    shape = op.Shape(op.Or(mask, op.cast(x, torch.bool))) if x.type.shape != mask.type.shape else None
    wide, where = (op.value(t) if shape is None else op.Expand(t, shape) for t in (x, mask))
    return op.GatherND(wide, op.Transpose(op.NonZero(where), perm=[1, 0]))


@lowers(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(op: Builder, x: Any, indices: Sequence[Any]) -> oir.Value:
    """x[i, None, j, ...]: one integer index is a Gather; several, or masks, are a GatherND."""
    used = [d for d, i in enumerate(indices) if i is not None]
    first = indices[used[0]]
    if len(used) == 1 and first.type.dtype not in (torch.bool, torch.uint8):
        return op.Gather(x, first, axis=used[0])
    selection = Selection(op, x, indices)
    gathered = op.GatherND(selection.moved(op.value(x)), selection.index)
    return selection.placed(gathered)


class Selection:
    """NumPy's indexing with tensors, brought to the form of GatherND and ScatterND.

    The indexed dimensions are moved to the front; `index` is [..., number of indexed dimensions], its leading
    dimensions being those of the broadcast indices. In the result these stand at the front too, or, where the
    indexed dimensions are neighbours, in the place of the first of them. A mask stands for the indices of its
    true elements.
    """

    def __init__(self, op: Builder, x: Any, indices: Sequence[Any]) -> None:
        self.op = op
        self.rank = x.type.rank
        self.dims: list[int] = []
        columns: list[tuple[oir.Value, int]] = []  # with their ranks
        position = 0
        neighbours: list[bool] = []
        for item in indices:
            if item is None:
                neighbours.append(False)
                position += 1
                continue
            found = self._columns(item)
            columns += found
            span = item.type.rank if self._is_mask(item) else 1
            self.dims += range(position, position + span)
            neighbours.append(True)
            position += span
        trimmed = "".join("x" if n else "-" for n in neighbours).strip("-")
        self.adjacent = "-" not in trimmed
        self.index_rank = max(rank for _, rank in columns)
        self.index = self._stacked([value for value, _ in columns])
        rest = [d for d in range(self.rank) if d not in self.dims]
        self.order = [*self.dims, *rest]

    @staticmethod
    def _is_mask(item: Any) -> bool:
        return item.type.dtype in (torch.bool, torch.uint8)

    def _columns(self, item: Any) -> list[tuple[oir.Value, int]]:
        if not self._is_mask(item):
            return [(self.op.cast(item, torch.int64), item.type.rank)]
        n = item.type.rank
        places = self.op.NonZero(self.op.cast(item, torch.bool))  # [rank, true elements]
        if n == 1:
            return [(self.op.Squeeze(places, [0]), 1)]
        rows = self.op.Split(places, axis=0, num_outputs=n, outputs=n)
        return [(self.op.Squeeze(row, [0]), 1) for row in rows]

    def _stacked(self, columns: list[oir.Value]) -> oir.Value:
        if len(columns) == 1:
            return self.op.Unsqueeze(columns[0], [-1])
        total = columns[0]
        for column in columns[1:]:
            total = self.op.Add(total, column)
        shape = self.op.Shape(total)
        return self.op.Concat(*(self.op.Unsqueeze(self.op.Expand(c, shape), [-1]) for c in columns), axis=-1)

    def moved(self, x: oir.Value) -> oir.Value:
        """The indexed dimensions first."""
        return x if self.order == list(range(self.rank)) else self.op.Transpose(x, perm=self.order)

    def moved_back(self, x: oir.Value) -> oir.Value:
        back = [self.order.index(d) for d in range(self.rank)]
        return x if back == list(range(self.rank)) else self.op.Transpose(x, perm=back)

    @property
    def _place(self) -> int:
        return self.dims[0] if self.adjacent else 0

    def placed(self, gathered: oir.Value) -> oir.Value:
        """From [index dimensions, rest] to the order of the result."""
        lead = list(range(self.index_rank))
        rest = list(range(self.index_rank, self.index_rank + self.rank - len(self.dims)))
        order = rest[: self._place] + lead + rest[self._place :]
        return gathered if order == sorted(order) else self.op.Transpose(gathered, perm=order)

    def taken_up(self, values: oir.Value) -> oir.Value:
        """The reverse of `placed`, for the values of a ScatterND."""
        lead = list(range(self._place, self._place + self.index_rank))
        total = self.index_rank + self.rank - len(self.dims)
        order = [*lead, *(d for d in range(total) if d not in lead)]
        return values if order == sorted(order) else self.op.Transpose(values, perm=order)
