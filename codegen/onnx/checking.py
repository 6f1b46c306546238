"""An exported model against the graph that it came from, in ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch

from capture.ir import Graph
from capture.ir.interpreter import flatten_inputs, run_flat
from capture.ir.types import LiteralType
from codegen.onnx.naming import output_names
from codegen.onnx.ort import as_tensor, open_session, run


def max_error(
    model: onnx.ModelProto | str | os.PathLike[str],
    graph: Graph,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> float:
    """What `codegen.onnx.check` does."""
    flat = flatten_inputs(graph, args, kwargs)
    given = [v for v, i in zip(flat, graph.inputs, strict=True) if not isinstance(i.type, LiteralType)]
    session = open_session(model)
    feeds = dict(zip((i.name for i in session.get_inputs()), given, strict=True))
    defaults = {i.name for i in session.get_overridable_initializers()}
    feeds |= {t.name: getattr(t, "tensor", None) for t in graph.writebacks if t.name in defaults}
    made = run(session, feeds)
    results, written = run_flat(graph, flat)
    wanted = [as_tensor(results[i]) for i in output_names(graph)] + list(written)
    return max((_error(m, w) for m, w in zip(made, wanted, strict=True)), default=0.0)


def _error(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest absolute difference; inf where shape or dtype differ, or only one is NaN or infinite."""
    if made.shape != wanted.shape or made.dtype != wanted.dtype:
        return float("inf")
    wanted = wanted.detach().cpu()
    same = (made == wanted) | (made.isnan() & wanted.isnan())
    difference = (made.double() - wanted.double()).abs().nan_to_num(nan=float("inf"), posinf=float("inf"))
    if not made.is_floating_point():  # where doubles do not tell two integers apart
        difference = difference.clamp(min=1)
    difference = torch.where(same, 0.0, difference)
    return float(difference.max()) if difference.numel() else 0.0
