"""torch.export -> Graph: the front end that keeps composite operators whole and sizes symbolic."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.frontends.fx_import import Constants, FxImporter
from capture.frontends.sizes import Sizes
from capture.frontends.source import Sources
from capture.ir import Graph, LiteralType, ScalarType, Value

__all__ = ["capture_exported", "capture_with_export", "quiet_torch"]

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
    with quiet_torch():
        program = torch.export.export(model, args, dict(kwargs), dynamic_shapes=dynamic_shapes, strict=strict)
    names = dim_names(model, args, kwargs, dynamic_shapes)
    graph = capture_exported(program, names)
    graph.name = type(model).__name__
    graph.frontend = f"torch.export ({'strict' if strict else 'non-strict'})"
    return graph


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Trace as in training, whatever mode the caller is in, and without torch's warnings about itself.

    With gradients off, torch.nn swaps whole Transformer layers for opaque fast paths.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


def capture_exported(program: ExportedProgram, names: Mapping[int, Mapping[int, str]] | None = None) -> Graph:
    """Convert an exported program.

    Args:
        names: the user's names of dynamic dims, by flat input and axis.

    Raises:
        CaptureError: the program holds something that the IR does not have.
    """
    with quiet_torch():
        program = program.run_decompositions({})
    graph = Graph()
    graph.frontend = "torch.export"
    sizes = Sizes(graph, {**program.range_constraints})
    constants = Constants(graph)
    targets: dict[str, Value] = {}
    inputs = _bind_inputs(graph, program, sizes, constants, targets, names or {})
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
    names: Mapping[int, Mapping[int, str]],
) -> list[Any]:
    """What each placeholder stands for; fills `targets` with what a mutation may name."""
    placeholders = {n.name: n for n in program.graph_module.graph.nodes if n.op == "placeholder"}
    specs = program.graph_signature.input_specs
    user = [s for s in specs if s.kind is InputKind.USER_INPUT]
    for position, spec in enumerate(user):
        if isinstance(spec.arg, (TensorArgument, SymIntArgument)):
            node = placeholders[spec.arg.name]
            sizes.name_input(node.name, node.meta["val"], names.get(position))
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
            graph.add_input(arg.name, LiteralType(arg.value))
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


def dim_names(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> dict[int, dict[int, str]]:
    """The names that the user gave to dims: by position among the flat inputs, then by axis."""
    if dynamic_shapes is None:
        return {}
    if hasattr(dynamic_shapes, "dynamic_shapes"):  # torch.export.ShapesCollection
        dynamic_shapes = dynamic_shapes.dynamic_shapes(model, args, kwargs)
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    by_parameter = dynamic_shapes
    if not isinstance(dynamic_shapes, Mapping):
        by_parameter = dict(zip(bound, dynamic_shapes, strict=False))
    names_of: dict[int, dict[int, str]] = {}
    for parameter, value in bound.items():
        _walk(value, by_parameter.get(parameter), names_of)
    flat = pytree.tree_leaves((args, dict(kwargs)))
    return {i: names_of[id(leaf)] for i, leaf in enumerate(flat) if id(leaf) in names_of}


def _walk(value: Any, spec: Any, found: dict[int, dict[int, str]]) -> None:
    """Note the names in `spec`, whose structure follows that of `value`."""
    if isinstance(value, (torch.Tensor, int)):
        axes = {-1: spec} if isinstance(value, int) else spec
        pairs = axes.items() if isinstance(axes, Mapping) else enumerate(axes or ())
        named = {axis: _dim_name(dim) for axis, dim in pairs}
        found[id(value)] = {axis: name for axis, name in named.items() if name}
    elif isinstance(value, Mapping) and isinstance(spec, Mapping):
        for key, inner in value.items():
            _walk(inner, spec.get(key), found)
    elif isinstance(value, (list, tuple)) and isinstance(spec, (list, tuple)):
        for inner, inner_spec in zip(value, spec, strict=False):
            _walk(inner, inner_spec, found)


def _dim_name(dim: Any) -> str | None:
    root = getattr(dim, "root", dim)  # of 2 * Dim("half")
    name = getattr(root, "__name__", None)
    return name if isinstance(name, str) else None
