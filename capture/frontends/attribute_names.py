"""Which attributes a module's forward reads and assigns, by its code."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import cache
from types import CodeType
from typing import Any

from torch import nn

__all__ = ["assigned_numbers", "attribute_names"]


@cache
def attribute_names(cls: type[nn.Module]) -> tuple[frozenset[str], frozenset[str]]:
    """The names that forward, and what it calls on self, mentions; those of attributes that it assigns."""
    mentioned: set[str] = set()
    assigned: set[str] = set()
    todo = ["forward", "__call__"]
    while todo:
        name = todo.pop()
        member = inspect.getattr_static(cls, name, None)
        if member is inspect.getattr_static(nn.Module, name, None):
            continue
        for code in _codes(member):
            found = set(code.co_names)
            todo += [n for n in found - mentioned if hasattr(cls, n)]
            mentioned |= found
            assigned |= {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_ATTR"}
    return frozenset(mentioned), frozenset(assigned)


def assigned_numbers(model: nn.Module) -> list[str]:
    """The paths of attributes that hold a number and that forward assigns: counters, say."""
    found = []
    for path, part in model.named_modules():
        for name in sorted(attribute_names(type(part))[1]):
            if type(part.__dict__.get(name)) in (int, float, bool):
                found.append(f"{path}.{name}" if path else name)
    return found


def _codes(member: Any) -> Iterator[CodeType]:
    """The code of a function, method or property, and of the functions in it."""
    member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    code = getattr(inspect.unwrap(member), "__code__", None) if callable(member) else None
    todo = [code] if isinstance(code, CodeType) else []
    while todo:
        code = todo.pop()
        yield code
        todo += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
