"""Static int8: quantise and dequantise nodes around the layers that have an integer kernel.

    y = conv2d(x, W, b)      ==>      xq = quantize_per_tensor(x, s, z, 0, 255, uint8)
                                      xd = dequantize_per_tensor(xq, s, z, 0, 255, uint8)
                                      Wd = dequantize_per_channel(W.int8, W.scale, None, 0, -127, 127, int8)
                                      y = conv2d(xd, Wd, b)

Weights are symmetric, one scale an output channel; activations have one scale and zero point a tensor, from
calibration. The graph goes on computing in float between these nodes: fusion and lowering turn what lies
between a dequantize and a quantize into one integer kernel.

Does not fire on layers without an integer kernel, without a constant finite weight, that calibration never
reached, or that the configuration keeps float: the ledger tells which, and why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from capture.errors import UsageError
from capture.ir import Constant, Graph, Node, Value
from capture.ir.quantized import ops
from passes.base import Pass, PassResult
from passes.ledger import KEPT, Fate, fates_of
from passes.quantize.calibration import Samples, means, ranges
from passes.quantize.config import FLOAT, QuantConfig
from passes.quantize.layers import CONV, hidden_products, names_of, products, refusal
from passes.quantize.observers import QParams, affine
from passes.quantize.placement import Placement, place
from passes.quantize.smooth import smooth

WEIGHT_RANGE = (-127, 127)


@dataclass(frozen=True)
class StaticInt8(Pass):
    """Options: calibration data as an iterable of tuples of arguments, and the configuration."""

    name = "quantize"
    calibration: Iterable[object] = ()
    config: QuantConfig = field(default_factory=QuantConfig)

    def run(self, graph: Graph) -> PassResult:
        samples = Samples.of(graph, self.calibration)
        fates: dict[int, Fate] = {}
        layers = self._choose(graph, fates)
        if self.config.smooth is not None:
            smooth(graph, samples, layers, self.config.smooth)
        placement = place(graph, layers)
        found = ranges(graph, samples, placement.groups(), self.config)
        unreached = [n for n in layers if placement.root(n.operands[0]) not in found]
        for layer in unreached:
            if any(path in self.config.layers for path in names_of(layer)):
                raise UsageError(
                    f"calibration never reaches the layer {names_of(layer)[0]}",
                    where=layer.where,
                    why="it was given no elements by any sample",
                    hint="add samples that reach it, or configure it as float",
                )
            fates.update(fates_of(layer, KEPT, "stays float: calibration never reached it"))
        layers = [n for n in layers if n not in unreached]
        inputs = means(graph, samples, [n.operands[0] for n in layers]) if self.config.bias_correction else {}
        params = {value: affine(*found[root]) for root, vs in placement.groups().items()
                  for value in vs if root in found}  # fmt: skip
        for layer in layers:
            quantize_weight(graph, layer, inputs.get(layer.operands[0]))
        insert(graph, placement, params)
        stats = {"int8": len(layers), "float": len(products(graph)) - len(layers)}
        return PassResult(bool(layers), {k: n for k, n in stats.items() if n}, fates)

    def _choose(self, graph: Graph, fates: dict[int, Fate]) -> list[Node]:
        """The layers to quantise; the fates of the others."""
        found, hidden = products(graph), list(hidden_products(graph))
        self.config.check_names(name for n in (*found, *hidden) for name in names_of(n))
        chosen = []
        for node in found:
            if self.config.scheme_of(names_of(node), "int8") == FLOAT:
                why: str | None = "the configuration says so"
            else:
                why = refusal(graph, node)
            if why is None:
                chosen.append(node)
            else:
                fates.update(fates_of(node, KEPT, f"stays float: {why}"))
        for node in hidden:
            fates.update(fates_of(node, KEPT, "stays float: it lies in a branch"))
        return chosen


def quantize_weight(graph: Graph, layer: Node, mean_input: Tensor | None = None) -> None:
    """Give the layer an int8 weight, and, with its mean input, a bias that makes up for the rounding."""
    weight = layer.arg("weight")
    assert isinstance(weight, Constant)
    assert weight.tensor is not None
    integers, scales = round_weight(weight.tensor)
    low, high = WEIGHT_RANGE
    made = graph.add_node(
        ops().dequantize_per_channel.default,
        [
            graph.add_constant(f"{weight.name}.int8", integers),
            graph.add_constant(f"{weight.name}.scale", scales),
            None, 0, low, high, torch.int8,
        ],
        origin=layer.origin,
        before=layer,
    )  # fmt: skip
    changed: dict[str, Value] = {"weight": made.result}
    if mean_input is not None:
        changed["bias"] = graph.add_constant(
            f"{weight.name}.corrected_bias", corrected_bias(layer, integers, scales, mean_input)
        )
    names = [a.name for a in layer.op._schema.arguments]
    layer.set_operands([changed.get(name, layer.arg(name)) for name in names])


def round_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 integers, and one fp32 scale an output channel (axis 0)."""
    _, high = WEIGHT_RANGE
    rows = weight.detach().float().flatten(1)
    scales = rows.abs().amax(1) / high
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, torch.ones_like(scales), scales)
    integers = torch.round(rows / scales[:, None]).clamp(-high, high).to(torch.int8)
    return integers.reshape(weight.shape), scales


def corrected_bias(layer: Node, integers: Tensor, scales: Tensor, mean_input: Tensor) -> Tensor:
    """The bias plus what rounding the weight takes off the output's mean; computed in fp64."""
    weight, bias = layer.arg("weight").tensor.detach(), layer.arg("bias")
    along = [-1] + [1] * (weight.dim() - 1)
    lost = weight.double() - integers.double() * scales.double().reshape(along)
    if layer.is_op(CONV):
        geometry = [layer.arg(k) for k in ("stride", "padding", "dilation", "groups")]
        shift = torch.conv2d(mean_input, lost, None, *geometry).mean((0, 2, 3))
    else:
        shift = lost @ mean_input
    before = 0 if bias is None else bias.tensor.detach().double()
    return (before + shift).to(weight.dtype)


def insert(graph: Graph, placement: Placement, params: dict[Value, QParams]) -> None:
    """Put a quantise and a dequantise node behind each value, and let its readers read what comes out."""
    first = next(iter(graph.nodes))
    for value, readers in placement.readers.items():
        if value not in params:
            continue
        made = params[value]
        numbers = [made.scale, made.zero_point, 0, 255, torch.uint8]
        place: dict[str, Node] = {"before": first} if value.producer is None else {"after": value.producer}
        origin = value.producer.origin if value.producer is not None else None
        integers = graph.add_node(
            ops().quantize_per_tensor.default, [value, *numbers], origin=origin, **place
        )
        back = graph.add_node(
            ops().dequantize_per_tensor.default, [integers.result, *numbers], origin=origin, after=integers
        )
        for reader in readers:
            reader.replace_operand(value, back.result)


__all__ = ["StaticInt8", "corrected_bias", "insert", "quantize_weight", "round_weight"]
