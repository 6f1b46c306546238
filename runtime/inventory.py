"""Everything that a model holds and that its forward may follow: where it stands, and what it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, partial
from inspect import getattr_static
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from capture.frontends.attribute_names import attribute_names
from capture.wording import dotted

_STORES = ("_parameters", "_buffers", "_modules")
_TABLES = frozenset(nn.Module().__dict__) - {"training"}  # what every module has: no settings
_OPAQUE = (type, Enum, FunctionType, BuiltinFunctionType, MethodType, ModuleType)  # told by identity alone
_LARGEST = 64  # items of a container in an object that is no module


@dataclass(frozen=True)
class Slot:
    """A place: `owner[key]` held `value`."""

    path: str
    owner: Any
    key: Any
    value: Any


@dataclass
class Table:
    """A container in which one item more, or one less, may change what forward does.

    Attributes:
        path: of the container, or of the module that it is a table of.
        what: what an item is; empty where it is an item of a container.
        keys: those of a mapping, when it was looked at.
        ignored: keys that may come.
        noticed: where given, the only keys that may not come.
    """

    path: str
    items: Any
    what: str = ""
    keys: frozenset[Any] | None = None
    ignored: frozenset[Any] = frozenset()
    noticed: frozenset[Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.items, Mapping):
            self.keys = frozenset(self.items)

    def added(self) -> set[Any]:
        """The keys that came, of those that matter."""
        new = set(self.items) - (self.keys or set()) - self.ignored
        return new if self.noticed is None else new & self.noticed


@dataclass
class Inventory:
    """What a module, and all that it holds, looks like now.

    Attributes:
        parts: the modules by path: submodules, and those in containers and objects in attributes.
        tensors: where parameters, buffers and other tensors stand.
        settings: where everything else stands that decides what forward does.
        tables: the containers whose size matters.
        sets: the sets by path.
    """

    module: nn.Module
    parts: dict[str, nn.Module] = field(default_factory=dict)
    tensors: list[Slot] = field(default_factory=list)
    settings: list[Slot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    sets: list[tuple[str, set[Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._seen: set[int] = set()
        self._members: set[tuple[type, str]] = set()
        self._objects: list[tuple[str, Any]] = []
        self._part("", self.module)
        while self._objects:
            self._fields(*self._objects.pop())
        names = [attribute_names(cls) for cls in self._classes() if not _is_torchs(cls)]
        self._mentioned = frozenset[str]().union(*(mentioned for mentioned, _ in names))
        for path, part in self.parts.items():
            self._attributes(path, part)

    def _classes(self) -> dict[type[nn.Module], None]:
        return dict.fromkeys(map(type, self.parts.values()))

    def _part(self, path: str, part: nn.Module) -> None:
        """A module's tensors and submodules, and what its own code has put in its attributes."""
        self._seen.add(id(part))
        self.parts[path] = part
        is_torchs = _is_torchs(type(part))
        mentioned, assigned = attribute_names(type(part))
        self._class(type(part))
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    self.tensors.append(Slot(dotted(path, name), store, name, tensor))
                elif name in mentioned or not is_torchs:
                    self.settings.append(Slot(dotted(path, name), store, name, None))
        if part._modules or not is_torchs:
            self.tables.append(Table(path, part._modules, "submodule"))
        if not is_torchs or isinstance(part, (nn.ParameterList, nn.ParameterDict)):
            self.tables += [Table(path, s, "weight") for s in (part._parameters, part._buffers)]
        for name, child in part._modules.items():
            self._value(dotted(path, name), part._modules, name, child)
        for name, value in list(part.__dict__.items()):
            if isinstance(value, torch.Tensor):
                self.tensors.append(Slot(dotted(path, name), part.__dict__, name, value))
            elif not is_torchs and name not in _TABLES and name not in assigned and name != "training":
                self._value(dotted(path, name), part.__dict__, name, value)

    def _value(self, path: str, owner: Any, key: Any, value: Any, largest: float = float("inf")) -> None:
        if isinstance(value, torch.Tensor):
            self.tensors.append(Slot(path, owner, key, value))
            return
        self.settings.append(Slot(path, owner, key, value))
        if id(value) in self._seen or isinstance(value, _OPAQUE):
            return
        self._seen.add(id(value))
        if isinstance(value, nn.Module):
            self._part(path, value)
        elif isinstance(value, partial):
            self._items(path, value.args, largest)
            self._items(path, value.keywords, largest)
        elif isinstance(value, (list, tuple, dict, deque)):
            self._items(path, value, largest)
        elif isinstance(value, set):
            self.sets.append((path, value))
            self.tables.append(Table(path, value))
            for i, item in enumerate(value):
                if isinstance(item, nn.Module) and id(item) not in self._seen:
                    self._part(f"{path}.{i}", item)
        elif isinstance(getattr(value, "__dict__", None), dict) and not _is_torchs(type(value)):
            if largest > _LARGEST:  # else it is the field of an object
                self._objects.append((path, value))

    def _items(self, path: str, container: Any, largest: float) -> None:
        if not isinstance(container, tuple):
            self.tables.append(Table(path, container))
        if len(container) <= largest:
            for key, item in _pairs(container):
                self._value(f"{path}.{key}", container, key, item, largest)

    def _fields(self, path: str, held: Any) -> None:
        """An object's own fields; of objects in these, which they are."""
        names = (attribute_names(cls) for cls in self._classes())
        assigned = frozenset[str]().union(*(assigned for _, assigned in names))
        self.tables.append(Table(path, held.__dict__, "attribute", ignored=assigned))
        for name, value in list(held.__dict__.items()):
            if name not in assigned:
                self._value(dotted(path, name), held.__dict__, name, value, _LARGEST)

    def _attributes(self, path: str, part: nn.Module) -> None:
        """Its mode and, of one of torch's layers, the settings that code reads."""
        cls = type(part)
        mentioned, assigned = attribute_names(cls)
        read = (mentioned | self._mentioned) - assigned
        if "training" in read or part is self.module:
            self.settings.append(Slot(dotted(path, "training"), part.__dict__, "training", part.training))
        known = frozenset(part.__dict__)
        if not _is_torchs(cls):
            cached = {n for n in mentioned if isinstance(getattr_static(cls, n, None), cached_property)}
            self.tables.append(Table(path, part.__dict__, "attribute", ignored=assigned | _TABLES | cached))
            return
        self.tables.append(Table(path, part.__dict__, "attribute", noticed=read | {"forward", "__call__"}))
        for name in sorted(known - _TABLES - {"training"}):
            shadows = hasattr(cls, name)
            if (shadows or name in read) and not name.startswith("_"):  # those are made from the others
                value = part.__dict__[name]
                if not isinstance(value, torch.Tensor):
                    self.settings.append(Slot(dotted(path, name), part.__dict__, name, value))

    def _class(self, cls: type[nn.Module]) -> None:
        """The methods that forward mentions, and the class attributes that are none."""
        mentioned, assigned = attribute_names(cls)
        names = (mentioned | {"forward", "__call__"}) - assigned
        for base in cls.__mro__[: cls.__mro__.index(nn.Module)]:
            held = names & base.__dict__.keys()
            if not _is_torchs(base):
                self.tables.append(Table(base.__name__, base.__dict__, "class attribute", noticed=names))
                held |= {n for n, v in base.__dict__.items() if _is_data(n, v)} - assigned
            for name in sorted(held):
                if (base, name) not in self._members:
                    self._members.add((base, name))
                    self._value(f"{base.__name__}.{name}", base.__dict__, name, base.__dict__[name])


def _pairs(container: Any) -> Iterator[tuple[Any, Any]]:
    yield from list(container.items() if isinstance(container, dict) else enumerate(container))


def _is_data(name: str, value: Any) -> bool:
    """Whether a member of a class is no method, property or anything of Python's own."""
    plain = not callable(value) and not hasattr(type(value), "__get__")
    return plain and not name.startswith(("__", "_abc_"))


def _is_torchs(cls: type) -> bool:
    return cls.__module__.startswith("torch.")
