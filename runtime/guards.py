"""What a compiled callable holds for: the type of each input, and separate memory for what is written to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from capture.errors import GuardError
from capture.ir import Graph, LiteralType, Range, ScalarType, TensorType, Value, dims
from capture.ir.interpreter import solve_dim
from capture.ir.memory import check_layouts, check_separate
from capture.ir.types import DTYPE_NAMES


class InputGuards:
    """Checks flat inputs against a graph's input types."""

    def __init__(self, graph: Graph) -> None:
        self.inputs = list(graph.inputs)
        self.ranges: dict[str, Range] = dict(graph.dims)
        self._fast = [
            (torch.Size(v.type.shape), v.type.dtype, v.type.device, torch.strided)
            if isinstance(v.type, TensorType) and v.type.is_static
            else None
            for v in self.inputs
        ]
        self._static = None not in self._fast
        self._graph = graph
        self._constants = {_storage(c.tensor) for c in graph.constants.values() if c.tensor is not None}

    def check(self, flat: Sequence[Any]) -> None:
        """Let fitting inputs pass.

        Raises:
            GuardError: names the first input that does not fit, what was captured and what was given; or an
                input that shares memory with what the graph writes to, or that it writes to and that lies in
                memory in another way.
        """
        if self._static and len(flat) == len(self._fast):
            for given, wanted in zip(flat, self._fast, strict=True):
                if not isinstance(given, torch.Tensor):
                    break
                if (given.shape, given.dtype, given.device, given.layout) != wanted:
                    break
            else:
                self._check_written(flat)
                return
        self._explain(flat)
        self._check_written(flat)

    def _check_written(self, flat: Sequence[Any]) -> None:
        """Layouts; and overlaps, exactly, but only where two storages are one, or an input's a constant's."""
        if not self._graph.writebacks:
            return
        check_layouts(self._graph, flat)
        inputs = [_storage(given) for given in flat if isinstance(given, torch.Tensor)]
        if len(set(inputs)) < len(inputs) or not self._constants.isdisjoint(inputs):
            check_separate(self._graph, flat)

    def _explain(self, flat: Sequence[Any]) -> None:
        """The slow and thorough check; the only one where shapes are dynamic."""
        if len(flat) != len(self.inputs):
            names = ", ".join(v.name for v in self.inputs)
            raise GuardError(
                f"{len(self.inputs)} inputs are needed, {len(flat)} given", why=f"captured: {names or 'none'}"
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
            if repr(given) != repr(type_.value):  # so that NaN is itself, and True is not 1
                raise GuardError(
                    f"the input {value.name} was {type_.value!r} when captured, it is {given!r} now",
                    why="capture bakes in arguments that are no tensors",
                    hint="compile once for each value",
                )
            return
        if isinstance(type_, ScalarType):
            if type(given).__name__ != type_.kind:
                raise GuardError(f"the input {value.name} must be of type {type_.kind}, it is {given!r}")
            return
        if not isinstance(given, torch.Tensor):
            raise GuardError(f"the input {value.name} must be a tensor {type_}, not {type(given).__name__}")
        for what, wanted, found in (
            ("dtype", type_.dtype, given.dtype),
            ("device", type_.device, given.device),
            ("layout", torch.strided, given.layout),
            ("number of dimensions", type_.rank, given.dim()),
        ):
            if wanted != found:
                raise GuardError(
                    f"the input {value.name} has the wrong {what}: {found}, not {wanted}",
                    why=f"captured {type_}, given {DTYPE_NAMES.get(given.dtype)}{list(given.shape)}"
                    f" on {given.device}",
                    hint=_conversion(value.name, what, wanted),
                )

    def _check_shape(self, value: Value, type_: TensorType, given: torch.Tensor, env: dict[str, int]) -> None:
        for axis, (wanted, size) in enumerate(zip(type_.shape, given.shape, strict=True)):
            free = dims.free_names(wanted)
            expected = dims.evaluate(wanted, env) if free <= env.keys() else None
            if expected != size:
                said = dims.format_dim(wanted)
                if free and expected is not None:
                    said += f" = {expected}"
                raise GuardError(
                    f"the input {value.name} has size {size} in dimension {axis}, {said} is needed",
                    why=f"captured {type_}, given {list(given.shape)}",
                    hint=None if free else "capture with dynamic_shapes for a size that varies",
                )


def _conversion(name: str, what: str, wanted: Any) -> str | None:
    conversions = {"device": f'{name}.to("{wanted}")', "dtype": f"{name}.to({wanted})"}
    return conversions.get(what, f"{name}.to_dense()" if what == "layout" else None)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
