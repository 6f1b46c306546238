"""Lowerings that users register: one table for each code generator, one way to put something in."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

from torch._ops import OpOverload, OpOverloadPacket

from capture.errors import UsageError


def register(table: MutableMapping[Any, Any], op: Any, fn: Callable[..., Any] | None, *kinds: type) -> None:
    """Put the lowering of an operator into a table; None takes it out.

    Args:
        kinds: what `op` may be beside an overload and a packet.

    Raises:
        UsageError: `op` is no operator.
    """
    if not isinstance(op, (OpOverload, OpOverloadPacket, *kinds)):
        raise UsageError(
            f"{op!r} is not an operator", hint="torch.ops.<namespace>.<name>, or one of its overloads"
        )
    if fn is None:
        table.pop(op, None)
    else:
        table[op] = fn


__all__ = ["register"]
