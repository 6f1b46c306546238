"""Whether the weights that a compiled callable has frozen are still those of the model."""

from __future__ import annotations

from collections.abc import Hashable
from operator import attrgetter

import torch

from capture.errors import GuardError
from capture.ir import Constant, Graph
from capture.ir.memory import identity
from capture.ir.types import type_of
from runtime.attributes import Places
from runtime.inventory import Inventory, Slot
from runtime.samples import Samples


class WeightGuards:
    """Notices when a frozen weight is updated in place or swapped, so that no call ever uses a stale one.

    Watched are the identity, the memory and the version of each tensor, and in main memory two of its
    elements, in every place where the module holds it: parameters, buffers, attributes, class attributes,
    and the containers, modules and objects in these (see `Inventory`). Updates through ``weight.data`` or
    of inference tensors, and norm statistics, leave no version: they are seen by these elements alone.
    Not seen are tensors that only a global or a closure leads to, nor one that is no constant of the
    graph, since forward asks for nothing but its shape. The module itself is watched by `ModuleGuards`.

    Args:
        graph: its constants are what is frozen; those that it writes itself may change.
        found: what their module holds, or None where the graph's own tensors are the source.
    """

    def __init__(self, graph: Graph, found: Inventory | None) -> None:
        self._graph = graph
        self._places = _places(graph, found) if found is not None else {}
        self._held = Places([slot for held in self._places.values() for slot in held])
        self._bound = [
            (constant, constant.tensor)
            for name, constant in graph.constants.items()
            if name not in self._places and constant.tensor is not None
        ]
        written = {target.name for target in graph.writebacks if isinstance(target, Constant)}
        placed = [(name, slot.value) for name, held in self._places.items() for slot in held]
        watched = [*placed, *((constant.name, tensor) for constant, tensor in self._bound)]
        self._tensors = list({id(tensor): tensor for _, tensor in watched}.values())
        self._memory = _addresses(self._tensors)
        # An inference tensor has no version; one that the graph writes to gets a new one with each call.
        still = {id(t): t for name, t in watched if name not in written and not t.is_inference()}
        self._still = list(still.values())
        self._versions = _versions(self._still)
        self._samples = Samples(list({id(t): t for name, t in watched if name not in written}.values()))

    @property
    def fresh(self) -> bool:
        """Whether every frozen weight is the tensor it was, at the version it had."""
        return (
            self._held.unchanged
            and _versions(self._still) == self._versions
            and _addresses(self._tensors) == self._memory
            and all(constant.tensor is tensor for constant, tensor in self._bound)
            and self._samples.unchanged  # last: the memory is still theirs
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


def _one_tensor(slots: list[Slot]) -> torch.Tensor:
    """What the places hold now, which has to be one tensor."""
    first = _tensor(slots[0])
    for slot in slots:
        tensor = _tensor(slot)
        if tensor is None or first is None:
            raise GuardError(f"the weight {slot.path} was deleted", hint="compile the module again")
        if identity(tensor) != identity(first):
            raise GuardError(
                f"the weights {slots[0].path} and {slot.path} were one tensor when captured,"
                " they are two now",
                hint="compile the module again",
            )
    assert first is not None
    return first.detach()


def _tensor(slot: Slot) -> torch.Tensor | None:
    try:
        found = slot.owner[slot.key]
    except LookupError:
        return None
    return found if isinstance(found, torch.Tensor) else None


def _places(graph: Graph, inventory: Inventory) -> dict[str, list[Slot]]:
    """The places where the module holds each constant, its own name first: several where weights are tied."""
    held: dict[Hashable, list[Slot]] = {}
    for slot in inventory.tensors:
        held.setdefault(identity(slot.value), []).append(slot)
    found = {
        name: sorted(held.get(identity(constant.tensor), ()), key=lambda slot: slot.path != name)
        for name, constant in graph.constants.items()
        if constant.tensor is not None
    }
    return {name: slots for name, slots in found.items() if slots}
