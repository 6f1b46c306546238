"""Pooling. Padding is worked out here, so that ceil_mode and count_include_pad mean what torch means."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as oir
import torch

from capture.ir import dims
from codegen.onnx.builder import Builder
from codegen.onnx.lowerings.convolution import spread
from codegen.onnx.lowerings.reduction import mean_over, reduce_extreme
from codegen.onnx.lowerings.view import reshape_to
from codegen.onnx.table import lowers

aten = torch.ops.aten


@lowers(aten.max_pool1d, aten.max_pool2d, aten.max_pool3d)
def max_pool(
    op: Builder, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> oir.Value:
    window = _Window(op, x, len_of(op.node.op), kernel, stride, padding, dilation, ceil_mode)
    return window.batched(window.largest)


@lowers(aten.max_pool2d_with_indices, aten.max_pool3d_with_indices)
def max_pool_with_indices(
    op: Builder, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Any:
    """ONNX counts indices over the whole tensor, torch over each channel's plane.

    Of several NaN in a window, or beside one, the index may be another than torch's.
    """
    window = _Window(op, x, len_of(op.node.op), kernel, stride, padding, dilation, ceil_mode)
    if len(window.spatial) != x.type.rank - 2:
        raise op.unsupported("without a batch dimension")
    _, flat = op.MaxPool(x, dilations=window.dilation, **window.attributes(), outputs=2)
    return window.largest(op.value(x)), op.Mod(flat, op.vector([dims.product(tuple(window.spatial))]))


@lowers(aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d)
def avg_pool(
    op: Builder, x: Any, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool,
    divisor: int | None = None,
) -> oir.Value:  # fmt: skip
    window = _Window(op, x, len_of(op.node.op), kernel, stride, padding, 1, ceil_mode)
    counted = count_include_pad or divisor is not None

    def pool(value: oir.Value) -> oir.Value:
        # Padding that counts is real zeros; what ceil_mode adds behind it never counts.
        if counted and any(window.padding):
            value = op.Pad(
                value, [*window.padding] * 2, None, window.axes(value_rank=len(window.spatial) + 2)
            )
            pads = [0] * len(window.extra) + window.extra
        else:
            pads = [*window.padding, *(p + e for p, e in zip(window.padding, window.extra, strict=True))]
        if divisor is not None and any(window.extra):
            value = op.Pad(
                value, [0] * len(window.extra) + window.extra, None, window.axes(len(window.spatial) + 2)
            )
            pads = [0] * 2 * len(window.extra)
        mean = op.AveragePool(
            value, kernel_shape=window.kernel, strides=window.stride, pads=pads, count_include_pad=0
        )
        if divisor is None:
            return mean
        return op.Mul(mean, op.cast(math.prod(window.kernel) / divisor, op.result.dtype))

    return window.batched(pool)


def len_of(overload: Any) -> int:
    """Spatial dimensions of a pooling operator, from its name."""
    name = overload._schema.name
    return next(n for n in (1, 2, 3) if f"{n}d" in name)


class _Window:
    """Kernel, stride and padding of a pool over the last `n` dimensions of x.

    `extra` is what ceil_mode adds behind the padding for the last window to fit, where it starts inside.
    """

    def __init__(
        self,
        op: Builder,
        x: Any,
        n: int,
        kernel: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        ceil_mode: bool,
    ) -> None:
        if not (x.type.dtype.is_floating_point or x.type.dtype in (torch.int8, torch.uint8)):
            raise op.unsupported("of integers")
        self.op, self.x, self.n = op, x, n
        self.spatial = x.type.shape[-n:]
        self.kernel = spread(kernel, n)
        self.stride = spread(stride, n) if stride not in ([], None) else self.kernel
        self.padding = spread(padding, n)
        self.dilation = spread(dilation, n)
        self.extra = [self._extra(i) if ceil_mode else 0 for i in range(n)]

    def _extra(self, i: int) -> int:
        size, out = self.spatial[i], self.op.result.shape[-self.n + i]
        if not isinstance(size, int) or not isinstance(out, int):
            raise self.op.unsupported("ceil_mode over a dynamic dimension")
        reach = (out - 1) * self.stride[i] + self.dilation[i] * (self.kernel[i] - 1) + 1
        return max(0, reach - size - 2 * self.padding[i])

    def attributes(self) -> dict[str, Any]:
        after = [p + e for p, e in zip(self.padding, self.extra, strict=True)]
        return dict(kernel_shape=self.kernel, strides=self.stride, pads=[*self.padding, *after])

    def largest(self, value: oir.Value) -> oir.Value:
        """The largest of each window; to keep NaN, NaN where there is one, -inf where there is nothing else.

        Runtimes may pass over NaN and begin with the lowest finite number. What each window holds is then
        pooled beside: 2 for NaN, 0 for -inf.
        """
        op, dtype = self.op, self.x.type.dtype
        attributes = dict(dilations=self.dilation, **self.attributes())
        if not (op.keep_nan and dtype.is_floating_point):
            return op.MaxPool(value, **attributes)
        lowest, one, two = (op.const(number, dtype) for number in (-math.inf, 1, 2))
        kinds = op.Where(op.IsNaN(value), two, op.Cast(op.Greater(value, lowest), to=dtype))
        kinds, made = op.MaxPool(kinds, **attributes), op.MaxPool(value, **attributes)
        made = op.Where(op.Less(kinds, one), lowest, made)
        return op.Where(op.Greater(kinds, one), op.const(math.nan, dtype), made)

    def axes(self, value_rank: int) -> list[int]:
        return list(range(value_rank - self.n, value_rank))

    def batched(self, pool: Any) -> oir.Value:
        """ONNX pools [N, C, ...] only."""
        if self.x.type.rank == self.n + 2:
            return pool(self.op.value(self.x))
        return self.op.Squeeze(pool(self.op.Unsqueeze(self.x, [0])), [0])


@lowers(
    aten.adaptive_avg_pool1d,
    aten.adaptive_avg_pool2d,
    aten.adaptive_avg_pool3d,
    aten._adaptive_avg_pool2d,
    aten._adaptive_avg_pool3d,
)
def adaptive_avg_pool(op: Builder, x: Any, size: Any) -> oir.Value:
    """A mean; else the bins of one dimension after the other, in rows."""
    bins = _bins(op, x, size)
    rank, dtype = x.type.rank, op.result.dtype
    axes = list(range(rank - len(bins), rank))
    if all(b == 1 for b in bins):
        return mean_over(op, op.value(x), x.type.shape, axes, keepdim=True)
    made = op.value(x)
    for axis, b in zip(axes, bins, strict=True):
        n = x.type.shape[axis]
        if b == n:
            continue
        edges = _edges(op, n, b)
        parts, lengths = _gathered(op, made, edges, axis), [end - start for start, end in edges]
        if len(set(lengths)) == 1:
            made = op.ReduceMean(parts, [axis + 1], keepdims=0)
            continue
        behind = [1] * (rank - axis - 1)
        inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        filled = op.Where(op.const(inside.view(b, -1, *behind), torch.bool), parts, op.cast(0, dtype))
        counts = torch.tensor(lengths, dtype=torch.float64).view(b, *behind)
        made = op.Div(op.ReduceSum(filled, [axis + 1], keepdims=0), op.const(counts, dtype))
    return made


def _gathered(op: Builder, x: oir.Value, bins: list[tuple[int, int]], axis: int) -> oir.Value:
    """The bins of an axis in rows, [bins, longest] for it; short ones repeat their last element."""
    longest = max(end - start for start, end in bins)
    index = [[min(start + i, end - 1) for i in range(longest)] for start, end in bins]
    return op.Gather(x, op.const(index), axis=axis)


@lowers(aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d)
def adaptive_max_pool(op: Builder, x: Any, size: Any) -> oir.Value:
    """The values; indices have no ONNX form here. Short bins are filled up with their own last element."""
    bins = _bins(op, x, size)
    rank = x.type.rank
    made = op.value(x)
    for axis, b in zip(range(rank - len(bins), rank), bins, strict=True):
        n = x.type.shape[axis]
        if b == n:
            continue
        if b == 1:
            made = reduce_extreme(op, "ReduceMax", made, [axis], keepdim=True)
            continue
        parts = _gathered(op, made, _edges(op, n, b), axis)
        made = reduce_extreme(op, "ReduceMax", parts, [axis + 1], keepdim=False)
    return made


def _bins(op: Builder, x: Any, size: Any) -> list[int]:
    n = len_of(op.node.op)
    given = spread(size, n)
    return [x.type.shape[i - n] if b is None else b for i, b in enumerate(given)]


def _edges(op: Builder, n: Any, bins: Any) -> list[tuple[int, int]]:
    if not isinstance(n, int) or not isinstance(bins, int):
        raise op.unsupported("adaptive bins over a dynamic dimension")
    return [(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)]


@lowers(aten.im2col)
def im2col(op: Builder, x: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> oir.Value:
    """[N, C, H, W] to [N, C kh kw, windows]: rows, then columns, gathered by an index [kernel, windows]."""
    if x.type.rank != 4:
        raise op.unsupported("without a batch dimension")
    made = op.Pad(x, [*padding, *padding], None, [2, 3]) if any(padding) else op.value(x)
    for i, axis in ((0, 2), (1, 4)):  # the first gather puts two dimensions for one
        size = x.type.shape[2 + i]
        if not isinstance(size, int):
            raise op.unsupported("over a dynamic dimension")
        count = (size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        index = [[k * dilation[i] + w * stride[i] for w in range(count)] for k in range(kernel[i])]
        made = op.Gather(made, op.const(index), axis=axis)
    moved = op.Transpose(made, perm=[0, 1, 2, 4, 3, 5])  # [N, C, kh, kw, rows, columns]
    return reshape_to(op, moved, (), op.result.shape)
