"""What the user says about varying sizes: torch.export's `dynamic_shapes`, laid beside the flat inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from capture.errors import UsageError

__all__ = ["Axis", "complete_shapes", "flat_axes", "grow", "parameter_names"]


@dataclass(frozen=True)
class Axis:
    """One varying axis.

    Attributes:
        name: the dim's name, or None; for a derived one (``2 * Dim("half")``) its root's.
        lower, upper: bounds of the named dim; upper None means unbounded.
        of_root: the axis' size from the named dim's, where derived.
        strict: whether the size must not turn out to be fixed (false for `Dim.AUTO`).
    """

    name: str | None = None
    lower: int = 1
    upper: int | None = None
    of_root: Callable[[int], int] | None = None
    strict: bool = True

    def size(self, root: int) -> int:
        return root if self.of_root is None else int(self.of_root(root))


def flat_axes(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> list[dict[int, Axis]]:
    """For each flat input its varying axes; -1 stands for the value of an int.

    Raises:
        UsageError: `dynamic_shapes` does not have the structure of the inputs.
    """
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    if not dynamic_shapes:
        return [{} for _ in leaves]
    if hasattr(dynamic_shapes, "dynamic_shapes"):  # torch.export.ShapesCollection
        dynamic_shapes = dynamic_shapes.dynamic_shapes(model, args, dict(kwargs))
    names = parameter_names(model, args, kwargs)
    specs = dynamic_shapes
    if not isinstance(specs, Mapping):
        specs = dict(zip(dict.fromkeys(name for name, _ in names), specs, strict=False))
    elif unknown := set(specs) - {part for name in names for part in name if isinstance(part, str)}:
        raise _mismatch(f"the model has no input {sorted(map(str, unknown))[0]!r}", [n for n, _ in names])
    found: list[dict[int, Axis]] = []
    for (name, item), value in zip(names, [*args, *kwargs.values()], strict=True):
        spec = specs.get(name)
        if item is not None:
            spec = spec[item] if spec is not None else specs.get(item)
        found += _walk(value, spec, name)
    return found


def complete_shapes(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> Any:
    """The same, with a None for each input that it leaves out: torch.export wants all of them named."""
    if not isinstance(dynamic_shapes, Mapping):
        return dynamic_shapes
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    rest = {k: v for k, v in dynamic_shapes.items() if k not in bound}
    completed = {
        name: pytree.tree_map(lambda _: None, value)
        if dynamic_shapes.get(name) is None
        else dynamic_shapes[name]
        for name, value in bound.items()
    }
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD and parameter.name in bound and rest:
            completed[parameter.name] = {key: rest.get(key) for key in bound[parameter.name]}
    return completed


def parameter_names(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    """For each argument its parameter's name, and its place in it where that is ``*args`` or ``**kwargs``."""
    names: list[tuple[str, Any]] = []
    parameters = list(inspect.signature(model.forward).parameters.values())
    keyword = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), "kwargs")
    known = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for position in range(len(args)):
        parameter = parameters[min(position, len(parameters) - 1)]
        variadic = next(
            (i for i, p in enumerate(parameters[: position + 1]) if p.kind is p.VAR_POSITIONAL), None
        )
        if variadic is None:
            names.append((parameter.name, None))
        else:
            names.append((parameters[variadic].name, position - variadic))
    return names + [(key, None) if key in known else (keyword, key) for key in kwargs]


def _walk(value: Any, spec: Any, where: str) -> list[dict[int, Axis]]:
    """The axes of each leaf of `value`; the structure of `spec` follows that of `value`."""
    if isinstance(value, torch.Tensor):
        return [_tensor_axes(value, spec, where)]
    if isinstance(value, int) and not isinstance(value, bool) and (axis := _axis(spec)):
        return [{-1: axis}]
    children, tree = pytree.tree_flatten(value, is_leaf=lambda v: v is not value)
    if tree.is_leaf():
        return [{}]
    if spec is None:
        return [{} for _ in pytree.tree_leaves(value)]
    if isinstance(value, Mapping) and isinstance(spec, Mapping):
        specs: Sequence[Any] = [spec.get(key) for key in value]
    elif isinstance(spec, (list, tuple)) and len(spec) == len(children):
        specs = spec
    else:
        raise _mismatch(f"{where} has another structure than its dynamic shapes")
    return [axes for v, s in zip(children, specs, strict=True) for axes in _walk(v, s, where)]


