"""torch.export -> Graph: the front end that keeps composite operators whole and sizes symbolic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymIntArgument,
    TensorArgument,
)
from torch.fx import traceback as fx_traceback

from capture.errors import CaptureError
from capture.frontends.bindings import Constants, add_literal_input
from capture.frontends.dynamic import Axis, complete_shapes, flat_axes, grow
from capture.frontends.fx_import import FxImporter
from capture.frontends.place import LineRecorder, Place
from capture.frontends.quiet import as_in_training, without_own_notes
from capture.frontends.sizes import Sizes
from capture.frontends.source import Sources
from capture.ir import Graph, ScalarType, Value

__all__ = ["capture_exported", "capture_with_export"]

_CONSTANT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_MUTATIONS = ("BUFFER_MUTATION", "PARAMETER_MUTATION", "USER_INPUT_MUTATION")


def capture_with_export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any = None,
    *,
    strict: bool = False,
) -> Graph:
    """Export the model and convert the program. Errors of torch.export pass through unchanged."""
    axes = flat_axes(model, args, kwargs, dynamic_shapes)
    args, kwargs = grow(args, kwargs, axes)
    with as_in_training(), ExitStack() as stack:
        if not strict:
            place = Place(model)
            place.boundary = capture_with_export.__code__
            stack.enter_context(without_own_notes())
            stack.enter_context(fx_traceback.preserve_node_meta())
            stack.enter_context(LineRecorder(place))
        shapes = complete_shapes(model, args, kwargs, dynamic_shapes)
        program = torch.export.export(model, args, dict(kwargs), dynamic_shapes=shapes, strict=strict)
    graph = capture_exported(program, axes)
    graph.name = type(model).__name__
    graph.frontend = f"torch.export ({'strict' if strict else 'non-strict'})"
    return graph


def capture_exported(program: ExportedProgram, axes: Sequence[Mapping[int, Axis]] = ()) -> Graph:
    """Convert an exported program.

    Args:
        axes: what the user said about the varying axes of each flat input.

    Raises:
        CaptureError: the program holds something that the IR does not have.
    """
    with as_in_training():
        program = program.run_decompositions({})
    graph = Graph()
    graph.frontend = "torch.export"
    sizes = Sizes(graph, {**program.range_constraints})
    constants = Constants(graph)
    targets: dict[str, Value] = {}
    inputs = _bind_inputs(graph, program, sizes, constants, targets, axes)
    importer = FxImporter(graph, sizes, Sources(), constants, graph.captured)
    results = importer.run(program.graph_module, inputs)
    kept = []
    for spec, result in zip(program.graph_signature.output_specs, results, strict=True):
        if spec.kind.name in _MUTATIONS:
            graph.set_writeback(targets[spec.target], result)
        elif spec.kind is not OutputKind.TOKEN:
            kept.append(result)
    graph.set_results(kept)
    graph.in_spec, graph.out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    constants.drop_unused()
    return graph


def _bind_inputs(
    graph: Graph,
    program: ExportedProgram,
    sizes: Sizes,
    constants: Constants,
    targets: dict[str, Value],
    axes: Sequence[Mapping[int, Axis]],
) -> list[Any]:
    """What each placeholder stands for; fills `targets` with what a mutation may name."""
    placeholders = {n.name: n for n in program.graph_module.graph.nodes if n.op == "placeholder"}
    specs = program.graph_signature.input_specs
    user = [s for s in specs if s.kind is InputKind.USER_INPUT]
    for position, spec in enumerate(user):
        if isinstance(spec.arg, (TensorArgument, SymIntArgument)):
            node = placeholders[spec.arg.name]
            named = axes[position] if axes else {}
            wanted = {i: axis.name for i, axis in named.items() if axis.name}
            sizes.name_input(node.name, node.meta["val"], wanted)
    bound: list[Any] = []
    for spec in specs:
        arg = spec.arg
        if spec.kind in _CONSTANT_KINDS:
            value = placeholders[arg.name].meta["val"]
            constant = constants.add(spec.target, _tensor(program, spec.target), sizes.type(value))
            targets[spec.target] = constant
            bound.append(constant)
        elif spec.kind is not InputKind.USER_INPUT:
            raise CaptureError(
                f"the model holds the object {spec.target or arg.name}",
                why="TorchBind objects and effect tokens have no form in the graph.",
            )
        elif isinstance(arg, ConstantArgument):
            add_literal_input(graph, arg.name, arg.value)
            bound.append(arg.value)
        elif isinstance(arg, TensorArgument):
            targets[arg.name] = graph.add_input(arg.name, sizes.type(placeholders[arg.name].meta["val"]))
            bound.append(targets[arg.name])
        else:
            size = sizes.size(placeholders[arg.name].meta["val"])
            graph.add_input(arg.name, ScalarType("int", size))
            bound.append(size)
    return bound


def _tensor(program: ExportedProgram, name: str) -> torch.Tensor:
    found = program.state_dict.get(name)
    return program.constants[name] if found is None else found
