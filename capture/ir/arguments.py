"""From a call's arguments to a graph's flat inputs: the structure must be the captured one.

Dictionaries may come in another order, keyword arguments too, and top-level tensors by position or by name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils import _pytree as pytree

from capture.errors import GuardError

if TYPE_CHECKING:
    from capture.ir.graph import Graph

__all__ = ["flatten_inputs"]

_DICTS = (dict, OrderedDict)


def flatten_inputs(graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """One leaf per input, in order.

    Raises:
        GuardError: the arguments have another structure than those that were captured.
    """
    names = [v.name for v in graph.inputs]
    spec = graph.in_spec
    if spec is None:
        return _in_order(names, len(names), args, kwargs)
    flat, given = pytree.tree_flatten((tuple(args), dict(kwargs)))
    if given == spec:
        return flat
    positional, keywords = spec.child(0), spec.child(1)
    parameters = _parameters(positional, keywords, names)
    values = _in_order(parameters, positional.num_children, args, kwargs)
    children = [part.child(i) for part in (positional, keywords) for i in range(part.num_children)]
    flat = []
    for name, child, value in zip(parameters, children, values, strict=True):
        flat += _leaves(child, value, name)
    return flat


def _parameters(positional: Any, keywords: Any, names: Sequence[str]) -> list[str]:
    """A name for each argument: a tensor's is its input's, a nested positional one goes by its place."""
    found, leaf = [], 0
    for i in range(positional.num_children):
        child = positional.child(i)
        found.append(names[leaf] if child.is_leaf() else f"argument {i}")
        leaf += child.num_leaves
    return found + list(keywords.context)


def _in_order(
    parameters: Sequence[str], positional: int, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """The arguments in the order of `parameters`, of which the first ones may be given by position."""
    rest = parameters[len(args) :]
    if len(args) > positional or set(rest) != set(kwargs):
        wanted = [*parameters[:positional], *(f"{name}=" for name in parameters[positional:])]
        given = [f"{len(args)} by position"] * bool(args) + [f"{name}=" for name in kwargs]
        raise GuardError(
            f"{_inputs(len(parameters))} needed, {len(args) + len(kwargs)} given",
            why=f"captured: {', '.join(wanted) or 'none'}; given: {', '.join(given) or 'none'}",
            hint="call it with the arguments that it was captured with",
        )
    return [*args, *(kwargs[name] for name in rest)]


def _leaves(spec: Any, value: Any, path: str) -> list[Any]:
    """The leaves of `value` in the order of `spec`."""
    flat, given = pytree.tree_flatten(value)
    if given == spec:
        return flat
    children = [spec.child(i) for i in range(spec.num_children)]
    if spec.type is not None and given.type is spec.type:
        if spec.type in _DICTS and set(spec.context) == set(value):
            pairs = zip(spec.context, children, strict=True)
            return [leaf for key, child in pairs for leaf in _leaves(child, value[key], f"{path}[{key!r}]")]
        if spec.type in (tuple, list) and len(value) == len(children):
            each = enumerate(zip(children, value, strict=True))
            return [leaf for i, (child, v) in each for leaf in _leaves(child, v, f"{path}[{i}]")]
    raise GuardError(
        f"the input {path} has another structure: {_described(given)}, not {_described(spec)}",
        hint="compile once for each structure of the inputs",
    )


def _described(spec: Any) -> str:
    """``a tensor``, ``a tuple of 2``, ``a dict of 'a', 'b'``."""
    if spec.is_leaf():
        return "a tensor or a number"
    kind = (spec.context if isinstance(spec.context, type) else spec.type).__name__  # a namedtuple's own
    if spec.type in _DICTS:
        return f"a {kind} of {', '.join(map(repr, spec.context)) if spec.context else 'nothing'}"
    return f"a {kind} of {spec.num_children}"


def _inputs(count: int) -> str:
    return "1 input is" if count == 1 else f"{count} inputs are"