def _tensor_axes(value: torch.Tensor, spec: Any, where: str) -> dict[int, Axis]:
    if spec is None:
        return {}
    pairs = spec.items() if isinstance(spec, Mapping) else enumerate(spec)
    axes: dict[int, Axis] = {}
    for position, dim in pairs:
        if not isinstance(position, int) or not -value.dim() <= position < value.dim():
            raise _mismatch(f"{where} has {value.dim()} axes; {position!r} is none of them")
        if axis := _axis(dim):
            _check_range(value.shape[position], axis, f"the axis {position} of {where}")
            axes[position % value.dim()] = axis
    return axes


def _check_range(size: Any, axis: Axis, where: str) -> None:
    """The example input has to be one of the sizes that are asked for."""
    if axis.name is None or axis.of_root is not None or not isinstance(size, int):
        return
    if size < axis.lower or (axis.upper is not None and size > axis.upper):
        bounds = f"{axis.lower}..{'' if axis.upper is None else axis.upper}"
        raise UsageError(
            f"the example input lies outside of the range of {axis.name}",
            why=f"{where} has the size {size}; {axis.name} is to be {bounds}",
            hint=f"an example input with a size in {bounds}, or a range that holds {size}",
        )


def _axis(dim: Any) -> Axis | None:
    if dim is None or isinstance(dim, int):
        return None
    kind = getattr(getattr(dim, "type", None), "name", None)
    if kind is not None:  # Dim.STATIC, Dim.AUTO, Dim.DYNAMIC
        return None if kind == "STATIC" else Axis(None, *_bounds(dim), strict=kind == "DYNAMIC")
    root = getattr(dim, "root", dim)
    if not hasattr(root, "__name__"):
        raise _mismatch(f"{dim!r} is no torch.export.Dim")
    return Axis(root.__name__, *_bounds(root), of_root=getattr(dim, "fn", None))


def _bounds(dim: Any) -> tuple[int, int | None]:
    upper = dim.max if isinstance(dim.max, int) else None  # torch writes infinity as int_oo
    unsaid = 2 if dim.min is None else 1  # a hint without bounds stands for "2 or more" in torch.export
    return max(1, dim.min or unsaid), upper


def _mismatch(what: str, known: Sequence[str] = ()) -> UsageError:
    name = next(iter(known), "x")
    hint = (
        f"--dynamic {name}:0=batch[1..64]; "
        f"in Python dynamic_shapes={{{name!r}: {{0: torch.export.Dim('batch', min=1, max=64)}}}}"
    )
    why = f"its inputs are {', '.join(dict.fromkeys(known))}" if known else None
    return UsageError(what, why=why, hint=hint)


def grow(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], axes: Sequence[Mapping[int, Axis]]
) -> tuple[Any, Any]:
    """Example inputs whose varying axes are at least 2 long, by repeating what they hold.

    With a size of 1 a tracer cannot tell "this varies" from "this is broadcast", and fixes it.
    """
    leaves, tree = pytree.tree_flatten((tuple(args), dict(kwargs)))
    roots: dict[str, int] = {}
    for leaf, varying in zip(leaves, axes, strict=True):
        for position, axis in varying.items():
            size = leaf if position < 0 else leaf.shape[position]
            if axis.strict and size < 2:
                smallest = max(2, axis.lower)
                roots[axis.name or ""] = smallest if axis.upper is None else min(smallest, axis.upper)
    grown = []
    for leaf, varying in zip(leaves, axes, strict=True):
        for position, axis in varying.items():
            if (axis.name or "") not in roots:
                continue
            wanted = axis.size(roots[axis.name or ""])
            if position < 0:
                leaf = wanted
            elif axis.name is not None or leaf.shape[position] < 2:
                leaf = _resize(leaf, position, wanted)
        grown.append(leaf)
    return pytree.tree_unflatten(grown, tree)


def _resize(tensor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    old = tensor.shape[axis]
    if old == size:
        return tensor
    if old == 0:
        return tensor.new_zeros([size if i == axis else n for i, n in enumerate(tensor.shape)])
    return tensor.detach().index_select(axis, torch.arange(size, device=tensor.device) % old)
