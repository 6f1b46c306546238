"""What capture baked in of a module beside its tensors: submodules, modes, settings in attributes."""

from __future__ import annotations

from enum import Enum
from itertools import chain
from operator import call, getitem, is_, itemgetter
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.utils.hooks import RemovableHandle

from capture.errors import GuardError
from runtime.inventory import Inventory, Slot, Table

_PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)


class Places:
    """Tells quickly whether each place still holds the very object that it held."""

    def __init__(self, slots: list[Slot]) -> None:
        by_owner: dict[int, list[Slot]] = {}
        for slot in slots:
            by_owner.setdefault(id(slot.owner), []).append(slot)
        several = [group for group in by_owner.values() if len(group) > 1]
        self._owners = [group[0].owner for group in several]
        self._getters = [itemgetter(*(slot.key for slot in group)) for group in several]
        self._held = [slot.value for group in several for slot in group]
        single = [group[0] for group in by_owner.values() if len(group) == 1]
        self._single_owners = [slot.owner for slot in single]
        self._single_keys = [slot.key for slot in single]
        self._single_held = [slot.value for slot in single]

    @property
    def unchanged(self) -> bool:
        try:
            found = chain.from_iterable(map(call, self._getters, self._owners))
            return all(map(is_, found, self._held)) and all(
                map(is_, map(getitem, self._single_owners, self._single_keys), self._single_held)
            )
        except LookupError:
            return False


class ModuleGuards:
    """Notices when a module is no longer what was captured, so that no call follows settings of before.

    Watched, each by identity, and where it is plain (numbers, strings, None, dtypes, devices, tuples of
    these) by its value, of the module, its submodules, and the modules that attributes hold in containers:

    - the submodules, and the parameters and buffers that are None;
    - every attribute of a user's module, and whether there are new ones; of torch's own layers those that
      their forward or a user's code reads, and a patched forward;
    - the items of lists, tuples, dicts and deques in attributes, nested too, their number and the keys; the
      elements of sets; the arguments of a `functools.partial`;
    - the fields of other objects in attributes, such as ``self.config.scale``: plain ones, containers of at
      most 64 items, and which objects the others are;
    - the class of each module, its class attributes, and the methods that forward, or what it calls on self,
      mentions;
    - `training` of the module itself, and of a part where its code or any user's code mentions it;
    - that forward hooks were registered or removed.

    Not watched are attributes that forward itself assigns (a counter, the longest input so far); what lies
    deeper in objects, such as ``self.config.encoder.scale``, or in their ``__slots__``, or in an object that
    is torch's own; the elements of NumPy arrays; globals, closures and default arguments of functions;
    methods, and attributes of torch's layers, that code reads by a name made at run time.

    Args:
        found: what the module looked like when it was captured.
    """

    def __init__(self, found: Inventory) -> None:
        self._parts = found.parts
        self._slots = found.settings
        self._tables = found.tables
        self._sets = [(path, items, _elements(items)) for path, items in found.sets]
        self._containers = [table.items for table in found.tables]
        self._lengths = list(map(len, self._containers))
        self._places = Places(self._slots)
        self._modules = list(self._parts.values())
        self._classes = list(map(type, self._modules))
        self._hooked = _hooked(self._parts)
        self._hooks: list[Any] = [h for part in self._parts.values() for h in _hooks(part) if h]
        self._hook_counts = list(map(len, self._hooks))
        self._handles = RemovableHandle.next_id

    def check(self) -> None:
        """Let the module pass as long as it is what was captured.

        Raises:
            GuardError: names what has changed.
        """
        if (
            self._places.unchanged
            and list(map(len, self._containers)) == self._lengths
            and list(map(type, self._modules)) == self._classes
            and self._handles == RemovableHandle.next_id
            and list(map(len, self._hooks)) == self._hook_counts
            and all(_elements(items) == elements for _, items, elements in self._sets)
        ):
            return
        self._explain()

    def _explain(self) -> None:
        """The slow and thorough check. An equal object in a place is what to expect there from now on."""
        slots = [_now(slot) for slot in self._slots]
        for table, before in zip(self._tables, self._lengths, strict=True):
            if len(table.items) != before:
                _check_size(table, before)
        for path, items, elements in self._sets:
            if _elements(items) != elements:
                raise _changed(f"the attribute {path} has other elements than when captured")
        for (path, part), cls in zip(self._parts.items(), self._classes, strict=True):
            if type(part) is not cls:
                raise _changed(f"the class of {path or 'the model'} was {cls.__name__} when captured")
        if _hooked(self._parts) != self._hooked:
            raise _changed("a forward hook was registered or removed")
        self._slots, self._places = slots, Places(slots)
        self._lengths = list(map(len, self._containers))
        self._handles = RemovableHandle.next_id


