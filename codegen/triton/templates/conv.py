"""Convolution as an implicit matrix product: the unfolded input is an index, never a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from capture.ir import Node, Range, TensorType, Value
from capture.ir.types import CHANNELS_LAST
from codegen.triton.configs import TileConfig, matmul_configs
from codegen.triton.file import KernelFile
from codegen.triton.ops import HALVES, TYPES, Body, Term
from codegen.triton.piece import Piece
from codegen.triton.templates.sizes import captured_shape
from codegen.triton.templates.text import fill

CONVOLUTION = torch.ops.aten.conv2d.default
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TAKEN = frozenset(
    "x w m n k acc C N H W KH KW config images channels pixels order row column image group".split()
)


@dataclass(frozen=True)
class Extra:
    """A tensor that the epilogue reads: of the result's shape, of its channels, or a number."""

    name: str
    over: str  # "full", "channels" or "one"
    dtype: torch.dtype

    @property
    def parameters(self) -> str:
        strides = {"full": ["n", "c", "h", "w"], "channels": ["c"], "one": []}[self.over]
        return ", ".join([self.name, *(f"{self.name}_{s}" for s in strides)])

    @property
    def load(self) -> str:
        name = self.name
        pixel = f"(image * {name}_n + row * {name}_h + column * {name}_w)[:, None]"
        at, mask = {
            "full": (f" + {pixel} + n.to(tl.int64)[None, :] * {name}_c", ", mask=inside, other=0"),
            "channels": (f" + n[None, :] * {name}_c", ", mask=(n < group * N + N)[None, :], other=0"),
            "one": ("", ""),
        }[self.over]
        text = f"tl.load({name}{at}{mask})"
        return f"{text}.to(tl.float32)" if self.dtype in HALVES else text

    @property
    def view(self) -> str:
        return (
            f"{self.name} = {self.name}.reshape(-1)"
            if self.over == "channels"
            else f"{self.name} = {self.name}"
        )

    @property
    def passed(self) -> str:
        return self.name if self.over == "one" else f"{self.name}, *{self.name}.stride()"


def conv_file(node: Node, dims: Mapping[str, Range]) -> KernelFile | None:
    """The kernel file of a conv2d or of a fusion that begins with one; None where the template does not fit.

    Raises:
        UnsupportedOpError: what runs after it has no Triton form.
    """
    piece = Piece.of(node)
    anchor, after = piece.nodes[0], piece.nodes[1:]
    if (
        anchor.op is not CONVOLUTION
        or len(piece.results) != 1
        or piece.results[0] is not piece.nodes[-1].results[0]
    ):
        return None
    x, w, bias = (anchor.arg(name) for name in ("input", "weight", "bias"))
    full = anchor.results[0].tensor_type
    shapes = [captured_shape(v.tensor_type.shape, dims) for v in (x, w)]
    dtypes = {v.tensor_type.dtype for v in (x, w)}
    static = all(isinstance(size, int) for size in (*w.tensor_type.shape, full.shape[1]))
    same = all(n.results[0].tensor_type.shape == full.shape for n in after)
    reused = any(v in (x, w) for n in after for v in n.operand_values)
    if (
        len(dtypes) != 1
        or not dtypes <= set(_DTYPES)
        or full.rank != 4
        or x is w
        or not (static and same)
        or reused
    ):
        return None
    for value in piece.inputs:
        if piece.names[value] in _TAKEN:
            piece.names[value] += "_in"
    others = [v for v in piece.inputs if v not in (x, w)]
    extras = [_extra(v, piece.names[v], full) for v in others]
    if None in extras:
        return None
    body = Body({}, piece.names.__getitem__)
    for value in others:
        body.terms[value] = Term(
            f"{piece.names[value]}_tile", value.tensor_type.dtype, rank=value.tensor_type.rank
        )
    body.terms[anchor.results[0]] = Term("acc", full.dtype, rank=4)
    lines = [f"acc = acc + {body.terms[bias]}  # bias"] if isinstance(bias, Value) else []
    lines += [body.line(n) for n in after]
    return _fill(piece, anchor, shapes, captured_shape(full.shape, dims), extras, lines, body)


