"""Lift decomposed operators and written-out linear layers back to the composites that later passes look for.

    %0 = aten.reshape(%x, [B*S, K])                       @weight.transposed
    %1 = aten.addmm(@bias, %0, @weight)            ==>    %0 = aten.linear(%x, @weight.transposed, @bias)
    %2 = aten.reshape(%1, [B, S, N])                      return %0
    return %2

    native_layer_norm, _softmax, convolution, ...  ==>    layer_norm, softmax, conv2d, ...

A product with a weight [in, out] becomes linear over a transposed view of that weight: the same memory, the
same call of BLAS, and the one form of a layer that fusion and weight packing know.

Does not fire where a decomposed op's second result (a mean, a log-sum-exp, indices) is used, where dropout is
on, where sizes do not match, on weights that are unbound, written back or computed, or on addmm with a factor
or a bias that is not one number per column.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from capture.frontends.recompose import recompose
from capture.ir import Constant, Graph, Node, TensorType, Value
from passes.base import Pass, PassResult, register_pass
from passes.queries import fixed_tensor

aten = torch.ops.aten


@register_pass
@dataclass(frozen=True)
class Recompose(Pass):
    name = "recompose"
    reason = "part of a composite operator"

    def run(self, graph: Graph) -> PassResult:
        made = Counter({"product": lift_products(graph)}) + Counter(recompose(graph))
        return PassResult(bool(made), dict(made))


def lift_products(graph: Graph) -> int:
    """Make linear of each product with a constant weight; returns how many."""
    transposed: dict[Constant, Constant] = {}
    lifted = 0
    for node in graph.find(aten.mm.default, aten.matmul.default, aten.addmm.default):
        *bias, x, weight = node.operands
        if not is_weight(graph, x, weight) or (bias and not is_plain_bias(node, bias[0])):
            continue
        if weight not in transposed:
            transposed[weight] = graph.add_constant(f"{weight.name}.transposed", weight.tensor.t())
        operands = [x, transposed[weight], *bias]
        types = [node.result.type]
        made = graph.add_node(aten.linear.default, operands, types=types, origin=node.origin, before=node)
        graph.replace_node(node, made.results)
        lifted += 1
    return lifted


def is_weight(graph: Graph, x: Value, weight: Value) -> bool:
    """Whether the right side of a product is a 2-D constant, of a floating dtype as linear's are."""
    if fixed_tensor(graph, weight) is None or weight.tensor_type.rank != 2 or x.tensor_type.rank == 0:
        return False
    return weight.tensor_type.dtype.is_floating_point


def is_plain_bias(addmm: Node, bias: Value) -> bool:
    """Whether addmm adds it as linear would: once, one number per column."""
    type_ = bias.type
    per_column = isinstance(type_, TensorType) and type_.shape == addmm.result.tensor_type.shape[-1:]
    return per_column and (addmm.arg("beta"), addmm.arg("alpha")) == (1, 1)
