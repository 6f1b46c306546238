"""Which tensors are the same memory, and which overlap in it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch

from capture.errors import GuardError
from capture.ir import graph as ir
from capture.ir.types import memory_format_of

__all__ = ["check_layouts", "check_separate", "identity", "overlap", "overlapping"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def identity(tensor: torch.Tensor) -> Hashable:
    """A key that two tensors have in common exactly where each reads the same memory in the same form.

    A tensor without memory of its own to compare (empty, meta, fake, sparse, quantized, of a subclass) is the
    same as itself only; its key holds while the tensor lives.
    """
    if not _has_address(tensor) or not tensor.numel():
        return id(tensor)
    form = (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)
    return (tensor.data_ptr(), *form, tensor.is_conj(), tensor.is_neg())


def overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether an element of `a` lies in the memory of an element of `b`. Fake tensors overlap as their
    storages do."""
    return any(overlapping({"a": a, "b": b}))


def overlapping(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """The names of each two tensors that overlap, in the mapping's order."""
    placed = [(_extent(t), name, t) for name, t in tensors.items() if t.layout is torch.strided and t.numel()]
    placed.sort(key=lambda row: row[0][:2])
    order = {name: i for i, name in enumerate(tensors)}
    for i, ((space, start, end), name, tensor) in enumerate(placed):
        for (other_space, other_start, other_end), other_name, other in placed[i + 1 :]:
            if other_space != space or other_start >= end:
                break
            if _meet(tensor, (start, end), other, (other_start, other_end)):
                first, second = sorted((name, other_name), key=order.__getitem__)
                yield first, second


def check_separate(graph: ir.Graph, flat: Sequence[Any]) -> None:
    """Make sure that what the graph writes to shares no memory with an input, or with what is an input too.

    Raises:
        GuardError: names the two.
    """
    if not graph.writebacks:
        return
    values: dict[str, Any] = {v.name: given for v, given in zip(graph.inputs, flat, strict=False)}
    values.update({f"@{c.name}": c.tensor for c in graph.constants.values()})
    tensors = {name: t for name, t in values.items() if isinstance(t, torch.Tensor)}
    written = {f"@{v.name}" if isinstance(v, ir.Constant) else v.name for v in graph.writebacks}
    for pair in overlapping(tensors):
        target = next((name for name in pair if name in written), None)
        if target is not None and not all(name.startswith("@") for name in pair):
            what = "the input {} and the constant {}" if pair[1].startswith("@") else "the inputs {} and {}"
            raise GuardError(
                f"{what.format(*pair)} share memory",
                why=f"the model writes to {target}; captured on separate tensors",
                hint="pass a clone",
            )


def check_layouts(graph: ir.Graph, flat: Sequence[Any]) -> None:
    """Make sure that the inputs that the graph writes to lie in memory as captured, or are contiguous.

    In a model, a write through ``x.contiguous()`` or ``x.reshape(-1)`` reaches x in some layouts only.

    Raises:
        GuardError: names the input.
    """
    for value, given in zip(graph.inputs, flat, strict=False):
        if value not in graph.writebacks or not isinstance(given, torch.Tensor) or given.is_contiguous():
            continue
        wanted, found = value.tensor_type.memory_format, memory_format_of(given)
        if found != wanted:
            raise GuardError(
                f"the input {value.name} has a {found} memory layout, captured {wanted}",
                why="the model writes to it, which may depend on the layout",
                hint=f"{value.name}.contiguous(), or capture on such an input",
            )


def _has_address(tensor: torch.Tensor) -> bool:
    plain = type(tensor) in _PLAIN and tensor.layout is torch.strided
    return plain and not tensor.is_meta and not tensor.is_quantized


def _extent(tensor: torch.Tensor) -> tuple[str, int, int]:
    """The address space, and the first and last byte (exclusive) in it that the tensor may touch."""
    size = tensor.element_size()
    if _has_address(tensor):
        space, start = str(tensor.device), tensor.data_ptr()
    else:
        space, start = f"storage {tensor.untyped_storage()._cdata}", _offset(tensor) * size
    if any(isinstance(n, torch.SymInt) for n in (*tensor.shape, *tensor.stride())):
        return space, 0, 1 << 62  # sizes that vary: all of the storage
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return space, start, start + (sum((n - 1) * stride for n, stride in steps) + 1) * size


def _offset(tensor: torch.Tensor) -> int:
    offset: Any = tensor.storage_offset()
    return 0 if isinstance(offset, torch.SymInt) else int(offset)


def _meet(a: torch.Tensor, here: tuple[int, int], b: torch.Tensor, there: tuple[int, int]) -> bool:
    """Whether two tensors whose extents overlap have an element in common: columns of one matrix do not."""
    size, base = a.element_size(), min(here[0], there[0])
    dense = all(t.numel() * t.element_size() == end - start for t, (start, end) in ((a, here), (b, there)))
    if dense or b.element_size() != size or (here[0] - there[0]) % size or here[1] == 1 << 62:
        return True
    touched = torch.zeros((max(here[1], there[1]) - base) // size, dtype=torch.bool, device="cpu")
    for tensor, (start, _) in ((a, here), (b, there)):
        shape = [1 if stride == 0 else n for n, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        view = touched.as_strided(shape, tensor.stride(), (start - base) // size)
        if tensor is a:
            view.fill_(True)
    return bool(view.any())
