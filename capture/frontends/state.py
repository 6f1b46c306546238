"""A model's tensors: swapped for traced ones while it runs, and put back as they were after it ran."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.ir.memory import identity, overlapping
from capture.wording import dotted

__all__ = ["Kept", "ModelState", "StateGuard", "is_plain", "same_values"]

_CONTAINERS = (list, tuple, dict)


@dataclass
class _Slot:
    """A place in a module that holds a tensor, or a container of tensors."""

    path: str
    kind: str  # which of the module's tables: _parameters, _buffers or __dict__
    table: dict[str, Any]
    key: str
    original: Any
    installed: Any = None
    leaves: list[Any] = field(default_factory=list)

    def install(self, value: Any) -> None:
        self.installed = self.table[self.key] = value
        self.leaves = pytree.tree_leaves(value)

    @property
    def is_unchanged(self) -> bool:
        now = self.table.get(self.key)
        leaves = pytree.tree_leaves(now)
        same = len(leaves) == len(self.leaves) and all(
            a is b for a, b in zip(leaves, self.leaves, strict=True)
        )
        return now is self.installed and same


@dataclass
class ModelState:
    """The tensors that a model holds, each once, by the first path that leads to it.

    Two tensors that are the same memory in the same form are one: what is written to one is read from both.

    Attributes:
        tensors: path -> tensor.
        reassigned: after a run, path -> the new tensor that the model put in the place of a buffer.
    """

    model: nn.Module
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    reassigned: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = list(self._find_slots())
        self._paths: dict[Hashable, list[str]] = {}  # of each tensor
        for slot in self._slots:
            for i, leaf in enumerate(pytree.tree_leaves(slot.original)):
                if isinstance(leaf, torch.Tensor):
                    path = slot.path if leaf is slot.original else f"{slot.path}.{i}"
                    paths = self._paths.setdefault(identity(leaf), [])
                    paths.append(path)
                    self.tensors.setdefault(paths[0], leaf)

    def _find_slots(self) -> Iterator[_Slot]:
        """Parameters of all modules, then buffers, then attributes: a tied tensor has a parameter's name."""
        modules = list(self.model.named_modules())
        for kind in ("_parameters", "_buffers", "__dict__"):
            for prefix, module in modules:
                table = module.__dict__ if kind == "__dict__" else getattr(module, kind)
                for key, value in list(table.items()):
                    if kind == "__dict__" and not _holds_tensors(key, value):
                        continue
                    if value is not None:
                        yield _Slot(dotted(prefix, key), kind, table, key, value)

    @property
    def shares_memory(self) -> bool:
        """Whether a tensor that is no parameter is the same memory as another one, or overlaps it."""
        held = {path: t for path, t in self.tensors.items() if not isinstance(t, nn.Parameter)}
        several = any(len(self._paths[identity(tensor)]) > 1 for tensor in held.values())
        return several or any(not held.keys().isdisjoint(pair) for pair in overlapping(self.tensors))

    @contextmanager
    def swapped(self, traced: Mapping[str, Any]) -> Iterator[None]:
        """Run with the tensor of each path replaced; then note reassigned buffers, and put all back.

        Raises:
            CaptureError: a buffer was reassigned that is the same memory as another tensor of the model.
        """

        def replace(leaf: Any) -> Any:
            return traced[self._paths[identity(leaf)][0]] if isinstance(leaf, torch.Tensor) else leaf

        installed = [pytree.tree_map(replace, slot.original) for slot in self._slots]
        for slot, value in zip(self._slots, installed, strict=True):
            slot.table[slot.key] = value
        try:
            yield
            for slot, value in zip(self._slots, installed, strict=True):
                now = slot.table.get(slot.key)
                if slot.kind == "_buffers" and now is not value and isinstance(now, torch.Tensor):
                    self._reassign(slot, now)
        finally:
            for slot, value in zip(self._slots, installed, strict=True):
                # An attribute that the model assigned is left for StateGuard to see.
                if slot.kind != "__dict__" or slot.table.get(slot.key) is value:
                    slot.table[slot.key] = slot.original

    def _reassign(self, slot: _Slot, now: Any) -> None:
        paths = self._paths[identity(slot.original)]
        if len(paths) > 1:
            other = next(path for path in paths if path != slot.path)
            raise CaptureError(
                f"the model assigns its buffer {slot.path}, which is one tensor with {other}",
                why=f"The graph would write to both; in PyTorch {other} keeps its value.",
                hint=f"a buffer of its own: self.register_buffer({slot.key!r}, tensor.clone())",
            )
        self.reassigned[slot.path] = now


