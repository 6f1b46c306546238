"""Choose integer kernels for regions between dequantize and quantize.

    fusion.qconv {dequantize -> conv2d -> add -> relu -> quantize}   via onednn.qconv(unary="relu", other=4)
    fusion.qlinear {dequantize -> linear -> gelu}                    via onednn.qlinear(unary="gelu")
    fusion.qpool {dequantize -> max_pool2d -> quantize}              via quantized.max_pool2d()
    quantize_per_tensor, dequantize_per_tensor                       via aten.quantize(), aten.dequantize()

oneDNN sums a convolution onto its other operand in place; where that operand lives on, it is given a copy.
Its results lie channels-last; where the graph has a contiguous one, a copy follows.

Does not fire on quantise nodes of other ranges than the whole of uint8, or on other devices than CPUs: these
run as PyTorch defines them, in several steps.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from capture.ir import Fusion, Graph, Impl, Node, Value
from capture.ir.types import CHANNELS_LAST, CONTIGUOUS
from passes.base import Pass, PassResult, register_pass
from passes.fuse_quantized import LAYERS, epilogue_of, is_bytes, is_dequantize, is_quantize
from passes.lower import note_channels_last

SPATIAL = ("onednn.qconv", "quantized.max_pool2d")


@dataclass(frozen=True)
class Grid:
    """Integers and the numbers that they stand for: number = (integer - zero_point) * scale."""

    value: Value
    scale: float
    zero_point: int


@dataclass(frozen=True)
class QuantizedLayer:
    """What a region of kind qconv or qlinear computes; values are the region's inputs.

    Attributes:
        x, weight, scales: the integers it reads, with the weight's scale an output channel.
        after: the pointwise operators between the layer and its end.
        result: the grid of its integer result; None where the result is float.
    """

    anchor: Node
    x: Grid
    weight: Value
    scales: Value
    bias: Value | None
    after: tuple[Node, ...]
    result: Grid | None

    @staticmethod
    def of(node: Node) -> QuantizedLayer:
        assert node.region is not None
        inside = list(node.region.nodes)
        anchor = next(n for n in inside if n.op in LAYERS)
        source, weight = anchor.operands[0].producer, anchor.arg("weight").producer
        last = inside[-1]
        position = inside.index(anchor)
        after = tuple(n for n in inside[position + 1 :] if not is_dequantize(n) and not is_quantize(n))
        result = Grid(last.results[0], *last.operands[1:3]) if is_quantize(last) else None
        return QuantizedLayer(
            anchor, _grid(source), weight.operands[0], weight.operands[1], anchor.arg("bias"), after, result
        )

    def other(self, value: Value) -> Grid:
        """What is added: integers by their grid, floats as they are."""
        node = value.producer
        return _grid(node) if node is not None and is_dequantize(node) else Grid(value, 1.0, 0)


def _grid(dequantize: Node) -> Grid:
    return Grid(*dequantize.operands[:3])


@register_pass
@dataclass(frozen=True)
class LowerInt8(Pass):
    name = "lower-int8"

    def run(self, graph: Graph) -> PassResult:
        if not torch.backends.mkldnn.is_available():
            return PassResult(False, {"onednn": "not in this PyTorch"})
        stats: Counter[str] = Counter()
        for node in graph.nodes:
            recipe = _recipe(node) if node.impl is None else None
            if recipe is None:
                continue
            node.set_impl(recipe)
            stats[recipe.kernel] += 1
            if recipe.kernel in SPATIAL:
                _note_format(graph, node.results[0])
        return PassResult(bool(stats), dict(stats))


def _note_format(graph: Graph, result: Value) -> None:
    """Tell the format that the kernel gives; its like take that, others go on getting what they did."""
    readers = [user for user in result.users if not _is_spatial(user)]
    type_ = result.tensor_type
    if readers or result.is_result or type_.memory_format != CONTIGUOUS:
        note_channels_last(graph, result)
    else:
        graph.set_result_type(result, type_.with_(memory_format=CHANNELS_LAST))


def _is_spatial(node: Node) -> bool:
    return isinstance(node.op, Fusion) and node.op.kind in ("qconv", "qpool")


def _recipe(node: Node) -> Impl | None:
    if isinstance(node.op, Fusion) and node.op.kind in LAYERS.values():
        return _layer_recipe(node, node.op.kind)
    if isinstance(node.op, Fusion) and node.op.kind == "qpool":
        return Impl("quantized.max_pool2d", {})
    if is_bytes(node) and node.results[0].tensor_type.device.type == "cpu":
        return Impl("aten.quantize" if is_quantize(node) else "aten.dequantize", {})
    return None


def _layer_recipe(node: Node, kind: str) -> Impl:
    assert node.region is not None
    layer = QuantizedLayer.of(node)
    epilogue = epilogue_of(kind, layer.anchor, list(layer.after))
    options: dict[str, Any] = epilogue.options(None)
    if epilogue.other is not None:
        other = layer.other(epilogue.other)
        position = node.region.inputs.index(other.value)
        options |= {"binary": epilogue.binary, "other": position}
        lies_right = other.value.tensor_type.memory_format == CHANNELS_LAST
        if kind == "qconv" and other.value is not layer.x.value and lies_right:
            options["inplace"] = position
    return Impl(f"onednn.{kind}", options)


__all__ = ["Grid", "LowerInt8", "QuantizedLayer"]
