"""Functionalisation above dispatch: composite ops stay whole, views and mutation are gone.

What export does in two passes over the graph is done in one, as the ops are called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import _higher_order_ops
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from capture.ir.ops import argument

__all__ = ["FunctionalMode", "from_functional", "functionalizing", "to_functional"]

aten = torch.ops.aten

_TRANSPOSED = {aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d}
_CONVOLUTIONS = {aten.conv1d, aten.conv2d, aten.conv3d, *_TRANSPOSED}


class FunctionalMode(FunctionalTensorMode):
    """Removes mutation from what runs inside; decomposes only composite ops that may alias or mutate.

    Args:
        observe: called before each op, as the model called it.
        env: the shape environment of the fake tensors.
    """

    def __init__(self, observe: Callable[[], None], env: ShapeEnv | None) -> None:
        super().__init__(pre_dispatch=True, export=True)
        for region_op in _higher_order_ops.values():  # they look their rule up by the exact class of the mode
            rules = region_op.python_key_table
            if FunctionalTensorMode in rules:
                rules.setdefault(FunctionalMode, rules[FunctionalTensorMode])
        self._observe = observe
        self._env = env

    def _can_decompose(self, func: Any, args: Any, kwargs: Any) -> bool:
        if not func._can_decompose():
            return False
        aliases = any(a.alias_info is not None for a in func._schema.arguments)
        return aliases or func._schema.is_mutable or torch.Tag.maybe_aliasing_or_mutating in func.tags

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._observe()
        if func is aten.batch_norm.default:
            with self:
                return _batch_norm(*args, **(kwargs or {}))
        if func is aten.dropout.default:  # older versions of the mode keep it whole
            with self:
                return func.decompose(*args, **(kwargs or {}))
        if func.overloadpacket in _CONVOLUTIONS and self._env is not None:
            _check_channels(func, args, kwargs or {})
            with (
                self._env.suppress_guards()
            ):  # the choice of a kernel asks for sizes, and does not matter here
                return super().__torch_dispatch__(func, types, args, kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)


def _check_channels(func: Any, args: Any, kwargs: Any) -> None:
    x, weight = args[:2]
    if func.overloadpacket in _TRANSPOSED:
        expected = weight.shape[0]
    else:
        expected = weight.shape[1] * argument(func, args, kwargs, "groups")
    torch._check(x.shape[x.dim() - weight.dim() + 1] == expected)


def _batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: float,
    eps: float,
    _cudnn: bool,
) -> Any:
    """batch_norm hides from its schema that it updates the statistics; these forms say it."""
    if not training:
        return aten._native_batch_norm_legit_no_training.default(x, weight, bias, mean, var, momentum, eps)[0]
    if mean is None:
        return aten._native_batch_norm_legit.no_stats(x, weight, bias, True, momentum, eps)[0]
    y, _, _, new_mean, new_var = aten._native_batch_norm_legit_functional.default(
        x, weight, bias, mean, var, True, momentum, eps
    )
    mean.copy_(new_mean)
    var.copy_(new_var)
    return y


def functionalizing() -> Any:
    """Keep torch's own functionalisation off while ours is on."""
    return torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize))


def to_functional(value: Any) -> Any:
    return FunctionalTensor.to_functional(value) if isinstance(value, torch.Tensor) else value


def from_functional(value: Any) -> Any:
    """The plain tensor that a traced value stands for at the end, with all writes through views applied."""
    if not isinstance(value, FunctionalTensor):
        return value
    torch._sync(value)
    return torch._from_functional_tensor(value.elem)
