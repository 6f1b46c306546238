"""Tracing: the ATen calls of one run of a model on fake tensors, before dispatch, as a Graph.

    model(x)  ->  every op it calls, functional  ->  fx graph  ->  Graph

Nothing is computed. A question about a tensor's value has no answer here, and raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.frontends.bindings import Constants, add_literal_input
from capture.frontends.fake_inputs import FakeInputs
from capture.frontends.functional import FunctionalMode, from_functional, functionalizing, to_functional
from capture.frontends.fx_import import FxImporter
from capture.frontends.place import Place
from capture.frontends.quiet import announced, as_in_training
from capture.frontends.source import Sources
from capture.frontends.state import ModelState
from capture.ir import Graph, ScalarType

__all__ = ["trace"]


@dataclass
class _Outcome:
    """What a run left behind beside the traced outputs: the structure, and which tensors it wrote."""

    leaves: list[Any] = field(default_factory=list)
    spec: Any = None
    written: list[str | int] = field(default_factory=list)


def trace(
    model: nn.Module,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    inputs: FakeInputs,
    place: Place,
) -> Graph:
    """Trace ``call(*args, **kwargs)``, which runs `model`.

    Args:
        inputs: what stands for the flat inputs.
        place: told where the model is; shared with whoever runs it, who may know better.

    Raises:
        CaptureError, or whatever torch or the model raises where the run cannot be traced.
    """
    _, in_spec = pytree.tree_flatten((args, dict(kwargs)))
    place.boundary = _run.__code__
    with as_in_training(), announced(), ExitStack() as stack:
        state = ModelState(model)
        fake_state = {n: inputs.fake(t) for n, t in state.tensors.items()}
        stack.enter_context(fx_traceback.preserve_node_meta())
        outcome = _Outcome()
        traced = [f for f in inputs.fakes if isinstance(f, (torch.Tensor, torch.SymInt))]

        def run(*flat: Any) -> list[Any]:
            return _run(call, state, inputs, in_spec, outcome, flat, place)

        stack.enter_context(inputs.mode)
        tracer = make_fx(run, pre_dispatch=True, tracing_mode="fake", _allow_non_fake_inputs=True)
        module = tracer(*fake_state.values(), *traced)
    module.graph.eliminate_dead_code()
    return _import(module, state, fake_state, inputs, in_spec, outcome)


def _run(
    call: Callable[..., Any],
    state: ModelState,
    inputs: FakeInputs,
    in_spec: Any,
    outcome: _Outcome,
    flat: Sequence[Any],
    place: Place,
) -> list[Any]:
    """One functionalised run; returns the traced outputs, then the new values of what was written to."""
    with functionalizing(), FunctionalMode(place.observe, inputs.mode.shape_env):
        wrapped = [to_functional(v) for v in flat]
        count = len(state.tensors)
        given = dict(zip(state.tensors, wrapped[:count], strict=True))
        passed = iter(wrapped[count:])
        leaves = [next(passed) if isinstance(f, (torch.Tensor, torch.SymInt)) else f for f in inputs.fakes]
        args, kwargs = pytree.tree_unflatten(leaves, in_spec)
        with state.swapped(given):
            result = call(*args, **kwargs)
        found, outcome.spec = pytree.tree_flatten(result)
        outcome.leaves = [_returned(from_functional(v)) for v in found]
        written = _written(state, given, wrapped, flat)
    outcome.written = list(written)
    return [v for v in outcome.leaves if _is_traced(v)] + list(written.values())


def _written(
    state: ModelState, given: Mapping[str, Any], wrapped: Sequence[Any], flat: Sequence[Any]
) -> dict[str | int, Any]:
    """State by path, and inputs by position among the traced ones, that hold something new after the run."""
    written: dict[str | int, Any] = {}
    keys: list[str | int] = [*given, *range(len(flat) - len(given))]
    for key, after, before in zip(keys, wrapped, flat, strict=True):
        new = from_functional(state.reassigned.get(key, after))
        if isinstance(before, torch.Tensor) and new is not before:
            written[key] = new
    return written


def _import(
    module: GraphModule,
    state: ModelState,
    fake_state: Mapping[str, torch.Tensor],
    inputs: FakeInputs,
    in_spec: Any,
    outcome: _Outcome,
) -> Graph:
    graph = Graph()
    sizes = inputs.sizes(graph)
    constants = Constants(graph)
    targets: dict[str | int, Any] = {}
    for path, tensor in state.tensors.items():
        targets[path] = constants.add(path, tensor, sizes.type(fake_state[path]))
    bound = list(targets.values())
    traced = 0
    for name, fake in zip(inputs.names, inputs.fakes, strict=True):
        if isinstance(fake, torch.Tensor):
            targets[traced] = graph.add_input(name, sizes.type(fake))
            bound.append(targets[traced])
        elif isinstance(fake, torch.SymInt):
            bound.append(sizes.size(fake))
            graph.add_input(_size_name(name, bound[-1], graph), ScalarType("int", bound[-1]))
        else:
            add_literal_input(graph, name, fake)
            continue
        traced += 1
    importer = FxImporter(graph, sizes, Sources(), constants, graph.captured)
    results = iter(importer.run(module, bound))
    graph.set_results([next(results) if _is_traced(v) else v for v in outcome.leaves])
    for target in outcome.written:
        graph.set_writeback(targets[target], next(results))
    graph.in_spec, graph.out_spec = in_spec, outcome.spec
    inputs.check_guards(sizes)
    constants.drop_unused()
    return graph


def _returned(value: Any) -> Any:
    """What the model returned, if a graph can return it.

    Raises:
        CaptureError: it cannot.
    """
    if value is None or _is_traced(value) or isinstance(value, (bool, int, float, str)):
        return value
    raise CaptureError(
        f"the model returns an object of the class {type(value).__name__}",
        hint="torch.export.register_dataclass for it, or tensors in tuples and dicts",
    )


def _size_name(name: str, size: Any, graph: Graph) -> str:
    """The name of an input that is a size: torch.compile calls it after its own symbol, as in ``s77``."""
    taken = {v.name for v in graph.inputs}
    return str(size) if re.fullmatch(r"s\d+", name) and str(size) not in taken else name


def _is_traced(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool))
