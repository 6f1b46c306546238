"""The lowering table: which function turns an operator into ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch._ops import HigherOrderOperator

from codegen.registration import register

Lowering = Callable[..., Any]
F = TypeVar("F", bound=Lowering)

_BUILT_IN: dict[Any, Lowering] = {}
_REGISTERED: dict[Any, Lowering] = {}


def register_lowering(op: Any, fn: Lowering | None) -> None:
    """Say how an operator becomes ONNX; goes before the built-in lowering. None takes the registration back.

    Args:
        op: an ``OpOverload`` (``torch.ops.mylib.swish.default``), an ``OpOverloadPacket`` (all its overloads)
            or a higher-order operator.
        fn: ``fn(op, *operands, **keywords) -> output or sequence of outputs``, one output per result.

            The first argument is the `codegen.onnx.builder.Builder`. A call such as ``op.Relu(x)`` or
            ``op.Conv(x, weight, strides=[2, 2])`` adds an ONNX node of that name and gives its output (a
            tuple with ``outputs=2``); ``op.call("Swish", x, domain="com.acme")`` one of another domain.
            The operands follow in the order of the operator's schema, defaults filled in: tensors as
            `capture.ir.Value` (dtype and shape in its `type`), numbers, sizes and lists as they are.
            Keyword-only ones are passed where they differ from their default.
            ``op.cast(x, dtype)`` makes a tensor of that dtype from a tensor, number or size,
            ``op.vector(sizes)`` an int64 vector; ``op.results`` are the types to be produced;
            ``op.unsupported(why)`` is the error to raise for a case that has no ONNX form.

    Raises:
        UsageError: `op` is no operator.
    """
    register(_REGISTERED, op, fn, HigherOrderOperator)


def lowers(*ops: Any) -> Callable[[F], F]:
    """Decorator: a built-in lowering of `ops` (overloads, or packets for all of their overloads)."""

    def register(fn: F) -> F:
        for op in ops:
            _BUILT_IN[op] = fn
        return fn

    return register


def find(op: Any) -> Lowering | None:
    """The lowering of an overload: a registered one before a built-in one, its own before its packet's."""
    keys = (op, getattr(op, "overloadpacket", None))
    return next((table[key] for table in (_REGISTERED, _BUILT_IN) for key in keys if key in table), None)
