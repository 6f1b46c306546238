"""Views: what only changes the shape, or picks a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as oir
import torch

from capture.ir import dims
from capture.ir.dims import Dim
from capture.ir.ops import Trait, has
from capture.ir.types import CONTIGUOUS
from codegen.onnx.builder import Builder
from codegen.onnx.table import lowers

aten = torch.ops.aten
LAST = 2**63 - 1


def target_shape(source: Sequence[Dim], target: Sequence[Dim]) -> tuple[list[Dim], bool]:
    """What Reshape is told to get from one shape to another, and whether 0 there means an empty dimension.

    A symbolic size that stands at the same place before is copied (0), another one is left to be inferred
    (-1): with a dynamic batch alone, this makes every shape a constant.
    """
    if 0 in target:
        return list(target), True
    told: list[Dim] = []
    inferred = False
    for i, dim in enumerate(target):
        if isinstance(dim, int):
            told.append(dim)
        elif i < len(source) and source[i] == dim:
            told.append(0)
        elif not inferred:
            told.append(-1)
            inferred = True
        else:
            told.append(dim)
    return told, False


def reshape_to(op: Builder, x: Any, source: Sequence[Dim], target: Sequence[Dim]) -> Any:
    """Reshape between two shapes of the graph; the value itself where they are equal."""
    if list(source) == list(target):
        return x
    told, allow_zero = target_shape(source, target)
    return op.Reshape(x, told, allowzero=1 if allow_zero else None)


@lowers(
    aten.reshape, aten.view.default, aten._unsafe_view, aten.view_copy.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.view_as, aten.reshape_as, aten._reshape_copy, aten.ravel,
)  # fmt: skip
def reshape(op: Builder, x: Any, *_: Any) -> Any:
    return reshape_to(op, x, x.type.shape, op.result.shape)


@lowers(aten.squeeze, aten.squeeze_copy)
def squeeze(op: Builder, x: Any, dim: Any = None) -> Any:
    rank = x.type.rank
    chosen = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = sorted(d % rank for d in chosen if rank and x.type.shape[d % rank] == 1)
    return op.Squeeze(x, axes) if axes else x


@lowers(aten.unsqueeze, aten.unsqueeze_copy)
def unsqueeze(op: Builder, x: Any, dim: int) -> oir.Value:
    return op.Unsqueeze(x, [dim])


@lowers(aten.permute, aten.permute_copy)
def permute(op: Builder, x: Any, order: list[int]) -> Any:
    order = [d % x.type.rank for d in order] if x.type.rank else []
    return op.Transpose(x, perm=order) if order != list(range(x.type.rank)) else x


@lowers(aten.transpose.int, aten.swapaxes, aten.swapdims, aten.transpose_copy)
def transpose(op: Builder, x: Any, a: int, b: int) -> Any:
    if not x.type.rank:
        return x
    order = list(range(x.type.rank))
    order[a], order[b] = order[b], order[a]
    return permute(op, x, order)


@lowers(aten.t, aten.numpy_T, aten.mT, aten.t_copy)
def t(op: Builder, x: Any) -> Any:
    rank = x.type.rank
    if op.node.is_op(aten.mT):
        return transpose(op, x, -2, -1)
    return permute(op, x, list(reversed(range(rank))))


@lowers(aten.movedim, aten.moveaxis)
def movedim(op: Builder, x: Any, source: Any, destination: Any) -> Any:
    rank = x.type.rank
    sources = [d % rank for d in ([source] if isinstance(source, int) else source)]
    places = [d % rank for d in ([destination] if isinstance(destination, int) else destination)]
    others = iter(d for d in range(rank) if d not in sources)
    return permute(op, x, [sources[places.index(i)] if i in places else next(others) for i in range(rank)])


@lowers(aten.expand, aten.expand_copy, aten.expand_as, aten.broadcast_to)
def expand(op: Builder, x: Any, *_: Any, **__: Any) -> Any:
    return expand_to(op, x, x.type.shape, op.result.shape)


def expand_to(op: Builder, x: Any, source: Sequence[Dim], target: Sequence[Dim]) -> Any:
    """Broadcast; dimensions that stay are told as 1, so that their sizes need not be known."""
    padded = [1] * (len(target) - len(source)) + list(source)
    if padded == list(target):
        return x if len(target) == len(source) else reshape_to(op, x, source, target)
    return op.Expand(x, [1 if a == b else b for a, b in zip(padded, target, strict=True)])


@lowers(aten.slice.Tensor, aten.slice_copy.Tensor)
def slice_(op: Builder, x: Any, dim: int, start: Any, end: Any, step: Any) -> Any:
    first = 0 if start is None else start
    last = LAST if end is None else end
    if first == 0 and step == 1 and (last == LAST or last == x.type.shape[dim]):
        return x
    return op.Slice(x, [first], [last], [dim], [step] if step != 1 else None)


@lowers(aten.select.int, aten.select_copy.int)
def select(op: Builder, x: Any, dim: int, index: Any) -> oir.Value:
    return op.Gather(x, op.cast(index, torch.int64), axis=dim)


@lowers(aten.narrow, aten.narrow_copy)
def narrow(op: Builder, x: Any, dim: int, start: Any, length: Any) -> oir.Value:
    first = op.vector([start])
    return op.Slice(x, first, op.Add(first, op.vector([length])), [dim])


@lowers(
    aten.split.Tensor, aten.split.sizes, aten.split_with_sizes, aten.chunk, aten.split_with_sizes_copy,
    aten.split_copy.Tensor, aten.tensor_split.sections, aten.tensor_split.indices, aten.unsafe_chunk,
    aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes,
)  # fmt: skip
def split(op: Builder, x: Any, _sections: Any, dim: int = 0) -> Any:
    if len(op.results) == 1:
        return x
    return op.Split(x, [r.shape[dim] for r in op.results], axis=dim, outputs=len(op.results))


@lowers(aten.unbind.int, aten.unbind_copy.int)
def unbind(op: Builder, x: Any, dim: int) -> Any:
    count = len(op.results)
    if count == 1:
        return op.Squeeze(x, [dim])
    pieces = op.Split(x, axis=dim, num_outputs=count, outputs=count)
    return [op.Squeeze(piece, [dim]) for piece in pieces]


@lowers(aten.diagonal, aten.diagonal_copy)
def diagonal(op: Builder, x: Any, offset: int, first: int, second: int) -> oir.Value:
    """The two dimensions last and flat; the diagonal is then every (columns + 1)-th element."""
    rank = x.type.rank
    first, second = first % rank, second % rank
    rows, columns = x.type.shape[first], x.type.shape[second]
    others = [d for d in range(rank) if d not in (first, second)]
    moved = op.Transpose(x, perm=[*others, first, second])
    kept = [x.type.shape[d] for d in others]
    told, _ = target_shape([], [*kept, dims.canonical(rows * columns)])
    flat = op.Reshape(moved, told)
    if op.result.shape[-1] == 0:
        return op.Slice(flat, [0], [0], [len(others)])
    start = offset if offset >= 0 else dims.canonical(-offset * columns)
    end = dims.canonical(start + (op.result.shape[-1] - 1) * (columns + 1) + 1)
    return op.Slice(flat, [start], [end], [len(others)], [columns + 1])


@lowers(aten.unfold)
def unfold(op: Builder, x: Any, dim: int, size: int, step: int) -> oir.Value:
    """Windows of a dimension, gathered by an index [windows, size]; the window becomes the last one."""
    rank = x.type.rank
    dim = dim % rank if rank else 0
    starts = op.Mul(
        op.Range(*(op.cast(v, torch.int64) for v in (0, op.result.shape[dim], 1))), op.cast(step, torch.int64)
    )
    index = op.Add(op.Unsqueeze(starts, [1]), op.const(list(range(size))))
    windows = op.Gather(x, index, axis=dim)
    order = [d for d in range(rank + 1) if d != dim + 1] + [dim + 1]
    return op.Transpose(windows, perm=order)


@lowers(aten.as_strided, aten.as_strided_copy)
def as_strided(op: Builder, x: Any, size: list[int], stride: list[int], offset: Any = None) -> oir.Value:
    """Gather from the flat tensor, where that is the whole of its memory."""
    whole = x.type.memory_format == CONTIGUOUS and (x.producer is None or not has(x.producer.op, Trait.VIEW))
    if not whole or not all(isinstance(v, int) for v in (*size, *stride, offset or 0)):
        raise op.unsupported("it depends on how its input lies in memory")
    index = torch.full([], offset or 0, dtype=torch.int64)
    for n, s in zip(size, stride, strict=True):
        index = index[..., None] + torch.arange(n) * s
    return op.Gather(op.Reshape(x, [-1]), op.const(index))
