"""Choose channels-last memory for convolutions.

    %0 = conv2d(%x, @w)                 %c = clone(%x, memory_format=channels_last)
    %1 = relu(%0)              ==>      %0: ... channels_last = conv2d(%c, @w)
    return %1                           %1: ... channels_last = relu(%0)
                                        %2 = clone(%1, memory_format=contiguous);  return %2

Only values that enter a chain of convolutions are converted, once each; everything after inherits the format,
as the operators' own shape functions say. What was contiguous when captured is converted back where it is
returned, and where an operator may look at strides (as_strided, view_as_complex, custom ones, branches).
Does not fire in a graph without 2-d or 3-d convolutions, on a convolution that reads channels-last already or
has no batch dimension, nor on one from whose result a strided operand of such an operator is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload

from capture.ir import Fusion, Graph, Node, TensorType, Value
from capture.ir.infer import FakeRun
from capture.ir.quantized import NAMESPACE
from capture.ir.types import CHANNELS_LAST, CHANNELS_LAST_3D, CONTIGUOUS, STRIDED, TORCH_FORMATS
from passes.base import Pass, PassResult, register_pass

aten = torch.ops.aten

CONVOLUTIONS = (
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)
STRIDE_READERS = (
    aten.as_strided,
    aten.as_strided_copy,
    aten.as_strided_scatter,
    aten.view,
    aten._unsafe_view,
    aten.view_as_complex,
)
_WANTED = {4: CHANNELS_LAST, 5: CHANNELS_LAST_3D}


@register_pass
@dataclass(frozen=True)
class Layout(Pass):
    name = "layout"

    def run(self, graph: Graph) -> PassResult:
        if next(graph.find(*CONVOLUTIONS), None) is None:
            return PassResult(False)
        captured = {v: v.type for node in graph.nodes for v in node.results}
        pinned = _made_into_strided_operands(graph)
        fake = FakeRun(graph)
        converted: dict[Value, Value] = {}
        restored: dict[Value, Value] = {}
        for node in graph.nodes:
            if node.is_op(*CONVOLUTIONS) and node not in pinned:
                _convert_input(graph, node, fake, converted)
            elif reads_strides(node.op):
                for value in dict.fromkeys(node.operand_values):
                    if _was_contiguous(value, captured):
                        node.replace_operand(value, _contiguous(graph, value, restored, node, fake))
            for value, result in zip(node.results, fake.step(node), strict=True):
                _note_format(graph, value, fake.context.type(result))
        results = list(graph.results)
        for i, value in enumerate(results):
            if isinstance(value, Value) and _was_contiguous(value, captured):
                results[i] = _contiguous(graph, value, restored)
        graph.set_results(results)
        return PassResult(bool(converted), {"conversions": len(converted) + len(restored)})


def reads_strides(op: Any) -> bool:
    """Whether what an operator computes may depend on how its operands lie in memory."""
    if isinstance(op, Fusion):
        return False
    if not isinstance(op, OpOverload) or op.namespace not in ("aten", NAMESPACE):
        return True
    return op.overloadpacket in STRIDE_READERS


def _made_into_strided_operands(graph: Graph) -> set[Node]:
    """The nodes from which come those operands of stride readers that no conversion can restore."""
    waiting = [
        value.producer
        for node in graph.nodes
        if reads_strides(node.op)
        for value in node.operand_values
        if isinstance(value.type, TensorType) and value.type.memory_format == STRIDED
    ]
    found: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [v.producer for v in node.operand_values]
    return found


def _convert_input(graph: Graph, node: Node, fake: FakeRun, converted: dict[Value, Value]) -> None:
    """Let the convolution read a channels-last copy of its input, unless it is channels-last already."""
    value, weight = node.operands[:2]
    wanted = _WANTED[weight.tensor_type.rank]
    if value.tensor_type.rank != weight.tensor_type.rank:  # no batch dimension
        return
    if fake.value(value).is_contiguous(memory_format=TORCH_FORMATS[wanted]):
        return
    if value not in converted:
        made = graph.add_node(
            aten.clone.default,
            [value],
            {"memory_format": TORCH_FORMATS[wanted]},
            types=[value.tensor_type.with_(memory_format=wanted)],
            origin=node.origin,
            before=node,
        )
        fake.step(made)
        converted[value] = made.result
    node.replace_operand(value, converted[value])


def _was_contiguous(value: Value, captured: dict[Value, Any]) -> bool:
    old = captured.get(value)
    return isinstance(old, TensorType) and old.memory_format == CONTIGUOUS != value.tensor_type.memory_format


def _contiguous(
    graph: Graph,
    value: Value,
    restored: dict[Value, Value],
    before: Node | None = None,
    fake: FakeRun | None = None,
) -> Value:
    """A contiguous copy of `value`: one for all who need it."""
    if value not in restored:
        made = contiguous_copy(graph, value, before=before)
        if fake is not None:
            fake.step(made)
        restored[value] = made.result
    return restored[value]


def contiguous_copy(
    graph: Graph, value: Value, *, before: Node | None = None, after: Node | None = None
) -> Node:
    """Add a node that copies `value` into contiguous memory."""
    return graph.add_node(
        aten.clone.default,
        [value],
        {"memory_format": torch.contiguous_format},
        types=[value.tensor_type.with_(memory_format=CONTIGUOUS)],
        origin=value.producer.origin if value.producer else None,
        before=before,
        after=after,
    )


def _note_format(graph: Graph, value: Value, inferred: object) -> None:
    if isinstance(value.type, TensorType) and isinstance(inferred, TensorType):
        if value.type.memory_format != inferred.memory_format:
            graph.set_result_type(value, value.type.with_(memory_format=inferred.memory_format))