def _extra(value: Value, name: str, full: TensorType) -> Extra | None:
    type_ = value.type
    if not isinstance(type_, TensorType) or type_.dtype not in TYPES:
        return None
    if type_.shape == full.shape:
        return Extra(name, "full", type_.dtype)
    if all(size == 1 for size in type_.shape):
        return Extra(name, "one", type_.dtype)
    channels = type_.shape == (full.shape[1],) or (
        type_.rank == 4 and type_.shape == (1, full.shape[1], 1, 1)
    )
    channels = channels or (type_.rank == 3 and type_.shape == (full.shape[1], 1, 1))
    return Extra(name, "channels", type_.dtype) if channels else None


def _fill(
    piece: Piece,
    anchor: Node,
    shapes: list[tuple[int, ...]],
    full: tuple[int, ...],
    extras: list[Extra],
    epilogue: list[str],
    body: Body,
) -> KernelFile | None:
    x, w = (anchor.arg(name) for name in ("input", "weight"))
    names = piece.names
    stride, padding, dilation = (_pair(anchor.arg(name)) for name in ("stride", "padding", "dilation"))
    if stride is None or padding is None or dilation is None:
        return None
    groups = anchor.arg("groups")
    (images, channels_in, height, width), (channels, _, kh, kw) = shapes
    dtype = x.tensor_type.dtype
    made = {
        names[x]: f"(images, {channels_in}, H, W)",
        names[w]: str(shapes[1]),
    }
    for value, extra in zip((v for v in piece.inputs if v not in (x, w)), extras, strict=True):
        small = captured_shape(value.tensor_type.shape, {}) if extra.over != "full" else ()
        made[extra.name] = f"(images, {channels}, OH, OW)" if extra.over == "full" else str(small)
    dtypes = {names[v]: v.tensor_type.dtype for v in piece.inputs}
    inputs = [
        f"{axis} = ({size} + {2 * padding[i] - dilation[i] * (k - 1) - 1}) // {stride[i]} + 1"
        for i, (axis, size, k) in enumerate((("OH", "H", kh), ("OW", "W", kw)))
        if any(e.over == "full" for e in extras)
    ]
    inputs += [f"{n} = torch.randn({made[n]}, device=device).to({dtypes[n]})" for n in piece.parameters]
    least = [dilation[i] * (k - 1) + 1 for i, k in enumerate((kh, kw))]
    sizes = [(1, *least), (2, least[0] + 7, least[1] + 2), (3, least[0] + 4, least[1] + 12), (0, *least)]
    result = piece.results[0].tensor_type
    return fill(
        "conv",
        kind="conv",
        title=f"{piece.ops}.",
        notes=_NOTES,
        parameters=", ".join(piece.parameters),
        configs=[_options(c) for c in _configs(full, shapes[1], groups, dtype)],
        helpers=tuple(body.helpers.values()),
        x=names[x],
        w=names[w],
        extras=extras,
        epilogue=epilogue,
        value=str(body.terms[piece.results[0]]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        channels_last=result.memory_format == CHANNELS_LAST,
        result_dtype=str(result.dtype),
        result_size=result.dtype.itemsize,
        reference=piece.reference(),
        inputs=inputs,
        sizes=tuple(sizes),
        small=f"{least[0] + 3}, {least[1] + 4}",
        captured=f"{images}, {height}, {width}",
    ).for_more((piece.stands_for(),))


def _pair(option: object) -> tuple[int, int] | None:
    """Height's and width's; None for padding given as a word or sizes that vary."""
    if not isinstance(option, (list, tuple)) or not all(isinstance(o, int) for o in option):
        return None
    return (option[0], option[-1])


def _configs(
    full: tuple[int, ...], weight: tuple[int, ...], groups: int, dtype: torch.dtype
) -> list[TileConfig]:
    images, channels, height, width = full
    _, inner, kh, kw = weight
    exact = dtype == torch.float32
    aligned = inner * dtype.itemsize % 16 == 0
    rows, columns, depth = images * height * width, channels // groups, kh * kw * inner
    found = matmul_configs(
        groups, rows, columns, depth, dtype.itemsize, exact=exact, aligned=aligned, gathered=True, limit=40
    )
    return [c for c in found if c.schedule == "tiles" and c.block_m <= 64][:4]  # an address a pixel and step


def _options(config: TileConfig) -> dict[str, int]:
    return {k: v for k, v in config.options().items() if k not in ("schedule", "GROUP_M")}


_NOTES = """\
One program a block of pixels and output channels. Input and weight are read channels-last, so that the inner
steps of the sum are neighbours in memory; a contiguous input is copied to that order first."""


__all__ = ["CONVOLUTION", "conv_file"]