class StateGuard:
    """Puts a model's attributes back as they were, whatever tracing did to them.

    Attributes:
        changed: paths of attributes that held a tensor or None, and were given another tensor. Buffers do
            not count: the front ends see to them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.changed: list[str] = []
        self._before = [(path, module, _snapshot(module)) for path, module in model.named_modules()]

    def __enter__(self) -> StateGuard:
        return self

    def __exit__(self, *_: object) -> None:
        for path, module, (attributes, tables, contents) in self._before:
            for key, old in attributes.items():
                now = module.__dict__.get(key)
                if now is not old and _holds_tensors(key, now) and (old is None or _holds_tensors(key, old)):
                    self.changed.append(dotted(path, key))
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for key, table in tables.items():
                attributes[key].clear()
                attributes[key].update(table)
            for key, content in contents.items():
                if attributes[key] != content and _holds_tensors(key, attributes[key]):
                    self.changed.append(dotted(path, key))
                attributes[key][:] = content


def _snapshot(module: nn.Module) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, list[Any]]]:
    """A module's attributes, its tables of tensors, and the contents of its lists."""
    attributes = dict(module.__dict__)
    tables = {key: dict(attributes[key]) for key in ("_parameters", "_buffers")}
    contents = {key: list(value) for key, value in attributes.items() if type(value) is list}
    return attributes, tables, contents


def _holds_tensors(key: str, value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    if key in ("_parameters", "_buffers", "_modules") or type(value) not in _CONTAINERS:
        return False
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))


class Kept:
    """What a call may leave changed: the values of tensors, and which tensors are a module's buffers.

    Args:
        module: whose buffers may be replaced; None where there is none.
        tensors: whose values may be written to.
    """

    def __init__(self, module: nn.Module | None, tensors: Iterable[torch.Tensor]) -> None:
        self._module = module
        parts = module.modules() if module is not None else ()
        self._tables = [(part._buffers, dict(part._buffers)) for part in parts]
        self._before = [(t, t.detach().clone()) for t in tensors]

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """The module's buffers as they are now."""
        return {} if self._module is None else dict(self._module.named_buffers())

    @property
    def replaced(self) -> list[str]:
        """The paths of the module's buffers that are another tensor now, or new."""
        before = {
            (id(table), name): held for table, entries in self._tables for name, held in entries.items()
        }
        parts = self._module.named_modules() if self._module is not None else ()
        return [
            dotted(path, name)
            for path, part in parts
            for name, buffer in part._buffers.items()
            if buffer is not None and before.get((id(part._buffers), name)) is not buffer
        ]

    def restore(self) -> None:
        """Put all back as it was when this was made."""
        for table, entries in self._tables:
            table.update(entries)
        with torch.no_grad():
            for tensor, before in self._before:
                # To write the same would look like an update of a weight, and fail on an expanded tensor.
                if not is_plain(tensor):  # a sparse tensor's detached self would be another one once written
                    tensor.copy_(before)
                elif not same_values(tensor, before):
                    tensor.detach().copy_(before)

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Inside all is as it was when this was made; afterwards as it has become since."""
        since = Kept(self._module, [tensor for tensor, _ in self._before])
        self.restore()
        try:
            yield
        finally:
            since.restore()


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor is dense and has data, so that its values can be compared."""
    return tensor.layout is torch.strided and not tensor.is_meta


def same_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two dense tensors have one dtype, one shape and equal values; NaN equals itself here."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype != torch.complex32 and torch.equal(a, b):  # the quick way, which knows no complex32
        return True
    return bool(((a == b) | ((a != a) & (b != b))).all())
