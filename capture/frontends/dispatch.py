"""The dispatch front end: records the ATen calls of one run of the model, as Python makes it.

Refuses what it would have to freeze: an `if` on a tensor's value, a number read out of a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from capture.frontends.dynamic import flat_axes, grow
from capture.frontends.fake_inputs import FakeInputs, input_names
from capture.frontends.place import Place
from capture.frontends.trace import trace
from capture.ir import Graph

__all__ = ["capture_with_dispatch"]


def capture_with_dispatch(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any = None
) -> Graph:
    """Record one run of the model. Errors of torch and of the model pass through unchanged."""
    axes = flat_axes(model, args, kwargs, dynamic_shapes)
    args, kwargs = grow(args, kwargs, axes)
    place = Place(model)
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    inputs = FakeInputs(input_names(model, args, kwargs), leaves, axes, place)
    graph = trace(model, model, args, kwargs, inputs=inputs, place=place)
    graph.name = type(model).__name__
    graph.frontend = "dispatch tracing"
    return graph
