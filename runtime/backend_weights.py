"""The weights that a graph of Dynamo's is given as inputs: which may be frozen, and whether they changed.

Dynamo passes the parameters and buffers of a module with each call, and guards their types, but neither which
tensors they are nor what is in them. One compiled graph may serve several modules of the same class.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch._dynamo.source import is_from_unspecialized_param_buffer_source

from capture.frontends.source import clean_path
from capture.ir import Graph, TensorType
from capture.ir.types import type_of
from runtime.samples import Samples

__all__ = ["FrozenWeights", "Weight", "Weights", "freeze", "weights_among"]

_version = attrgetter("_version")


class Weight(NamedTuple):
    """A parameter or buffer: its path in the module, and its type. Which tensor it is may change."""

    path: str
    type: TensorType


Weights = Mapping[int, Weight]  # by the position of the input


def weights_among(placeholders: Sequence[fx.Node]) -> Weights:
    """The inputs that are parameters and registered buffers of modules.

    Left out is what nobody could notice a change of: inference tensors, which have no version, and on a GPU
    buffers, since batch_norm updates its statistics without a new version.
    """
    found: dict[int, Weight] = {}
    for position, node in enumerate(placeholders):
        argument = node.meta.get("grapharg")
        source = getattr(argument, "source", None)
        tensor = getattr(argument, "example", None)
        if source is None or type(tensor) not in (torch.Tensor, nn.Parameter) or not _is_plain(tensor):
            continue
        held_by_module = source.guard_source.is_unspecialized_nn_module()
        is_parameter = isinstance(tensor, nn.Parameter)
        is_buffer = not is_parameter and is_from_unspecialized_param_buffer_source(source)
        is_buffer |= not is_parameter and "._buffers[" in _name(source)
        if held_by_module and (is_parameter or (is_buffer and tensor.device.type == "cpu")):
            found[position] = Weight(_path(_name(source)) or node.name, type_of(tensor))
    return found


def freeze(graph: Graph, weights: Weights) -> tuple[Graph, list[int], list[int]]:
    """A copy of the graph with those inputs as constants, where it only reads them.

    Returns:
        The graph; the positions of the inputs that it has left; and of those that became constants.
    """
    frozen = graph.clone()
    inputs = list(frozen.inputs)
    left, taken = [], []
    for position, value in enumerate(inputs):
        weight = weights.get(position)
        if weight is None or value in frozen.writebacks:
            left.append(position)
        elif value.num_uses:
            constant = frozen.add_constant(weight.path, weight.type)
            frozen.replace_uses(value, constant)
            taken.append(position)
    frozen.inputs[:] = [inputs[position] for position in left]
    frozen.in_spec = None
    frozen.version += 1
    return frozen, left, taken


class FrozenWeights:
    """What one set of weights was when it was folded and packed.

    Watched in each call are which tensors are given, the memory and the version of each, and, in main memory,
    a few of the elements: an update through ``weight.data`` and the statistics of batch_norm change without a
    new version. On a GPU such an update is not seen.

    Args:
        tensors: what the graph has frozen.
        died: called when one of them is no more.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], died: Callable[[FrozenWeights], None]) -> None:
        self._ids = list(map(id, tensors))
        self._versions = list(map(_version, tensors))
        self._addresses = list(map(torch.Tensor.data_ptr, tensors))
        self.storages = {t.untyped_storage().data_ptr() for t in tensors}
        self._samples = Samples(tensors)
        own = weakref.ref(self)

        def gone(_: Any) -> None:
            if (found := own()) is not None:
                died(found)

        self._alive = [weakref.ref(tensor, gone) for tensor in tensors]

    def fit(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are the tensors that were frozen, with what they held then."""
        return (
            list(map(id, tensors)) == self._ids
            and list(map(_version, tensors)) == self._versions
            and list(map(torch.Tensor.data_ptr, tensors)) == self._addresses
            and self._samples.unchanged  # last: the memory is still theirs
        )

    def changed(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        """The positions, among the frozen ones, of weights that are others now, or hold something else."""
        now = FrozenWeights(tensors, lambda _: None)
        found = set()
        for name in ("_ids", "_versions", "_addresses"):
            pairs = zip(getattr(self, name), getattr(now, name), strict=True)
            found |= {i for i, (before, after) in enumerate(pairs) if before != after}
        return sorted(found | self._samples.differing(now._samples))


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_inference()


def _name(source: Any) -> str:
    """What Dynamo calls it: a method in older versions of torch."""
    name = source.name
    return str(name() if callable(name) else name)


def _path(name: str) -> str:
    """``L['self']._modules['fc']._parameters['weight']`` as ``fc.weight``."""
    plain = name.replace("._parameters[", "[").replace("._buffers[", "[").replace("._modules[", "[")
    start = plain.find("]") + 1
    return clean_path(plain[start:]).strip(".") if start else ""
