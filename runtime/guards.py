"""What a compiled callable holds for: the type of each input, the identity and version of each weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from capture.errors import GuardError
from capture.ir import Constant, Graph, LiteralType, Range, ScalarType, TensorType, Value, dims
from capture.ir.interpreter import solve_dim
from capture.ir.types import DTYPE_NAMES, type_of


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
        written = set(graph.writebacks)
        self._written = [i for i, v in enumerate(self.inputs) if v in written]

    def check(self, flat: Sequence[Any]) -> None:
        """Let fitting inputs pass.

        Raises:
            GuardError: names the first input that does not fit, what was captured and what was given.
        """
        if self._static and len(flat) == len(self._fast):
            for given, wanted in zip(flat, self._fast, strict=True):
                if not isinstance(given, torch.Tensor):
                    break
                if (given.shape, given.dtype, given.device, given.layout) != wanted:
                    break
            else:
                self._check_overlap(flat)
                return
        self._explain(flat)
        self._check_overlap(flat)

    def _check_overlap(self, flat: Sequence[Any]) -> None:
        """An input that the graph writes to may share memory with no other: the graph would not notice."""
        for i in self._written:
            for j, other in enumerate(flat):
                if i != j and isinstance(other, torch.Tensor) and _share_memory(flat[i], other):
                    names = f"{self.inputs[i].name} and {self.inputs[j].name}"
                    raise GuardError(
                        f"the inputs {names} share memory",
                        why=f"the model writes to {self.inputs[i].name}; captured on separate tensors",
                        hint="pass a clone",
                    )

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


def _share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    one, other = a.untyped_storage(), b.untyped_storage()
    return one.nbytes() > 0 and one.data_ptr() == other.data_ptr()


class WeightGuards:
    """Notices when a frozen weight is updated in place or swapped, so that no call ever uses a stale one.

    Watched are the identity, the memory and the version of each tensor, in every place where the module holds
    it, and which submodules lie on the way there. What leaves no trace is not seen: an update through
    ``weight.data``, or of an inference tensor.

    Args:
        graph: its constants are what is frozen; those that it writes itself may change.
        module: where they come from, or None where the graph's own tensors are the source.
    """

    def __init__(self, graph: Graph, module: torch.nn.Module | None) -> None:
        self._graph, self._module = graph, module
        self._places = _places(graph, module) if module is not None else {}
        self._modules = [
            (owner, key, owner[key])
            for owner, key in _ways(module, (path for paths in self._places.values() for path in paths))
        ]
        written = {target.name for target in graph.writebacks if isinstance(target, Constant)}
        self._versioned: list[tuple[dict[str, Any], str, torch.Tensor, int, int]] = []
        self._unversioned: list[tuple[dict[str, Any], str, torch.Tensor, int]] = []
        self._bound: list[tuple[Constant, torch.Tensor, int, int]] = []
        for name, constant in graph.constants.items():
            for path in self._places.get(name, ()):
                owner, key = _place(module, path)
                self._watch(owner, key, name in written)
            tensor = constant.tensor
            if name not in self._places and tensor is not None:
                still = -1 if name in written or tensor.is_inference() else tensor._version
                self._bound.append((constant, tensor, tensor.data_ptr(), still))

    def _watch(self, owner: dict[str, Any], key: str, written: bool) -> None:
        tensor = owner[key]
        if written or tensor.is_inference():  # an inference tensor has no version
            self._unversioned.append((owner, key, tensor, tensor.data_ptr()))
        else:
            self._versioned.append((owner, key, tensor, tensor.data_ptr(), tensor._version))

    @property
    def fresh(self) -> bool:
        """Whether every frozen weight is the tensor it was, at the version it had."""
        for owner, key, tensor, memory, version in self._versioned:
            if owner.get(key) is not tensor or tensor._version != version or tensor.data_ptr() != memory:
                return False
        for owner, key, tensor, memory in self._unversioned:
            if owner.get(key) is not tensor or tensor.data_ptr() != memory:
                return False
        for constant, tensor, memory, version in self._bound:
            if constant.tensor is not tensor or tensor.data_ptr() != memory:
                return False
            if version >= 0 and tensor._version != version:
                return False
        return all(owner.get(key) is module for owner, key, module in self._modules)

    def current(self) -> dict[str, torch.Tensor]:
        """The weights as they are now, by constant name.

        Raises:
            GuardError: a weight or a submodule was deleted or replaced, or has another dtype or shape, or
                weights that were one tensor are several now.
        """
        for owner, key, module in self._modules:
            if owner.get(key) is not module:
                raise GuardError(f"the submodule {key} was replaced", hint="compile the module again")
        found = {name: c.tensor for name, c in self._graph.constants.items() if c.tensor is not None}
        for name, paths in self._places.items():
            found[name] = self._current(name, paths)
        for name, tensor in found.items():
            wanted = self._graph.constants[name].tensor_type
            if not wanted.same_value_as(type_of(tensor)):
                raise GuardError(
                    f"the weight {name} is {type_of(tensor)} now, it was {wanted}",
                    hint="compile the module again",
                )
        return found

    def _current(self, name: str, paths: list[str]) -> torch.Tensor:
        tensors = [owner.get(key) for owner, key in (_place(self._module, path) for path in paths)]
        for path, tensor in zip(paths, tensors, strict=True):
            if not isinstance(tensor, torch.Tensor):
                raise GuardError(f"the weight {path} was deleted", hint="compile the module again")
            if not _is_one(tensor, tensors[0]):
                raise GuardError(
                    f"the weights {paths[0]} and {path} were one tensor when captured, they are two now",
                    hint="compile the module again",
                )
        return tensors[0].detach()


def _places(graph: Graph, module: torch.nn.Module) -> dict[str, list[str]]:
    """The paths at which the module holds each constant: several where weights are tied."""
    held: dict[int, list[str]] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for store in _stores(owner):
            for key, tensor in store.items():
                if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                    held.setdefault(tensor.data_ptr(), []).append(f"{prefix}.{key}".removeprefix("."))
    found: dict[str, list[str]] = {}
    for name, constant in graph.constants.items():
        if constant.tensor is None:
            continue
        paths = held.get(constant.tensor.data_ptr(), [])
        same = [path for path in paths if _is_one(_at(module, path), constant.tensor)]
        if same:
            found[name] = sorted(same, key=lambda path: path != name)  # its own name first
    return found


def _is_one(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are views of the same memory in the same form."""
    return a is b or (
        (a.data_ptr(), a.shape, a.stride(), a.dtype, a.device)
        == (b.data_ptr(), b.shape, b.stride(), b.dtype, b.device)
    )


def _ways(module: torch.nn.Module | None, paths: Iterable[str]) -> list[tuple[dict[str, Any], str]]:
    """The places of the submodules on the way to each path, each once."""
    found: dict[tuple[int, str], tuple[dict[str, Any], str]] = {}
    for path in paths:
        owner = module
        for key in path.split(".")[:-1]:
            assert owner is not None
            found[id(owner), key] = (owner._modules, key)
            owner = owner._modules[key]
    return list(found.values())


def _stores(owner: torch.nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module keeps tensors: parameters, buffers, plain attributes."""
    return owner._parameters, owner._buffers, owner.__dict__


def _place(module: torch.nn.Module | None, path: str) -> tuple[dict[str, Any], str]:
    """The dict and key under which a module holds a tensor; the key may be gone."""
    assert module is not None
    parent, _, key = path.rpartition(".")
    stores = _stores(module.get_submodule(parent))
    return next((store for store in stores if key in store), stores[0]), key


def _at(module: torch.nn.Module, path: str) -> Any:
    store, key = _place(module, path)
    return store[key]
