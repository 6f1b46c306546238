"""An exported model against the graph that it came from, in ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnxruntime
import torch

from capture.errors import CaptureError
from capture.ir import Graph
from capture.ir.graph import Constant
from capture.ir.interpreter import flatten_inputs, run_flat
from capture.ir.types import LiteralType
from codegen.onnx.naming import output_names
from codegen.onnx.ortvalue import as_tensor, from_ort, to_ort
from codegen.onnx.widen import uses_bfloat16, widen_bfloat16


def max_error(
    model: onnx.ModelProto | str | os.PathLike[str],
    graph: Graph,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> float:
    """What `codegen.onnx.check` does."""
    flat = flatten_inputs(graph, args, kwargs)
    given = [
        v for v, value in zip(flat, graph.inputs, strict=True) if not isinstance(value.type, LiteralType)
    ]
    session = _session(model)
    feeds = {i.name: to_ort(v) for i, v in zip(session.get_inputs(), given, strict=False)}
    for target in graph.writebacks:
        if isinstance(target, Constant) and target.tensor is not None:
            feeds[target.name] = to_ort(target.tensor)
    try:
        made = [from_ort(v) for v in session.run_with_ort_values(None, feeds)]
    except Exception as error:
        raise CaptureError("ONNX Runtime cannot run the model", why=str(error)) from error
    results, written = run_flat(graph, flat)
    wanted = [as_tensor(results[i]) for i in output_names(graph)] + list(written)
    return max((_error(m, w) for m, w in zip(made, wanted, strict=True)), default=0.0)


def _session(model: onnx.ModelProto | str | os.PathLike[str]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    source = model if isinstance(model, onnx.ModelProto) else os.fspath(model)
    if isinstance(source, onnx.ModelProto):
        source = (widen_bfloat16(source) if uses_bfloat16(source) else source).SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CaptureError("ONNX Runtime refuses the model", why=str(error)) from error


def _error(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest absolute difference; inf where shape or dtype differ, or only one is NaN or infinite."""
    if made.shape != wanted.shape or made.dtype != wanted.dtype:
        return float("inf")
    made, wanted = made.double(), wanted.detach().cpu().double()
    same = (made == wanted) | (made.isnan() & wanted.isnan())
    difference = torch.where(same, 0.0, (made - wanted).abs()).nan_to_num(nan=float("inf"))
    return float(difference.max()) if difference.numel() else 0.0
