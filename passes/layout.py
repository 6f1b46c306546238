"""Choose channels-last memory for convolutions.

    %0 = conv2d(%x, @w)                 %c = clone(%x, memory_format=channels_last)
    %1 = relu(%0)              ==>      %0: ... channels_last = conv2d(%c, @w)
    return %1                           %1: ... channels_last = relu(%0)
                                        %2 = clone(%1, memory_format=contiguous);  return %2

Only values that enter a chain of convolutions are converted, once each; everything after inherits the format,
as the operators' own shape functions say. A result that was contiguous is converted back.
Does not fire in a graph without 2-d or 3-d convolutions, nor on a convolution that reads channels-last already.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from capture.ir import Graph, Node, TensorType, Value
from capture.ir.infer import FakeRun
from capture.ir.types import CHANNELS_LAST, CHANNELS_LAST_3D, CONTIGUOUS, TORCH_FORMATS
from passes.base import Pass, PassResult, register_pass

aten = torch.ops.aten

CONVOLUTIONS = (
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)
_WANTED = {4: CHANNELS_LAST, 5: CHANNELS_LAST_3D}


@register_pass
@dataclass(frozen=True)
class Layout(Pass):
    name = "layout"

    def run(self, graph: Graph) -> PassResult:
        if next(graph.find(*CONVOLUTIONS), None) is None:
            return PassResult(False)
        returned = {v: v.type for v in graph.result_values}
        fake = FakeRun(graph)
        converted: dict[Value, Value] = {}
        for node in graph.nodes:
            if node.is_op(*CONVOLUTIONS):
                _convert_input(graph, node, fake, converted)
            for value, result in zip(node.results, fake.step(node), strict=True):
                _note_format(graph, value, fake.context.type(result))
        restored = [v for v, old in returned.items() if v.type != old]
        for value in restored:
            _restore(graph, value)
        return PassResult(bool(converted), {"conversions": len(converted) + len(restored)})


def _convert_input(graph: Graph, node: Node, fake: FakeRun, converted: dict[Value, Value]) -> None:
    """Let the convolution read a channels-last copy of its input, unless it is channels-last already."""
    value = node.operands[0]
    wanted = _WANTED.get(value.tensor_type.rank)
    if wanted is None or fake.value(value).is_contiguous(memory_format=TORCH_FORMATS[wanted]):
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


def _note_format(graph: Graph, value: Value, inferred: object) -> None:
    if isinstance(value.type, TensorType) and isinstance(inferred, TensorType):
        if value.type.memory_format != inferred.memory_format:
            graph.set_result_type(value, value.type.with_(memory_format=inferred.memory_format))


def _restore(graph: Graph, value: Value) -> None:
    """Return a contiguous copy of `value` where the captured graph returned a contiguous tensor."""
    if value.tensor_type.memory_format not in _WANTED.values() or not any(v is value for v in graph.results):
        return
    made = graph.add_node(
        aten.clone.default,
        [value],
        {"memory_format": torch.contiguous_format},
        types=[value.tensor_type.with_(memory_format=CONTIGUOUS)],
        origin=value.producer.origin if value.producer else None,
    )
    graph.set_results([made.result if v is value else v for v in graph.results])
