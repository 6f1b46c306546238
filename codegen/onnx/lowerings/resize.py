"""Interpolation: upsample and grid_sample."""

from __future__ import annotations

from typing import Any

import onnx_ir as oir
import torch

from codegen.onnx.builder import Builder
from codegen.onnx.table import lowers

aten = torch.ops.aten

_NEAREST = (aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d)
_NEAREST_EXACT = (
    aten._upsample_nearest_exact1d,
    aten._upsample_nearest_exact2d,
    aten._upsample_nearest_exact3d,
)
_SMOOTH = {
    aten.upsample_linear1d: "linear", aten.upsample_bilinear2d: "linear", aten.upsample_trilinear3d: "linear",
    aten.upsample_bicubic2d: "cubic",
    aten._upsample_bilinear2d_aa: "linear", aten._upsample_bicubic2d_aa: "cubic",
}  # fmt: skip


@lowers(*_NEAREST)
def nearest(op: Builder, x: Any, *rest: Any) -> oir.Value:
    return _resize(
        op, x, rest, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


@lowers(*_NEAREST_EXACT)
def nearest_exact(op: Builder, x: Any, *rest: Any) -> oir.Value:
    """The pixel whose area holds the point: floor(p + 1/2) of the half-pixel coordinate p."""
    return _resize(
        op,
        x,
        rest,
        mode="nearest",
        coordinate_transformation_mode="half_pixel",
        nearest_mode="round_prefer_ceil",
    )


@lowers(*_SMOOTH)
def smooth(op: Builder, x: Any, size: Any, align_corners: bool, *rest: Any) -> oir.Value:
    packet = op.node.op.overloadpacket
    antialias = "_aa" in op.node.op._schema.name
    return _resize(
        op, x, (size, *rest), mode=_SMOOTH[packet],
        coordinate_transformation_mode="align_corners" if align_corners else "half_pixel",
        cubic_coeff_a=-0.5 if antialias else -0.75, antialias=int(antialias), exclude_outside=int(antialias),
    )  # fmt: skip


def _resize(op: Builder, x: Any, rest: tuple[Any, ...], **attributes: Any) -> oir.Value:
    """torch samples by the scale factor where it is given, else by the quotient of the sizes.

    The overload .vec has the factors as one list; the others have them one by one, each of which may be None.
    """
    if not x.type.dtype.is_floating_point and attributes["mode"] != "nearest":  # runtimes truncate
        raise op.unsupported("of integers")
    n = x.type.rank - 2
    axes = list(range(2, 2 + n))
    given = rest[1:]
    scales = given[0] if given and isinstance(given[0], list) else [s for s in given if s is not None]
    sizes = list(op.result.shape[2:])
    if len(scales) == n and _exact(x.type.shape[2:], sizes, scales):
        scales = []
    if len(scales) == n and attributes["coordinate_transformation_mode"] != "align_corners":
        values = op.const([float(s) for s in scales], torch.float32)
        return op.Resize(x, None, values, axes=axes, **attributes)
    return op.Resize(x, None, None, sizes, axes=axes, **attributes)


def _exact(before: Any, after: Any, scales: Any) -> bool:
    """Whether the sizes say the same as the factors: the better form, as float32 factors are rounded."""
    return all(
        isinstance(b, int) and isinstance(a, int) and a == b * s
        for b, a, s in zip(before, after, scales, strict=True)
    )


@lowers(aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d)
def grid_sampler(op: Builder, x: Any, grid: Any, mode: int, padding: int, align_corners: bool) -> oir.Value:
    return op.GridSample(
        x, grid, mode=("linear", "nearest", "cubic")[mode],
        padding_mode=("zeros", "border", "reflection")[padding], align_corners=int(align_corners),
    )  # fmt: skip
