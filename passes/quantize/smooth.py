"""SmoothQuant (Xiao et al., 2022): move outliers of activations into the weights, exactly.

    y = linear(norm(x) * g + b, W)   ==>   y = linear(norm(x) * (g / s) + b / s, W * s)
    s_j = max|X_j| ** alpha / max|W_j| ** (1 - alpha)                        for each input channel j

Fires where a layer norm with constant weights is read by linear layers alone: the division is then folded
into its weights. Does not fire elsewhere: it would cost a pass over memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from capture.ir import Graph, Node, Value
from passes.quantize.calibration import Samples
from passes.quantize.layers import LINEAR
from passes.queries import fixed_tensor

aten = torch.ops.aten
_LEAST = 1e-5  # of a scale, and of the maxima it is made from: dead channels stay finite


def smooth(graph: Graph, samples: Samples, layers: Sequence[Node], alpha: float) -> None:
    """Fold the scales of every norm before linear layers among `layers` into norm and layers."""
    chosen = set(layers)
    norms = [n for n in graph.find(aten.layer_norm.default) if _readers(graph, n, chosen)]
    maxima = _channel_maxima(graph, samples, [n.results[0] for n in norms])
    for norm in norms:
        value = norm.results[0]
        if value not in maxima:
            continue
        readers = _readers(graph, norm, chosen)
        weights = torch.stack([n.arg("weight").tensor.detach().double().abs().amax(0) for n in readers])
        greatest = weights.amax(0).clamp(min=_LEAST)
        scale = (maxima[value].clamp(min=_LEAST) ** alpha / greatest ** (1 - alpha)).clamp(min=_LEAST)
        _fold(graph, norm, readers, scale)


def _readers(graph: Graph, norm: Node, chosen: set[Node]) -> list[Node]:
    """The linear layers that read a norm, or none where others read it or its weights vary."""
    value = norm.results[0]
    users = list(dict.fromkeys(value.users))
    alone = users and not value.is_result and all(u in chosen and u.is_op(LINEAR) for u in users)
    parts = [norm.arg("weight"), norm.arg("bias")]
    fixed = parts[0] is not None and all(fixed_tensor(graph, p) is not None for p in parts if p is not None)
    one_axis = len(norm.arg("normalized_shape")) == 1
    return users if alone and fixed and one_axis else []


def _channel_maxima(graph: Graph, samples: Samples, values: Sequence[Value]) -> dict[Value, Tensor]:
    """The greatest magnitude of each channel (last axis), fp64."""
    found: dict[Value, Tensor] = {}

    def see(value: Value, tensor: Tensor) -> None:
        now = tensor.double().abs().reshape(-1, tensor.shape[-1]).amax(0)
        found[value] = torch.maximum(found[value], now) if value in found else now

    samples.run(graph, see, values)
    return found


def _fold(graph: Graph, norm: Node, readers: Sequence[Node], scale: Tensor) -> None:
    """Divide the norm's weights by the scale, multiply the layers' columns by it; rounded once."""
    _replace(graph, norm, {name: 1 / scale for name in ("weight", "bias") if norm.arg(name) is not None})
    for layer in readers:
        _replace(graph, layer, {"weight": scale})


def _replace(graph: Graph, node: Node, factors: dict[str, Tensor]) -> None:
    made = {}
    for name, factor in factors.items():
        constant = node.arg(name)
        tensor = (constant.tensor.detach().double() * factor).to(constant.tensor.dtype)
        made[name] = graph.add_constant(f"{constant.name}.smoothed", tensor)
    names = [a.name for a in node.op._schema.arguments]
    node.set_operands([made.get(name, node.arg(name)) for name in names])


__all__ = ["smooth"]
