"""Whether the weights that a compiled callable has frozen are still those of the model."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from operator import attrgetter, getitem, is_
from typing import Any

import torch

from capture.errors import GuardError
from capture.ir import Constant, Graph
from capture.ir.memory import identity
from capture.ir.types import type_of


@dataclass(frozen=True)
class _Place:
    """Where a module holds a tensor: an attribute, or an item of a list, tuple or dict in one."""

    path: str
    module: torch.nn.Module
    attribute: str
    keys: tuple[Any, ...] = ()

    @property
    def owner(self) -> Any:
        """The dict, list or tuple that the last key belongs to."""
        stores = _stores(self.module)
        found: Any = next((store for store in stores if self.attribute in store), stores[0])
        for key in (self.attribute, *self.keys)[:-1]:
            found = found[key]
        return found

    @property
    def key(self) -> Any:
        return (self.attribute, *self.keys)[-1]

    @property
    def tensor(self) -> torch.Tensor | None:
        """The tensor that is there now, if one is."""
        try:
            found = self.owner[self.key]
        except (LookupError, TypeError):
            return None
        return found if isinstance(found, torch.Tensor) else None


class WeightGuards:
    """Notices when a frozen weight is updated in place or swapped, so that no call ever uses a stale one.

    Watched are the identity, the memory and the version of each tensor, in every place where the module holds
    it: parameters, buffers, attributes, and lists, tuples and dicts in attributes. What leaves no trace is
    not seen: an update through ``weight.data``, or of an inference tensor. The module itself is watched by
    `ModuleGuards`.

    Args:
        graph: its constants are what is frozen; those that it writes itself may change.
        module: where they come from, or None where the graph's own tensors are the source.
    """

    def __init__(self, graph: Graph, module: torch.nn.Module | None) -> None:
        self._graph = graph
        self._places = _places(graph, module) if module is not None else {}
        places = [place for held in self._places.values() for place in held]
        self._owners = [place.owner for place in places]
        self._keys = [place.key for place in places]
        self._held = [getitem(owner, key) for owner, key in zip(self._owners, self._keys, strict=True)]
        self._bound = [
            (constant, constant.tensor)
            for name, constant in graph.constants.items()
            if name not in self._places and constant.tensor is not None
        ]
        written = {target.name for target in graph.writebacks if isinstance(target, Constant)}
        names = [name for name, held in self._places.items() for _ in held]
        watched = [*zip(names, self._held, strict=True), *((c.name, t) for c, t in self._bound)]
        self._tensors = list({id(tensor): tensor for _, tensor in watched}.values())
        self._memory = _addresses(self._tensors)
        # An inference tensor has no version; one that the graph writes to gets a new one with each call.
        still = {id(t): t for name, t in watched if name not in written and not t.is_inference()}
        self._still = list(still.values())
        self._versions = _versions(self._still)

    @property
    def fresh(self) -> bool:
        """Whether every frozen weight is the tensor it was, at the version it had."""
        try:
            same = all(map(is_, map(getitem, self._owners, self._keys), self._held))
        except LookupError:
            return False
        return (
            same
            and _versions(self._still) == self._versions
            and _addresses(self._tensors) == self._memory
            and all(constant.tensor is tensor for constant, tensor in self._bound)
        )

    def current(self) -> dict[str, torch.Tensor]:
        """The weights as they are now, by constant name.

        Raises:
            GuardError: a weight was deleted, or has another dtype or shape, or weights that were one tensor
                are several now.
        """
        found = {name: c.tensor for name, c in self._graph.constants.items() if c.tensor is not None}
        for name, places in self._places.items():
            found[name] = _one_tensor(places)
        for name, tensor in found.items():
            wanted = self._graph.constants[name].tensor_type
            if not wanted.same_value_as(type_of(tensor)):
                raise GuardError(
                    f"the weight {name} is {type_of(tensor)} now, it was {wanted}",
                    hint="compile the module again",
                )
        return found


def _versions(tensors: list[torch.Tensor]) -> list[int]:
    return list(map(attrgetter("_version"), tensors))


def _addresses(tensors: list[torch.Tensor]) -> list[int]:
    return list(map(torch.Tensor.data_ptr, tensors))


def _one_tensor(places: list[_Place]) -> torch.Tensor:
    """What the places hold now, which has to be one tensor."""
    first = places[0].tensor
    for place in places:
        tensor = place.tensor
        if tensor is None or first is None:
            raise GuardError(f"the weight {place.path} was deleted", hint="compile the module again")
        if identity(tensor) != identity(first):
            raise GuardError(
                f"the weights {places[0].path} and {place.path} were one tensor when captured,"
                " they are two now",
                hint="compile the module again",
            )
    assert first is not None
    return first.detach()


def _places(graph: Graph, module: torch.nn.Module) -> dict[str, list[_Place]]:
    """The places where the module holds each constant, its own name first: several where weights are tied."""
    held: dict[Hashable, list[_Place]] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for store in _stores(owner):
            for attribute, value in store.items():
                if attribute in ("_parameters", "_buffers", "_modules"):
                    continue
                path = f"{prefix}.{attribute}".removeprefix(".")
                for keys, tensor in _tensors_in(value):
                    full = ".".join([path, *map(str, keys)])
                    held.setdefault(identity(tensor), []).append(_Place(full, owner, attribute, keys))
    found = {
        name: sorted(held.get(identity(constant.tensor), ()), key=lambda place: place.path != name)
        for name, constant in graph.constants.items()
        if constant.tensor is not None
    }
    return {name: places for name, places in found.items() if places}


def _tensors_in(value: Any) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
    """A tensor, or those in a list, tuple or dict, each with the keys that lead to it."""
    if isinstance(value, torch.Tensor):
        yield (), value
    elif type(value) in (list, tuple, dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            for keys, tensor in _tensors_in(item):
                yield (key, *keys), tensor


def _stores(module: torch.nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module keeps tensors: parameters, buffers, plain attributes."""
    return module._parameters, module._buffers, module.__dict__
