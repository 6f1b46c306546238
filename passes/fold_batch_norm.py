"""Fold an inference BatchNorm into the convolution or linear layer before it.

    y = conv(x, W, b)                       s = gamma / sqrt(var + eps)
    z = batch_norm(y, ...)        ==>       z = conv(x, W * s, (b - mean) * s + beta)

The arithmetic is done in fp64 and rounded once to the layer's dtype. The new constants are named after what
they are made from: conv1.weight.folded, bn1.folded_bias.

Does not fire when y has another use, when weights or statistics are not constants (unbound, written back, or
computed), in training mode, when the norm's channels are not the layer's outputs (linear over more than two
axes, a convolution without batch axis), or when a folded weight is not finite in the layer's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from capture.ir import Constant, Graph, Node
from passes.base import Pass, PassResult, register_pass
from passes.ledger import FOLDED, Fate, fates_of
from passes.queries import fixed_tensor

aten = torch.ops.aten

NORMS = (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default)
NORM_PARAMETERS = ("weight", "bias", "running_mean", "running_var")
CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d)
TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)


@register_pass
@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    name = "fold-batch-norm"

    def run(self, graph: Graph) -> PassResult:
        fates: dict[int, Fate] = {}
        folded = 0
        for norm in graph.find(*NORMS):
            if can_fold(graph, norm) and (parameters := folded_parameters(norm)) is not None:
                fates.update(fates_of(norm, FOLDED, "into the weights of the layer before it"))
                fold(graph, norm, *parameters)
                folded += 1
        return PassResult(folded > 0, {"folded": folded} if folded else {}, fates)


def can_fold(graph: Graph, norm: Node) -> bool:
    """The guards, in the order of the header."""
    layer = norm.operands[0].producer
    if layer is None or not is_layer(layer) or norm.operands[0].num_uses != 1:
        return False
    parameters = [layer.arg("weight"), layer.arg("bias"), *map(norm.arg, NORM_PARAMETERS)]
    if any(fixed_tensor(graph, p) is None for p in parameters if p is not None):
        return False
    if norm.op is aten.batch_norm.default and (norm.arg("training") or norm.arg("running_mean") is None):
        return False
    if any(v.num_uses for v in norm.results[1:]):
        return False
    return layer.result.tensor_type.rank == layer.arg("weight").tensor_type.rank


def is_layer(node: Node) -> bool:
    return node.is_op(aten.linear.default, aten.convolution.default, *CONVOLUTIONS, *TRANSPOSED)


def is_transposed(layer: Node) -> bool:
    return bool(layer.arg("transposed")) if layer.op is aten.convolution.default else layer.is_op(*TRANSPOSED)


def folded_parameters(norm: Node) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The layer's new weight and bias, or None where one is not finite in the layer's dtype."""
    layer: Node = norm.operands[0].producer
    weight, bias = wide(layer.arg("weight")), wide(layer.arg("bias"))
    gamma, beta, mean, var = (wide(norm.arg(name)) for name in NORM_PARAMETERS)
    scale = torch.rsqrt(var + norm.arg("eps"))
    scale = scale if gamma is None else scale * gamma
    shift = (0 if bias is None else bias) - mean
    new_bias = shift * scale if beta is None else shift * scale + beta
    new_weight = weight * along_outputs(layer, scale, weight)
    dtype = layer.result.tensor_type.dtype
    rounded = new_weight.to(dtype), new_bias.to(dtype)
    return rounded if all(bool(t.isfinite().all()) for t in rounded) else None


def wide(constant: Constant | None) -> torch.Tensor | None:
    return None if constant is None else constant.tensor.detach().double()


def along_outputs(layer: Node, scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`scale`, one number per output channel, in a shape that broadcasts against the weight."""
    if not is_transposed(layer):
        return scale.reshape(-1, *[1] * (weight.dim() - 1))
    # [in, out / groups, ...]: inputs and outputs of a group lie at the same place of their axes.
    groups = layer.arg("groups")
    by_input = scale.reshape(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
    return by_input.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.dim() - 2))


def fold(graph: Graph, norm: Node, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Give the layer its new parameters and let it stand for the norm."""
    layer: Node = norm.operands[0].producer
    stem = norm.arg("running_mean").name.removesuffix(".running_mean")
    parameters = {
        "weight": graph.add_constant(f"{layer.arg('weight').name}.folded", weight),
        "bias": graph.add_constant(f"{stem}.folded_bias", bias),
    }
    arguments = [a.name for a in layer.op._schema.arguments]
    layer.set_operands([parameters.get(name, layer.arg(name)) for name in arguments])
    graph.replace_node(norm, [layer.result] + [None] * (len(norm.results) - 1))
