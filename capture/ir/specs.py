"""Pytree structures as JSON. Reading one imports nothing and calls nothing that it names."""

from __future__ import annotations

import builtins
import json
from typing import Any

from torch.utils import _pytree as pytree

_FACTORIES = ("dict", "float", "int", "list", "set", "str", "tuple")


def dump_spec(spec: Any) -> str:
    """A structure as JSON; "" for None, and for one that cannot be read back safely.

    Those are structures of classes that are not registered under a name, and those with enums or a
    defaultdict of one's own making.
    """
    if spec is None:
        return ""
    try:
        text = pytree.treespec_dumps(spec)
        return text if load_spec(text) == spec else ""
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        return ""


def load_spec(text: str) -> Any:
    """The structure that `dump_spec` wrote; None for "".

    Raises:
        ValueError: the text is no structure's, names a class that is not registered (its package must be
            imported first), or would have torch import a module.
    """
    if not text:
        return None
    parsed = json.loads(text)
    if not isinstance(parsed, list) or len(parsed) != 2:
        raise ValueError("this is not the structure of a call's arguments or results")
    _check(parsed[1])
    try:
        return pytree.treespec_loads(text)
    except NotImplementedError as error:
        raise ValueError(f"{error} Import the package that registers it first.") from error
    except (KeyError, AttributeError, AssertionError) as error:
        raise ValueError(f"this is not the structure of a call's arguments or results: {error}") from error


def _check(node: Any) -> None:
    """Torch imports the module that an enum or a defaultdict's factory names: refuse them."""
    if not isinstance(node, dict) or not isinstance(node.get("children_spec"), list):
        raise ValueError("this is not the structure of a call's arguments or results")
    context = node.get("context")
    if isinstance(context, dict) and {"default_factory_module", "default_factory_name"} & set(context):
        factory = context.get("default_factory_module"), context.get("default_factory_name")
        if factory[0] != builtins.__name__ or factory[1] not in _FACTORIES:
            raise ValueError(f"a defaultdict of {factory[0]}.{factory[1]} is not loaded")
    if _has_enum(json.loads(context) if isinstance(context, str) else context):
        raise ValueError("a structure with enums is not loaded")
    for child in node["children_spec"]:
        _check(child)


def _has_enum(value: Any) -> bool:
    if isinstance(value, dict):
        return "__enum__" in value or any(map(_has_enum, value.values()))
    return isinstance(value, list) and any(map(_has_enum, value))


__all__ = ["dump_spec", "load_spec"]
