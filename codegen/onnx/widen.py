"""bfloat16 for runtimes that have no kernels for it: computed in float32, rounded after each node.

    y = Gelu(x: bf16)    ==>    y = Cast(Gelu(Cast(x, f32)), bf16)

That is what torch does on a CPU, too. What only moves data stays as it is.
"""

from __future__ import annotations

import onnx
import onnx_ir as oir

# ONNX Runtime's CPU provider has these for bfloat16.
MOVES = frozenset(
    """Cast Identity Transpose Concat Reshape Squeeze Unsqueeze Flatten Shape Gather GatherElements GatherND
    Slice Split ScatterElements ScatterND ConstantOfShape IsNaN IsInf If""".split()
)
_BF16, _F32 = oir.DataType.BFLOAT16, oir.DataType.FLOAT


def uses_bfloat16(proto: onnx.ModelProto) -> bool:
    """Whether any declared type is bfloat16."""
    graph = proto.graph
    declared = [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)]
    return _BF16.value in (*declared, *(t.data_type for t in graph.initializer))


def widen_bfloat16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model that computes in float32 what this one computes in bfloat16."""
    model = oir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for graph in model.graphs():
        for node in list(graph):
            if node.op_type not in MOVES:
                _widen(graph, node)
    return oir.to_proto(model)


def _widen(graph: oir.Graph, node: oir.Node) -> None:
    for i, value in enumerate(node.inputs):
        if value is not None and value.dtype == _BF16:
            cast = _cast(value, _F32, f"{value.name} as float32 for {node.name} {i}")
            graph.insert_before(node, cast)
            node.replace_input_with(i, cast.outputs[0])
    for value in node.outputs:
        if value.dtype != _BF16:
            continue
        name = value.name
        cast = _cast(value, _BF16, name)
        value.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
        cast.replace_input_with(0, value)
        value.name, value.dtype = f"{name} as float32", _F32
        graph.insert_after(node, cast)


def _cast(value: oir.Value, dtype: oir.DataType, name: str | None) -> oir.Node:
    made = oir.Value(name=name, shape=value.shape, type=oir.TensorType(dtype))
    return oir.Node(
        "", "Cast", [value], [oir.AttrInt64("to", dtype.value)], outputs=[made], name=f"{name}/Cast"
    )
