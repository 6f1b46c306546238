"""What capture baked in of a module beside its tensors: submodules, modes, numbers in attributes."""

from __future__ import annotations

from collections.abc import Iterator
from operator import getitem, is_
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from capture.errors import GuardError
from capture.frontends.attribute_names import attribute_names

_PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)
_FUNCTIONS = (FunctionType, BuiltinFunctionType)
_TABLES = frozenset(nn.Module().__dict__) - {"training"}  # what every module has: no settings
_LARGEST = 64  # items of a container that are watched one by one


class ModuleGuards:
    """Notices when a module is no longer what was captured, so that no call follows settings of before.

    Watched are the submodules; attributes that are numbers, strings, None, dtypes, devices, functions, or
    tuples, lists and dicts of these; and `training`, of a part whose code asks for it. Not watched are
    attributes that forward itself assigns (a counter, the longest input so far), attributes of torch's own
    layers that their forward does not read, items added to a list of numbers, hooks, and what other objects
    hold, such as ``self.config.scale``.
    """

    def __init__(self, module: nn.Module) -> None:
        self._paths: list[str] = []
        self._owners: list[Any] = []
        self._keys: list[Any] = []
        self._values: list[Any] = []
        self._sized: list[Any] = []  # containers in which an item more would be another submodule or weight
        self._watch("training", module.__dict__, "training")
        for path, part in module.named_modules():
            prefix = f"{path}." if path else ""
            if part._modules:
                self._sized.append(part._modules)
            for name in part._modules:
                self._watch(prefix + name, part._modules, name)
            for name in _settings(part):
                self._watch(prefix + name, part.__dict__, name)
        self._lengths = list(map(len, self._sized))

    def _watch(self, path: str, owner: Any, key: Any) -> None:
        value = owner[key]
        self._paths.append(path)
        self._owners.append(owner)
        self._keys.append(key)
        self._values.append(value)
        if type(value) not in (list, dict):
            return
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        if any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value)):
            self._sized.append(value)
        for item, held in items if len(items) <= _LARGEST else ():
            if not isinstance(held, torch.Tensor):  # those are WeightGuards'
                self._watch(f"{path}.{item}", value, item)

    def check(self) -> None:
        """Let the module pass as long as it is what was captured.

        Raises:
            GuardError: names what has changed.
        """
        try:
            if all(map(is_, map(getitem, self._owners, self._keys), self._values)):
                if list(map(len, self._sized)) == self._lengths:
                    return
        except LookupError:
            pass
        self._explain()

    def _explain(self) -> None:
        rows = zip(self._paths, self._owners, self._keys, self._values, strict=True)
        for i, (path, owner, key, before) in enumerate(rows):
            try:
                now = owner[key]
            except LookupError:
                what = "submodule" if isinstance(before, nn.Module) else "attribute"
                raise _changed(f"the {what} {path} was deleted") from None
            if now is before:
                continue
            if key == "training":
                raise _changed_mode(path.removesuffix("training").removesuffix("."), bool(now))
            if isinstance(before, nn.Module):
                raise _changed(f"the submodule {path} was replaced")
            if not _is_plain(before) or type(now) is not type(before) or repr(now) != repr(before):
                raise _changed(
                    f"the attribute {path} was {_shown(before)} when captured, it is {_shown(now)} now"
                )
            self._values[i] = now  # an equal one
        if list(map(len, self._sized)) != self._lengths:
            raise _changed("a submodule or a weight was added or removed")


def _settings(part: nn.Module) -> Iterator[str]:
    """The attributes of a module that decide what its forward does."""
    mentioned, assigned = attribute_names(type(part))
    is_torchs = type(part).__module__.startswith("torch.nn.")
    for name, value in part.__dict__.items():
        if name in _TABLES or name in assigned:
            continue
        if (is_torchs or name == "training") and name not in mentioned:
            continue
        if is_torchs and name.startswith("_"):  # made from the others
            continue
        is_container = type(value) in (list, dict) and not is_torchs
        if is_container or _is_plain(value) or type(value) in _FUNCTIONS:
            yield name


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))


def _shown(value: Any) -> str:
    return repr(value) if _is_plain(value) else getattr(value, "__name__", f"a {type(value).__name__}")


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
