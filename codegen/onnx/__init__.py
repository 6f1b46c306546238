"""Graph -> ONNX, by a table of lowerings that users can extend.

from codegen import onnx
onnx.export(graph, "model.onnx")
onnx.check("model.onnx", graph, args)
onnx.register_lowering(torch.ops.mylib.swish.default, lambda op, x, beta: ...)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from capture.ir import Graph
from codegen.onnx.requirements import require
from codegen.onnx.table import register_lowering

if TYPE_CHECKING:
    import onnx

__all__ = ["check", "export", "register_lowering"]


def export(
    graph: Graph,
    path: str | os.PathLike[str] | None = None,
    *,
    opset: int = 23,
    external_data: bool | Literal["auto"] = "auto",
    weights: bool = True,
    keep_nan: bool = False,
) -> onnx.ModelProto:
    """The graph, captured or optimised, as an ONNX model.

    Dims keep their names. A node is named after its module path, an initializer after its parameter, an
    input after the argument of forward, an output "output" (then "output_1", ...) or by its key in what
    forward returns. Fusions are inlined; how a node was to be executed is left out. What the graph writes
    back to a buffer or an input is one more output, ``<name>.updated``, and the buffer an input that has
    its present value by default. Results that are None are left out; numbers become tensors of shape [].

    The ONNX checker and strict shape inference look at every model before it is returned or written.

    Args:
        path: where to write the model. It is written aside and then renamed, its data file too.
        opset: version of the standard operators, 20 to 24; before 23, attention and RMSNorm are taken apart.
        external_data: whether the weights go to a file of their own, ``<path>.data``; "auto": past 2 GB,
            where they must. The model returned then refers to that file.
        weights: without them, parameters past 1 KB refer to a data file that is not written: a model to look
            at, or to be given its weights by `onnxruntime.SessionOptions.add_external_initializers`.
        keep_nan: let NaN, and windows of -inf alone, through max pooling, which runtimes may pass over. A
            second pooling then stands beside each.

    Raises:
        UnsupportedOpError: an operator, or a use of it, has no ONNX form; names it and the user's line.
        CaptureError: the file cannot be written; a constant has no value; onnx is not installed.
    """
    require("onnx", "onnx_ir")
    from codegen.onnx.exporting import export_model

    return export_model(
        graph, path, opset=opset, external_data=external_data, weights=weights, keep_nan=keep_nan
    )


def check(
    model: onnx.ModelProto | str | os.PathLike[str],
    graph: Graph,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
) -> float:
    """Run the model in ONNX Runtime and compare with ``graph.run(*args, **kwargs)``.

    Returns:
        The largest absolute difference over all outputs, written-back ones included; inf where one has
        another shape or dtype, or is NaN where the other is not. The graph's buffers are left as they are.

    Raises:
        CaptureError: ONNX Runtime is not installed, or refuses the model.
    """
    require("onnx", "onnxruntime")
    from codegen.onnx.checking import max_error

    return max_error(model, graph, args, kwargs or {})
