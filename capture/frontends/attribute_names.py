"""Which attributes a module's forward reads and assigns, by its code."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from capture.wording import dotted

__all__ = ["assigned_numbers", "attribute_names"]


@cache
def attribute_names(cls: type[nn.Module]) -> tuple[frozenset[str], frozenset[str]]:
    """The names that forward mentions, with what it calls on self and the plain functions that it calls;
    and those of attributes that it assigns, with what it calls on self."""
    mentioned: set[str] = set()
    assigned: set[str] = set()
    functions: dict[FunctionType, None] = {}
    todo = ["forward", "__call__"]
    while todo:
        for member in _definitions(cls, todo.pop()):
            functions.update(dict.fromkeys(_called(member)))
            for code in _codes(member):
                found = set(code.co_names)
                todo += [n for n in found - mentioned if hasattr(cls, n)]
                mentioned |= found
                assigned |= _stored(code)
    for function in functions:
        mentioned |= _mentioned_by(function)
    return frozenset(mentioned), frozenset(assigned)


def assigned_numbers(model: nn.Module) -> list[str]:
    """The paths of attributes that hold a number and that forward assigns: counters, say."""
    found = []
    for path, part in model.named_modules():
        for name in sorted(attribute_names(type(part))[1]):
            if type(part.__dict__.get(name)) in (int, float, bool):
                found.append(dotted(path, name))
    return found


def _definitions(cls: type[nn.Module], name: str) -> Iterator[Any]:
    """A member as each class defines it, as far as ``super()`` may lead to; none of nn.Module itself."""
    for base in cls.__mro__:
        if base is nn.Module:
            return
        if name in vars(base):
            member = vars(base)[name]
            yield member
            if not any("super" in code.co_names for code in _codes(member)):
                return


def _stored(code: CodeType) -> set[str]:
    """The attributes that code assigns, by a statement or by ``setattr`` with a name that stands in it."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_ATTR"}
    if "setattr" in code.co_names:
        found |= {c for c in code.co_consts if isinstance(c, str) and c.isidentifier()}
    return found


@cache
def _mentioned_by(function: FunctionType) -> frozenset[str]:
    """The names that a plain function mentions, and those that it calls."""
    seen = {function: None}
    todo = [function]
    while todo:
        for called in _called(todo.pop()):
            if called not in seen:
                seen[called] = None
                todo.append(called)
    return frozenset(name for found in seen for code in _codes(found) for name in code.co_names)


def _called(member: Any) -> list[FunctionType]:
    """The plain functions that code names, of those beside it and around it; none of torch's own."""
    function = _function(member)
    if function is None:
        return []
    names = {name for code in _codes(member) for name in code.co_names}
    found = [function.__globals__.get(name) for name in names]
    found += _enclosed(function)
    return [f for f in found if isinstance(f, FunctionType) and not f"{f.__module__}.".startswith("torch.")]


def _enclosed(function: FunctionType) -> list[Any]:
    """The values of a function's closure; a variable that was never assigned has none."""
    found = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):
            found.append(cell.cell_contents)
    return found


def _function(member: Any) -> FunctionType | None:
    if isinstance(member, property):
        member = member.fget
    for inner in ("__func__", "func"):  # of a class or static method; of a cached property
        member = getattr(member, inner, member)
    found = inspect.unwrap(member) if callable(member) else None
    return found if isinstance(found, FunctionType) else None


def _codes(member: Any) -> Iterator[CodeType]:
    """The code of a function, method or property, and of the functions in it."""
    function = _function(member)
    todo = [function.__code__] if function is not None else []
    while todo:
        code = todo.pop()
        yield code
        todo += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