def _now(slot: Slot) -> Slot:
    """The slot with what it holds now, if that is the same.

    Raises:
        GuardError: it is not.
    """
    path, before = slot.path, slot.value
    try:
        now = slot.owner[slot.key]
    except LookupError:
        what = "submodule" if isinstance(before, nn.Module) else "attribute"
        raise _changed(f"the {what} {path} was deleted") from None
    if now is before:
        return slot
    if slot.key == "training":
        raise _changed_mode(path.removesuffix("training").removesuffix("."), bool(now))
    if isinstance(before, nn.Module):
        raise _changed(f"the submodule {path} was replaced")
    if not _same(now, before):
        raise _changed(f"the attribute {path} was {_shown(before)} when captured, {_shown_now(now, before)}")
    return Slot(path, slot.owner, slot.key, now)


def _check_size(table: Table, before: int) -> None:
    """Raises GuardError where an item came or went that matters; what went from a mapping is a slot's."""
    if not table.what:
        now = len(table.items)
        raise _changed(f"the attribute {table.path} had {before} items when captured, it has {now} now")
    added = sorted(map(str, table.added()))
    if added:
        raise _changed(f"the {table.what} {f'{table.path}.{added[0]}'.removeprefix('.')} was added")


def _elements(items: set[Any]) -> frozenset[Any]:
    """The elements with their types: 1 is not True."""
    return frozenset((type(item), item) for item in items)


def _hooked(parts: dict[str, nn.Module]) -> list[int]:
    """How many forward hooks each part has, and all modules."""
    everywhere = (hooks._global_forward_hooks, hooks._global_forward_pre_hooks)
    return [len(h) for h in (*everywhere, *(h for part in parts.values() for h in _hooks(part)))]


def _hooks(part: nn.Module) -> tuple[Any, Any]:
    return part._forward_hooks, part._forward_pre_hooks


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) in (tuple, torch.Size) and all(map(_is_plain, value)))


def _same(now: Any, before: Any) -> bool:
    """Whether two values of a setting are one: the object itself, an equal number, tuples of these."""
    if now is before:
        return True
    if type(now) is not type(before):
        return False
    if type(now) in (tuple, torch.Size):
        return len(now) == len(before) and all(map(_same, now, before))
    return type(now) in _PLAIN and repr(now) == repr(before)  # so that NaN is itself, and 0.0 not -0.0


def _shown(value: Any) -> str:
    if _is_plain(value):
        return repr(value)
    if isinstance(value, Enum):
        return str(value)
    return getattr(value, "__name__", None) or f"a {type(value).__name__}"


def _shown_now(now: Any, before: Any) -> str:
    return "it is another one now" if _shown(now) == _shown(before) else f"it is {_shown(now)} now"


def _changed(what: str) -> GuardError:
    return GuardError(
        what, why="capture bakes in the model's structure and settings", hint="compile the module again"
    )


def _changed_mode(path: str, training: bool) -> GuardError:
    before, now = (f"in {'training' if mode else 'evaluation'} mode" for mode in (not training, training))
    return GuardError(
        f"captured {before}, the {f'submodule {path}' if path else 'model'} is {now} now",
        why="dropout and normalisation differ between the two",
        hint="model.train(), or compile it again" if not training else "model.eval(), or compile it again",
    )
