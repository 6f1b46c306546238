"""Names of outputs, from the structure of what the model returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils._pytree import TreeSpec

from capture.ir import Graph
from capture.ir.graph import Value
from capture.ir.types import LiteralType, ScalarType, TensorType


def output_names(graph: Graph) -> dict[int, str]:
    """Position among the results -> name: a dict's or dataclass's keys, else "output", "output_1", ...

    Results that are None or text have no form in ONNX and are left out.
    """
    paths = list(_paths(graph.out_spec)) if graph.out_spec is not None else [()] * len(graph.results)
    names: dict[int, str] = {}
    taken = {v.name for v in graph.inputs}
    for i, (result, path) in enumerate(zip(graph.results, paths, strict=True)):
        if not _is_number(result):
            continue
        keyed = any(isinstance(key, str) for key in path)
        name = ".".join(map(str, path)) if keyed else f"output_{i}" if i else "output"
        if name[:1].isdigit():
            name = f"output_{name}"
        while name in taken:
            name += "_out"
        taken.add(name)
        names[i] = name
    return names


def _is_number(result: Any) -> bool:
    type_ = result.type if isinstance(result, Value) else LiteralType(result)
    if isinstance(type_, LiteralType):
        return type_.value is not None and not isinstance(type_.value, str)
    return isinstance(type_, TensorType) or (isinstance(type_, ScalarType) and type_.kind != "none")


def _paths(spec: TreeSpec, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path of keys and positions to each leaf."""
    children = spec.children() if callable(getattr(spec, "children", None)) else spec.children_specs
    if spec.is_leaf():
        yield path
        return
    for key, child in zip(_keys(spec, len(children)), children, strict=True):
        yield from _paths(child, (*path, key))


def _keys(spec: TreeSpec, count: int) -> list[Any]:
    """Keys of a mapping, fields of a named tuple or dataclass, else positions."""
    context = getattr(spec.context, "_fields", spec.context)  # a named tuple's context is its class
    candidates = [context, *context] if isinstance(context, (list, tuple)) else []
    for names in candidates:  # a dataclass's context holds the names of its fields as one of its items
        if (
            isinstance(names, (list, tuple))
            and len(names) == count
            and all(isinstance(n, str) for n in names)
        ):
            return list(names)
    return list(range(count))


__all__ = ["output_names"]
