"""A few elements of each weight, to notice updates that leave no version (through ``weight.data``, say)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch

COUNT = 2  # elements of each tensor in main memory
_CELLS = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}
_value = attrgetter("value")


class Samples:
    """What some elements of tensors in main memory held; of a tensor on a GPU there are none.

    The elements are read where they lay: ask `unchanged` only once it is known that the tensors still have
    the same memory.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        found = [(position, cell) for position, tensor in enumerate(tensors) for cell in _cells(tensor)]
        self._cells = [cell for _, cell in found]
        self._positions = [position for position, _ in found]
        self._elements = list(map(_value, self._cells))

    @property
    def unchanged(self) -> bool:
        """Whether all hold what they held."""
        return list(map(_value, self._cells)) == self._elements

    def differing(self, others: Samples) -> set[int]:
        """Positions of the tensors whose samples are not those of `others`, which has as many."""
        elements = zip(self._positions, self._elements, others._elements, strict=True)
        return {position for position, mine, theirs in elements if mine != theirs}


def _cells(tensor: torch.Tensor) -> list[Any]:
    """Some of its elements, as they lie in memory."""
    cell = _CELLS.get(tensor.element_size()) if tensor.layout is torch.strided else None
    if tensor.device.type != "cpu" or cell is None or not tensor.numel():
        return []
    places = {tensor.numel() * i // COUNT + tensor.numel() // (2 * COUNT) for i in range(COUNT)}
    if not tensor.is_contiguous():
        places = {0}
    start, size = tensor.data_ptr(), tensor.element_size()
    return [cell.from_address(start + place * size) for place in sorted(places) if place < tensor.numel()]


__all__ = ["Samples"]
