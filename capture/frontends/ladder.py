"""`capture`: from a model to its Graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from capture.frontends.export import capture_exported, capture_with_export
from capture.ir import Graph

__all__ = ["capture"]


def capture(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    frontend: str = "auto",
) -> Graph:
    """Capture the graph of one call of `model`.

    Args:
        model: an `nn.Module`, or an `ExportedProgram`, which needs no arguments.
        args, kwargs: example arguments of the call.
        dynamic_shapes: which sizes vary, as torch.export takes it.
    """
    if isinstance(model, ExportedProgram):
        return capture_exported(model)
    return capture_with_export(model, tuple(args or ()), kwargs or {}, dynamic_shapes)
