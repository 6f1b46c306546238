"""What a compiled callable holds for: the type of each input, the identity and version of each weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from capture.errors import GuardError
from capture.ir import Constant, Graph, LiteralType, Range, ScalarType, TensorType, Value, dims
from capture.ir.interpreter import solve_dim


class InputGuards:
    """Checks flat inputs against a graph's input types."""

    def __init__(self, graph: Graph) -> None:
        self.inputs = list(graph.inputs)
        self.ranges: dict[str, Range] = dict(graph.dims)
        self._fast = [
            (torch.Size(v.type.shape), v.type.dtype, v.type.device)
            if isinstance(v.type, TensorType) and v.type.is_static
            else None
            for v in self.inputs
        ]
        self._static = None not in self._fast

    def check(self, flat: Sequence[Any]) -> None:
        """Let fitting inputs pass.

        Raises:
            GuardError: names the first input that does not fit, what was captured and what was given.
        """
        if self._static and len(flat) == len(self._fast):
            for given, wanted in zip(flat, self._fast, strict=True):
                if not isinstance(given, torch.Tensor) or (given.shape, given.dtype, given.device) != wanted:
                    break
            else:
                return
        self._explain(flat)

    def _explain(self, flat: Sequence[Any]) -> None:
        """The slow and thorough check; the only one where shapes are dynamic."""
        if len(flat) != len(self.inputs):
            names = ", ".join(v.name for v in self.inputs)
            raise GuardError(
                f"{len(self.inputs)} inputs are needed, {len(flat)} were given", why=f"inputs: {names}"
            )
        env: dict[str, int] = {}
        for value, given in zip(self.inputs, flat, strict=True):
            self._check_kind(value, given)
            if isinstance(value.type, TensorType):
                for wanted, size in zip(value.type.shape, given.shape, strict=True):
                    solve_dim(wanted, size, env)
            elif isinstance(value.type, ScalarType) and value.type.expr is not None:
                solve_dim(value.type.expr, given, env)
        for value, given in zip(self.inputs, flat, strict=True):
            if isinstance(value.type, TensorType):
                self._check_shape(value, value.type, given, env)
        for name, size in env.items():
            if name in self.ranges and size not in self.ranges[name]:
                raise GuardError(
                    f"the size {name} is {size}, outside of its range {self.ranges[name]}",
                    hint="capture with a wider range in dynamic_shapes",
                )

    def _check_kind(self, value: Value, given: Any) -> None:
        type_ = value.type
        if isinstance(type_, LiteralType):
            if type(given) is not type(type_.value) or given != type_.value:
                raise GuardError(
                    f"the input {value.name} was {type_.value!r} when captured, it is {given!r} now",
                    why="capture bakes in arguments that are no tensors",
                    hint="compile once for each value",
                )
            return
        if isinstance(type_, ScalarType):
            if not isinstance(given, (int, float, bool)):
                raise GuardError(f"the input {value.name} must be {type_.kind}, not {type(given).__name__}")
            return
        if not isinstance(given, torch.Tensor):
            raise GuardError(f"the input {value.name} must be a tensor {type_}, not {type(given).__name__}")
        for what, wanted, found in (
            ("dtype", type_.dtype, given.dtype),
            ("device", type_.device, given.device),
            ("number of dimensions", type_.rank, given.dim()),
        ):
            if wanted != found:
                shown = f"{str(given.dtype).removeprefix('torch.')}{list(given.shape)}"
                raise GuardError(
                    f"the input {value.name} has the wrong {what}: {found}, not {wanted}",
                    why=f"captured {type_}, given {shown} on {given.device}",
                    hint=_conversion(value.name, what, wanted),
                )

    def _check_shape(self, value: Value, type_: TensorType, given: torch.Tensor, env: dict[str, int]) -> None:
        for axis, (wanted, size) in enumerate(zip(type_.shape, given.shape, strict=True)):
            free = dims.free_names(wanted)
            expected = dims.evaluate(wanted, env) if free <= env.keys() else None
            if expected != size:
                said = f"{dims.format_dim(wanted)} = {expected}" if free else str(expected)
                raise GuardError(
                    f"the input {value.name} has size {size} in dimension {axis}, {said} is needed",
                    why=f"captured {type_}, given {list(given.shape)}",
                    hint=None if free else "capture with dynamic_shapes for a size that varies",
                )


def _conversion(name: str, what: str, wanted: Any) -> str | None:
    if what == "number of dimensions":
        return None
    return f'{name}.to("{wanted}")' if what == "device" else f"{name}.to({wanted})"


class WeightGuards:
    """Notices when a frozen weight is updated in place or swapped, so that no call ever uses a stale one."""

    def __init__(self, graph: Graph, module: torch.nn.Module | None) -> None:
        written = {target.name for target in graph.writebacks if isinstance(target, Constant)}
        places = {
            name: place
            for name in graph.constants
            if module is not None and name not in written and (place := _place(module, name)) is not None
        }
        self._places = places
        # (owner, key, tensor, version); inference tensors have no version and can only be swapped.
        held = [(owner, key, owner[key]) for owner, key in places.values()]
        self._versioned = [(o, k, t, t._version) for o, k, t in held if not t.is_inference()]
        self._unversioned = [(o, k, t) for o, k, t in held if t.is_inference()]

    @property
    def fresh(self) -> bool:
        """Whether every frozen weight is the tensor it was, at the version it had."""
        return all(o.get(k) is t and t._version == v for o, k, t, v in self._versioned) and all(
            o.get(k) is t for o, k, t in self._unversioned
        )

    def current(self) -> dict[str, torch.Tensor]:
        """The weights as the module holds them now, by constant name.

        Raises:
            GuardError: a weight was deleted from the module.
        """
        gone = [
            name
            for name, (owner, key) in self._places.items()
            if not isinstance(owner.get(key), torch.Tensor)
        ]
        if gone:
            raise GuardError(
                f"the weight {gone[0]} was deleted from the module", hint="compile the module again"
            )
        return {name: owner[key].detach() for name, (owner, key) in self._places.items()}


def _place(module: torch.nn.Module, path: str) -> tuple[dict[str, Any], str] | None:
    """The dict and key under which a module holds a parameter or buffer, or None."""
    parent, _, key = path.rpartition(".")
    try:
        owner = module.get_submodule(parent)
    except AttributeError:
        return None
    for store in (owner._parameters, owner._buffers):
        if isinstance(store.get(key), torch.Tensor):
            return store, key
    return None
