"""The torch.fx front end: symbolic tracing, then the traced module run node by node on fake tensors.

Also the way in for any GraphModule, such as the one that a torch.compile backend is given.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._guards import TracingContext
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.frontends.dynamic import Axis, flat_axes, grow
from capture.frontends.fake_inputs import FakeInputs, input_names
from capture.frontends.place import Place
from capture.frontends.quiet import as_in_training
from capture.frontends.source import format_stack, innermost_user_frame, module_path, parse_stack
from capture.frontends.state import ModelState
from capture.frontends.trace import trace
from capture.ir import Graph

__all__ = ["capture_graph_module", "capture_with_fx"]


def capture_with_fx(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any = None
) -> Graph:
    """Trace symbolically, then record the ATen calls of the traced module.

    Raises:
        CaptureError: the arguments are of a kind that torch.fx does not trace. Its own errors pass through.
    """
    axes = flat_axes(model, args, kwargs, dynamic_shapes)
    args, kwargs = grow(args, kwargs, axes)
    values = _by_parameter(model, args, kwargs)
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    with as_in_training():
        root = vars(model).get("forward", model)  # a plain function stands in the place of forward
        graph_of_calls = _Tracer(model).trace(root, concrete_args=_concrete(values, axes))
    for module, attributes in before:  # where the model has put a proxy, put back what was there
        module.__dict__.update(
            {k: v for k, v in attributes.items() if isinstance(module.__dict__.get(k), fx.Proxy)}
        )
    for node in graph_of_calls.find_nodes(op="placeholder"):
        node.args = ()  # its default; torch.fx cannot print that beside nested arguments, and all are given
    traced = fx.GraphModule(model, graph_of_calls)

    def ordered(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        return list(_by_parameter(model, args, kwargs).values())

    place = Place(traced)
    names = input_names(model, args, kwargs)
    inputs = FakeInputs(names, pytree.tree_leaves((args, dict(kwargs))), axes, place)
    run = _Runner(traced, place)
    graph = trace(traced, lambda *a, **k: run.run(*ordered(a, k)), args, kwargs, inputs=inputs, place=place)
    order = {path: i for i, path in enumerate(ModelState(model).tensors)}  # the traced module has another
    graph.constants = dict(sorted(graph.constants.items(), key=lambda item: order.get(item[0], len(order))))
    graph.name = type(model).__name__
    graph.frontend = "torch.fx"
    return graph


def capture_graph_module(
    module: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any = None
) -> Graph:
    """Record the ATen calls of a GraphModule, node by node.

    Args:
        args: example inputs; fake tensors and SymInts where it was made by torch.compile.
    """
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    place = Place(module)
    axes = flat_axes(module, tuple(args), kwargs, dynamic_shapes)
    args, kwargs = grow(tuple(args), kwargs, axes)
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    if not kwargs and len(leaves) == len(args) == len(placeholders):
        names = [_input_name(n) for n in placeholders]
    else:
        names = input_names(module, args, kwargs)
    compiling = TracingContext.try_get() is not None or any(isinstance(v, torch.SymInt) for v in leaves)
    if compiling and len(placeholders) == len(leaves):
        known = [n.meta.get("example_value", n.meta.get("val")) for n in placeholders]
        leaves = [v if k is None else k for v, k in zip(leaves, known, strict=True)]
    inputs = FakeInputs(names, leaves, axes, place)
    run = _Runner(module, place)
    graph = trace(module, run.run if not kwargs else module, args, kwargs, inputs=inputs, place=place)
    graph.name = type(module).__name__
    graph.frontend = "torch.fx (GraphModule)"
    return graph


class _Tracer(fx.Tracer):
    """Notes the user's line on each node; reads of buffers are nodes too."""

    proxy_buffer_attributes = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._place = Place(model)
        self._place.boundary = capture_with_fx.__code__

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise CaptureError("torch.fx does not see that autocast is on")
        node = super().create_node(*args, **kwargs)
        node.meta["stack_trace"] = format_stack(self._place.here()[1])
        return node


class _Runner(fx.Interpreter):
    """Runs a GraphModule; tells the place which node is running, by the node's own record of it."""

    def __init__(self, module: fx.GraphModule, place: Place) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False
        self._place = place

    def run_node(self, node: fx.Node) -> Any:
        self._place.module = module_path(node.meta.get("nn_module_stack"))
        self._place.frame = innermost_user_frame(parse_stack(node.meta.get("stack_trace") or ""))
        return super().run_node(node)


def _by_parameter(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each parameter of forward, defaults filled in, in order."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    for parameter in bound.signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            if bound.arguments.pop(parameter.name):
                raise CaptureError(f"torch.fx does not trace *{parameter.name}")
    return dict(bound.arguments)


def _concrete(values: Mapping[str, Any], axes: Sequence[Mapping[int, Axis]]) -> dict[str, Any] | None:
    """What torch.fx is to take as given: all that is not a tensor."""
    if any(-1 in varying for varying in axes):
        raise CaptureError("torch.fx does not trace an int that varies")

    def leaf(value: Any) -> Any:
        return fx.PH if isinstance(value, torch.Tensor) else value

    found = {n: pytree.tree_map(leaf, v) for n, v in values.items() if not isinstance(v, torch.Tensor)}
    return found or None


def _input_name(placeholder: fx.Node) -> str:
    """A placeholder's name; ``x`` where torch.compile has made it ``l_x_``."""
    name = placeholder.name
    found = re.fullmatch(r"l_(\w+?)_+", name) if "grapharg" in placeholder.meta else None
    return re.sub(r"(?:^|(?<=_))(self|modules|parameters|buffers)_", "", found[1]) if found else name
