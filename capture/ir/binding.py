"""From flat inputs to the values of the symbolic sizes: every input must be what the graph takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch

from capture.errors import GuardError
from capture.ir import dims
from capture.ir import graph as ir
from capture.ir.types import LiteralType, ScalarType, TensorType, type_of

_NUMBERS: dict[str, tuple[type, ...]] = {
    "int": (int, torch.SymInt),
    "float": (float, int, torch.SymFloat, torch.SymInt),
    "bool": (bool, torch.SymBool),
    "none": (type(None),),
}


def bind_inputs(graph: ir.Graph, flat: Sequence[Any], *, any_float: bool = False) -> dict[str, int]:
    """The value of each symbolic size that the inputs tell, by name.

    Args:
        flat: one leaf per input, in order.
        any_float: whether floating tensors may come in another floating dtype than the input's.

    Raises:
        GuardError: an input has another dtype, rank or size than the graph's, was baked in with another
            value, or its sizes contradict each other or lie outside their ranges.
    """
    for value, given in zip(graph.inputs, flat, strict=True):
        _check_kind(value, given, any_float)
    env: dict[str, int] = {}
    told: dict[str, str] = {}
    sizes = [size for value, given in zip(graph.inputs, flat, strict=True) for size in _sizes(value, given)]
    while _solve_one(sizes, env, told):
        pass
    for dim, size, place in sizes:
        names = dims.free_names(dim)
        if names <= set(env) and (expected := dims.evaluate(dim, env)) != size:
            needed = f"{dims.format_dim(dim)} = {expected}" if names else str(expected)
            why = ", ".join(f"{name} is {env[name]} by {told[name]}" for name in sorted(names))
            raise GuardError(f"{place} is {size}, not {needed}", why=why or None)
    for name, bounds in graph.dims.items():
        if name in env and env[name] not in bounds:
            raise GuardError(
                f"the size {name} is {env[name]}, outside of its range {bounds}",
                why=f"told by {told[name]}",
                hint="capture with a wider range of this dim",
            )
    return env


Size = tuple[dims.Dim, int, str]  # what the type says, what was given, and where: "dim 0 of x"


def _sizes(value: ir.Value, given: Any) -> Iterator[Size]:
    if isinstance(value.type, TensorType) and isinstance(given, torch.Tensor):
        for axis, (dim, size) in enumerate(zip(value.type.shape, given.shape, strict=False)):
            yield dim, size, f"dim {axis} of {value.name}"
    elif isinstance(value.type, ScalarType) and value.type.expr is not None:
        yield value.type.expr, given, value.name


def _solve_one(sizes: list[Size], env: dict[str, int], told: dict[str, str]) -> bool:
    """Learn a name from the first size in which it is the only unknown one. False where there is none."""
    for dim, size, place in sizes:
        found = dims.unknown(dim, env)
        slope = dims.evaluate(found[1], env) if found else 0
        if found is None or slope == 0:
            continue
        solved, left = divmod(size - dims.evaluate(found[2], env), slope)
        if left:
            raise GuardError(
                f"{place} is {size}, which is not {dims.format_dim(dim)} for any {found[0]}",
                hint=f"a size that is {dims.format_dim(dim)}",
            )
        env[found[0]], told[found[0]] = solved, place
        return True
    return False


def _check_kind(value: ir.Value, given: Any, any_float: bool) -> None:
    """Dtype and rank of a tensor, kind of a scalar, value of a literal; sizes come later."""
    wanted = value.type
    if isinstance(wanted, LiteralType):
        if not _equal(wanted.value, given):
            raise GuardError(
                f"the input {value.name} is {given!r}, the graph was captured for {wanted.value!r}",
                hint="capture it anew for this value",
            )
    elif isinstance(wanted, ScalarType):
        if not isinstance(given, _NUMBERS[wanted.kind]):
            raise GuardError(f"the input {value.name} is a {type(given).__name__}, the graph takes {wanted}")
    elif not isinstance(given, torch.Tensor):
        raise GuardError(f"the input {value.name} is a {type(given).__name__}, the graph takes {wanted}")
    else:
        floats = any_float and given.dtype.is_floating_point and wanted.dtype.is_floating_point
        if given.dim() != wanted.rank or (given.dtype != wanted.dtype and not floats):
            raise GuardError(f"the input {value.name} is {type_of(given)}, the graph takes {wanted}")


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or (a != a and b != b))


def bind_dims(value: ir.Value, given: Any, env: dict[str, int]) -> None:
    """Learn the sizes that a node's result tells: those that depend on data."""
    for dim, size, _ in _sizes(value, given):
        solve_dim(dim, size, env)


def solve_dim(dim: dims.Dim, size: int, env: dict[str, int]) -> None:
    """Add the dim's only unknown name to `env`, where `dim` is linear in it with a solution in integers."""
    if isinstance(dim, int):
        return
    if isinstance(dim, sympy.Symbol):
        env.setdefault(dim.name, int(size))
    elif found := dims.unknown(dim, env):
        slope = dims.evaluate(found[1], env)
        solved, left = divmod(int(size) - dims.evaluate(found[2], env), slope) if slope else (0, 1)
        if not left:
            env[found[0]] = solved


__all__ = ["bind_dims", "bind_inputs", "solve_dim"]
