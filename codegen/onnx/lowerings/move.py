"""Data movement: joining, padding, repeating, turning, triangles."""

from __future__ import annotations

from typing import Any

import onnx_ir as oir
import torch

from capture.ir import dims
from capture.ir.dims import is_symbolic
from codegen.onnx.builder import Builder
from codegen.onnx.lowerings.view import LAST, expand_to, reshape_to
from codegen.onnx.table import lowers

aten = torch.ops.aten


@lowers(aten.cat, aten.concat, aten.concatenate)
def cat(op: Builder, tensors: list[Any], dim: int = 0) -> oir.Value:
    """Parts of one dimension and no element count as nothing, whatever the rank of the rest."""
    parts = [t for t in tensors if not (t.type.shape == (0,) and op.result.rank != 1)]
    values = [op.cast(t, op.result.dtype) for t in parts]
    return values[0] if len(values) == 1 else op.Concat(*values, axis=dim)


@lowers(aten.stack)
def stack(op: Builder, tensors: list[Any], dim: int = 0) -> oir.Value:
    values = [op.Unsqueeze(op.cast(t, op.result.dtype), [dim]) for t in tensors]
    return values[0] if len(values) == 1 else op.Concat(*values, axis=dim)


_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@lowers(aten.constant_pad_nd)
def constant_pad(op: Builder, x: Any, pad: list[Any], value: Any = 0) -> oir.Value:
    return _pad(op, x, pad, "constant", value)


@lowers(aten.pad)
def pad(op: Builder, x: Any, amounts: list[Any], mode: str = "constant", value: Any = None) -> oir.Value:
    return _pad(op, x, amounts, mode, value)


@lowers(aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d)
def reflection_pad(op: Builder, x: Any, amounts: list[Any]) -> oir.Value:
    return _pad(op, x, amounts, "reflect", None)


@lowers(aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d)
def replication_pad(op: Builder, x: Any, amounts: list[Any]) -> oir.Value:
    return _pad(op, x, amounts, "replicate", None)


def _pad(op: Builder, x: Any, amounts: list[Any], mode: str, fill: Any) -> oir.Value:
    """torch lists (before, after) from the last dimension on; ONNX first all befores, then all afters."""
    n = len(amounts) // 2
    axes = list(range(x.type.rank - n, x.type.rank))
    before, after = amounts[0::2][::-1], amounts[1::2][::-1]
    dtype = op.result.dtype
    constant = op.cast(0 if fill is None else fill, dtype) if mode == "constant" else None
    return op.Pad(x, [*before, *after], constant, axes, mode=_MODES[mode])


@lowers(aten.repeat, aten.tile)
def repeat(op: Builder, x: Any, counts: list[Any]) -> oir.Value:
    shape = list(x.type.shape)
    counts = [1] * (len(shape) - len(counts)) + list(counts)
    padded = [1] * (len(counts) - len(shape)) + shape
    return op.Tile(reshape_to(op, x, shape, padded), counts)


@lowers(aten.repeat_interleave.self_int)
def repeat_interleave(op: Builder, x: Any, count: Any, dim: Any = None, output_size: Any = None) -> oir.Value:
    if dim is None:
        x, shape, dim = op.Reshape(x, [-1]), [x.type.numel], 0
    else:
        shape = list(x.type.shape)
        dim = dim % len(shape)
    between = [*shape[: dim + 1], 1, *shape[dim + 1 :]]
    wide = [*shape[: dim + 1], count, *shape[dim + 1 :]]
    expanded = expand_to(op, op.Unsqueeze(x, [dim + 1]), between, wide)
    return reshape_to(op, expanded, wide, op.result.shape)


@lowers(aten.flip)
def flip(op: Builder, x: Any, axes: list[int]) -> Any:
    if not axes:
        return x
    n = len(axes)
    return op.Slice(x, [-1] * n, [-LAST] * n, axes, [-1] * n)


@lowers(aten.roll)
def roll(op: Builder, x: Any, shifts: Any, axes: Any = ()) -> Any:
    shifts, axes = ([v] if isinstance(v, int) else list(v) for v in (shifts, axes))
    if not axes:
        flat = _roll(op, op.Reshape(x, [-1]), 0, shifts[0], x.type.numel)
        return op.Reshape(flat, op.Shape(x))
    made = op.value(x)
    for shift, axis in zip(shifts, axes, strict=True):
        made = _roll(op, made, axis, shift, x.type.shape[axis])
    return made


def _roll(op: Builder, x: oir.Value, axis: int, shift: Any, size: Any) -> oir.Value:
    """The last `shift` go before the rest; a shift counts modulo the size."""
    if size == 0:
        return x
    if not is_symbolic(size) and not is_symbolic(shift):
        cut = op.const([size - shift % size])
    else:
        n = op.vector([size])
        cut = op.Sub(n, op.Mod(op.vector([shift]), n))
    return op.Concat(op.Slice(x, cut, [LAST], [axis]), op.Slice(x, [0], cut, [axis]), axis=axis)


@lowers(aten.tril)
def tril(op: Builder, x: Any, diagonal: Any = 0) -> oir.Value:
    return _triangle(op, x, diagonal, upper=0)


@lowers(aten.triu)
def triu(op: Builder, x: Any, diagonal: Any = 0) -> oir.Value:
    return _triangle(op, x, diagonal, upper=1)


def _triangle(op: Builder, x: Any, diagonal: Any, upper: int) -> oir.Value:
    return op.Trilu(x, op.cast(diagonal, torch.int64), upper=upper)


@lowers(aten.pixel_shuffle)
def pixel_shuffle(op: Builder, x: Any, factor: int) -> oir.Value:
    return _shuffled(op, x, lambda v: op.DepthToSpace(v, blocksize=factor, mode="CRD"))


@lowers(aten.pixel_unshuffle)
def pixel_unshuffle(op: Builder, x: Any, factor: int) -> oir.Value:
    """[N, C, h r, w r] to [N, C r r, h, w]; ONNX's SpaceToDepth orders the channels otherwise."""
    c, h, w = x.type.shape[-3:]
    small = [dims.canonical(h // factor), dims.canonical(w // factor)]
    split = op.Reshape(x, op.vector([-1, c, small[0], factor, small[1], factor]))
    moved = op.Transpose(split, perm=[0, 1, 3, 5, 2, 4])
    return op.Reshape(moved, op.vector([*op.result.shape]))


@lowers(aten.channel_shuffle, aten.native_channel_shuffle)
def channel_shuffle(op: Builder, x: Any, groups: int) -> oir.Value:
    split = op.Reshape(x, op.vector([0, groups, x.type.shape[1] // groups, -1]))
    return reshape_to(op, op.Transpose(split, perm=[0, 2, 1, 3]), (), x.type.shape)


def _shuffled(op: Builder, x: Any, shuffle: Any) -> oir.Value:
    """ONNX shuffles [N, C, H, W] only."""
    if x.type.rank == 4:
        return shuffle(x)
    flat = op.Reshape(x, op.vector([-1, *x.type.shape[-3:]]))
    return op.Reshape(shuffle(flat), op.vector([*op.result.shape]))
