"""How integer recipes print: oneDNN's int8 layers, pools of integers, quantise and dequantise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from capture.ir import Node, Value
from passes.lower_int8 import Grid, QuantizedLayer

if TYPE_CHECKING:
    from codegen.python.module import Writer

PRELUDE: dict[str, str] = {
    "qconv": "qconv = torch.ops.onednn.qconv2d_pointwise.default  # on integers, and a pointwise epilogue",
    "qconv_add": "qconv_add = torch.ops.onednn.qconv2d_pointwise.binary  # ... summed onto other integers",
    "qlinear": "qlinear = torch.ops.onednn.qlinear_pointwise.default  # on integers, and an epilogue",
    "qlinear_add": "qlinear_add = torch.ops.onednn.qlinear_pointwise.binary  # ... that adds another tensor",
    "qpool": "qpool = torch.ops.quantized.max_pool2d",
    "pack_qconv": "pack_qconv = torch.ops.onednn.qconv_prepack",
    "pack_qlinear": "pack_qlinear = torch.ops.onednn.qlinear_prepack",
    "no_zero_points": "no_zero_points = torch.zeros_like",
    "decomposed": "import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed",
    "offset_of": """
from functools import cache


@cache
def offset_of(zero_point):  # a float32 of 2**23 and more has no room for fractions: adding it rounds
    return torch.tensor(2.0**23 + zero_point, dtype=torch.float32)
""",
    "quantize": """

def quantize(x, scale, zero_point):  # to uint8, which is then the last byte of the float
    shifted = torch.add(offset_of(zero_point), x, alpha=1 / scale)
    return shifted.clamp_(2.0**23, 2.0**23 + 255).view(torch.int32).to(torch.uint8)
""",
    "dequantize": """

def dequantize(x, scale, zero_point):
    return x.to(torch.float32).sub_(zero_point).mul_(scale)
""",
}


class _Region:
    """A quantised layer with its operands as the outer graph has them, as text."""

    def __init__(self, out: Writer, node: Node) -> None:
        assert node.region is not None
        self.out, self.node, self.layer = out, node, QuantizedLayer.of(node)
        self.outer: dict[Value, Any] = dict(zip(node.region.inputs, node.operands, strict=True))

    def text(self, value: Any) -> str:
        return self.out.text(self.outer.get(value, value) if isinstance(value, Value) else value)

    def grid(self, grid: Grid) -> str:
        return f"{self.out.text(grid.scale)}, {self.out.text(grid.zero_point)}"

    @property
    def weights(self) -> str:
        """Scales, zero points and bias."""
        scales = self.outer[self.layer.scales]
        zeros = self.out.packed(scales, "no_zero_points", "dtype=torch.int32", ".zeros")
        return f"{self.out.text(scales)}, {zeros}, {self.text(self.layer.anchor.arg('bias'))}"

    @property
    def result(self) -> str:
        """Scale, zero point and dtype of the result."""
        made = self.layer.result
        return "1.0, 0, torch.float32" if made is None else f"{self.grid(made)}, torch.uint8"

    @property
    def unary(self) -> str:
        options = self.node.impl.options if self.node.impl is not None else {}
        parts = (options["unary"], options.get("scalars", []), options.get("algorithm", ""))
        return ", ".join(self.out.text(v) for v in parts)

    @property
    def other(self) -> int | None:
        """The position of the operand that is added."""
        return self.node.impl.options.get("other") if self.node.impl is not None else None

    def other_grid(self) -> str:
        assert self.node.region is not None
        assert self.other is not None
        value = self.node.region.inputs[self.other]
        reader = next(iter(value.users))
        inner = reader.results[0] if reader not in self.layer.after else value
        return self.grid(self.layer.other(inner))


def qconv(out: Writer, node: Node) -> str:
    """A convolution of integers on a packed weight; a sum is accumulated in its other operand."""
    region = _Region(out, node)
    layer, anchor = region.layer, region.layer.anchor
    geometry = [_pair(anchor.arg(k)) for k in ("stride", "padding", "dilation")]
    tail = ", ".join(out.text(v) for v in (*geometry, anchor.arg("groups")))
    x, grid = region.text(layer.x.value), region.grid(layer.x)
    type_ = layer.x.value.tensor_type
    shape = f", {out.text(type_.shape)}" if type_.is_static else ""
    scales = out.text(region.outer[layer.scales])
    packed = out.packed(
        region.outer[layer.weight], "pack_qconv", f"{scales}, {grid}, {tail}{shape}", ".qconv"
    )
    given = f"{x}, {grid}, {packed}, {region.weights}"
    if region.other is None:
        return f"{out.uses('qconv')}({given}, {tail}, {region.result}, {region.unary})"
    other = out.text(node.operands[region.other])
    assert node.impl is not None
    if not out.overwrites(node, node.impl.options.get("inplace")):
        other += ".clone(memory_format=torch.channels_last)"
    scales_, _, bias = region.weights.rpartition(", ")
    given = f"{x}, {grid}, {packed}, {scales_}, {other}, {bias}"
    binary = f'{region.other_grid()}, "sum", 1.0, {region.unary}'
    return f"{out.uses('qconv_add')}({given}, {tail}, {region.result}, {binary})"


def qlinear(out: Writer, node: Node) -> str:
    """A linear layer on integers with a packed weight."""
    region = _Region(out, node)
    layer = region.layer
    type_ = layer.x.value.tensor_type
    rows = type_.with_(shape=type_.shape[:-1]).numel
    shape = f"[{rows}, {type_.shape[-1]}]" if isinstance(rows, int) and rows else "None"
    packed = out.packed(region.outer[layer.weight], "pack_qlinear", shape, ".qlinear")
    given = f"{region.text(layer.x.value)}, {region.grid(layer.x)}, {packed}"
    if region.other is None:
        return f"{out.uses('qlinear')}({given}, {region.weights}, {region.result}, {region.unary})"
    weights, _, bias = region.weights.rpartition(", ")
    given = f"{given}, {weights}, {out.text(node.operands[region.other])}, {bias}"
    binary = f'1.0, 0, "add", 1.0, {region.unary}'
    return f"{out.uses('qlinear_add')}({given}, {region.result}, {binary})"


def qpool(out: Writer, node: Node) -> str:
    """A max pool of integers, which are in the order of the numbers that they stand for."""
    assert node.region is not None
    source, pool, _ = node.region.nodes
    x = out.text(dict(zip(node.region.inputs, node.operands, strict=True))[source.operands[0]])
    kernel = _pair(pool.arg("kernel_size"))
    stride = _pair(pool.arg("stride")) if pool.arg("stride") else kernel
    geometry = [kernel, stride, _pair(pool.arg("padding")), _pair(pool.arg("dilation"))]
    rest = ", ".join(out.text(v) for v in (*geometry, pool.arg("ceil_mode")))
    return f"{out.uses('qpool')}({x}, {rest})"


def quantize(out: Writer, node: Node) -> str:
    out.uses("offset_of")
    return f"{out.uses('quantize')}({', '.join(out.text(v) for v in node.operands[:3])})"


def dequantize(out: Writer, node: Node) -> str:
    return f"{out.uses('dequantize')}({', '.join(out.text(v) for v in node.operands[:3])})"


KERNELS: dict[str, Callable[[Writer, Node], str]] = {
    "onednn.qconv": qconv,
    "onednn.qlinear": qlinear,
    "quantized.max_pool2d": qpool,
    "aten.quantize": quantize,
    "aten.dequantize": dequantize,
}


def _pair(value: Any) -> list[int]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    return items * 2 if len(items) == 1 else items


__all__ = ["KERNELS", "PRELUDE"]
