"""What a model is, in a line: parameters, dtype, inputs."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from capture.ir import Graph
from capture.ir.types import DTYPE_NAMES, TensorType

__all__ = [
    "count_parameters",
    "describe_inputs",
    "graph_devices",
    "graph_inputs",
    "main_dtype",
]


def parameters_of(model: Any) -> list[Tensor]:
    """The trained tensors; of a graph its floating constants, which include buffers."""
    if isinstance(model, Graph):
        tensors = [c.tensor for c in model.constants.values() if c.tensor is not None]
        return [t for t in tensors if t.is_floating_point() or t.is_complex()]
    return list(model.parameters()) if isinstance(model, (nn.Module, ExportedProgram)) else []


def count_parameters(model: Any) -> int:
    """Elements of the trained tensors of a module, an exported program or a graph."""
    return sum(t.numel() for t in parameters_of(model))


def main_dtype(model: Any, inputs: Sequence[Any] = ()) -> str:
    """The dtype of most parameters, or of the floating inputs where there are none: ``float32``."""
    tensors = parameters_of(model) or [
        t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor) and t.is_floating_point()
    ]
    counts = Counter[str]()
    for tensor in tensors:
        counts[str(tensor.dtype).removeprefix("torch.")] += max(1, tensor.numel())
    return max(counts, key=lambda name: counts[name], default="")


def describe_inputs(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """``x [1, 3, 224, 224]`` for each tensor among the arguments; the dtype where it is not float32."""
    return [
        described(name, value.dtype, value.shape) if isinstance(value, Tensor) else f"{name}={value!r}"
        for name, value in _named_leaves(model, args, kwargs)
    ]


def graph_inputs(graph: Graph) -> list[str]:
    """The same of a graph's inputs, with the names of sizes that vary."""
    return [
        described(v.name, v.type.dtype, v.type.shape)
        if isinstance(v.type, TensorType)
        else f"{v.name} {v.type}"
        for v in graph.inputs
    ]


def graph_devices(graph: Graph) -> list[str]:
    """The devices that a graph's values lie on, those of its inputs first: ``["cpu"]``."""
    values = (*graph.inputs, *graph.constants.values(), *(v for n in graph.nodes for v in n.results))
    return list(dict.fromkeys(str(v.type.device) for v in values if isinstance(v.type, TensorType)))


def described(name: str, dtype: torch.dtype, shape: Sequence[Any]) -> str:
    kind = "" if dtype == torch.float32 else f" {DTYPE_NAMES.get(dtype, str(dtype))}"
    return f"{name} [{', '.join(map(str, shape))}]{kind}"


def _named_leaves(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in _named_arguments(model, args, kwargs).items():
        for path, leaf in pytree.tree_flatten_with_path(value)[0]:
            yield name + pytree.keystr(path), leaf


def _named_arguments(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names that the model gives them, or by position where it takes any number."""
    if isinstance(model, ExportedProgram):
        names = [str(name) for name in model.graph_signature.user_inputs]
        leaves = pytree.tree_leaves((tuple(args), dict(kwargs)))
        if len(names) == len(leaves):
            return dict(zip(names, leaves, strict=True))
    try:
        bound = inspect.signature(getattr(model, "forward", model)).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {**{f"arg{i}": value for i, value in enumerate(args)}, **kwargs}
    named = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and parameter.name in named:
            values = named.pop(parameter.name)
            named.update({f"{parameter.name}[{i}]": value for i, value in enumerate(values)})
        if parameter.kind is inspect.Parameter.VAR_KEYWORD and parameter.name in named:
            named.update(named.pop(parameter.name))
    return named
