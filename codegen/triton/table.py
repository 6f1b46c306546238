"""The table of operators as Triton expressions, which users extend by `register_lowering`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._ops import OpOverload

from capture.ir import op_name
from codegen.registration import register

Lowering = Callable[..., str]

_BUILT_IN: dict[str, Lowering] = {}
_REGISTERED: dict[Any, Lowering] = {}


def register_lowering(op: Any, fn: Lowering | None) -> None:
    """Say how a pointwise operator becomes Triton; goes before the built-in way. None takes it back.

    Args:
        op: an ``OpOverload`` (``torch.ops.mylib.swish.default``) or a packet (all its overloads). One of your
            own needs ``capture.ir.register_traits(op, Trait.POINTWISE)`` as well, to be fused.
        fn: ``fn(k, *operands, **keywords) -> text``, a Triton expression for one element of the result, such
            as ``lambda k, x, beta: f"{x} / (1 + tl.exp(-{beta} * {x}))"``.

            `k` is the `codegen.triton.ops.Expression`. The operands follow in the order of the operator's
            schema, defaults filled in: tensors as names of their elements (``x.dtype`` tells the dtype;
            half-precision elements are held in float32), numbers as they are. Keyword-only ones are passed
            where they differ from their default. ``k.cast(x, dtype)`` is an element or number in that dtype,
            ``k.dtype`` that of the result, ``k.helper(name, source)`` adds a ``@triton.jit`` function to the
            file, ``k.unsupported(why)`` is the error to raise for a case that has no kernel.

    Raises:
        UsageError: `op` is no operator.
    """
    register(_REGISTERED, op, fn)


def lowers(names: str) -> Callable[[Lowering], Lowering]:
    """Decorator: a built-in lowering of these operators of ATen (names of overloads, or of packets)."""

    def register(fn: Lowering) -> Lowering:
        _BUILT_IN.update(dict.fromkeys(names.split(), fn))
        return fn

    return register


def find(op: Any) -> Lowering | None:
    """The lowering of an overload: a registered one before a built-in one, its own before its packet's."""
    for key in (op, getattr(op, "overloadpacket", None)):
        if key in _REGISTERED:
            return _REGISTERED[key]
    if not isinstance(op, OpOverload) or op.namespace != "aten":
        return None
    name = op_name(op).removeprefix("aten.")
    return _BUILT_IN.get(name) or _BUILT_IN.get(name.partition(".")[0])
