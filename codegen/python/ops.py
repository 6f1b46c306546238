"""One ATen call as Python text, through the cheapest door that says the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import BuiltinFunctionType
from typing import Any

import torch
from torch._ops import OpOverload

from capture.ir import op_name

aten = torch.ops.aten

# text of the operands, positional then "name=value" -> an expression
Lowering = Callable[[list[str]], str]


def _call(function: str) -> Lowering:
    return lambda args: f"{function}({', '.join(args)})"


def _method(name: str) -> Lowering:
    return lambda args: f"{args[0]}.{name}({', '.join(args[1:])})"


_TABLE: dict[Any, Lowering] = {
    aten.linear.default: _call("F.linear"),
    aten.gelu.default: _call("F.gelu"),
    aten.silu.default: _call("F.silu"),
    aten.leaky_relu.default: _call("F.leaky_relu"),
    aten.scaled_dot_product_attention.default: _call("F.scaled_dot_product_attention"),
    aten.expand.default: _method("expand"),
    aten.to.dtype: _method("to"),
    aten.select.int: lambda args: (
        _subscript(args[0], int(args[1]), args[2]) if _is_int(args[1]) else _call("torch.select")(args)
    ),
}


def _is_int(text: str) -> bool:
    return text.isdigit()


def _subscript(tensor: str, dim: int, index: str) -> str:
    return f"{tensor}[{':, ' * dim}{index}]"


def register_lowering(op: OpOverload, fn: Lowering) -> None:
    """Print calls of `op` as `fn(args)`: a Python expression from the texts of its operands.

    Positional operands come first, in schema order; keyword ones follow as ``name=value``. The expression may
    use ``torch``, ``F`` (torch.nn.functional) and ``aten`` (torch.ops.aten).
    """
    _TABLE[op] = fn


@cache
def _default(op: OpOverload) -> Lowering:
    """``torch.add(...)`` where torch has the same function as a builtin, else the overload itself."""
    if op.namespace == "aten":
        name = op._schema.name.partition("::")[2]
        if isinstance(getattr(torch, name, None), BuiltinFunctionType) and not _differs(op):
            return _call(f"torch.{name}")
        return _call(op_name(op) if op._overloadname != "default" else f"{op_name(op)}.default")
    overload = op._overloadname
    return _call(f"torch.ops.{op.namespace}.{op._schema.name.partition('::')[2]}.{overload}")


def call_text(op: OpOverload, args: list[str]) -> str:
    """The expression that calls `op`."""
    return _TABLE[op](args) if op in _TABLE else _default(op)(args)


def _differs(op: OpOverload) -> bool:
    """Whether torch's function differs: it refuses None in lists, and losses are not averaged by default."""
    arguments = op._schema.arguments
    return any("List[Optional[Tensor]]" in str(a.type) or a.name == "reduction" for a in arguments)
