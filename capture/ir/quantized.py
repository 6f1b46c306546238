"""The vocabulary of quantised graphs, PyTorch's `quantized_decomposed`, and its meaning in fp64.

PyTorch's own operators refuse fp64. A run in fp64 computes them by the formulas that define them:

    quantize    q = clamp(round(x / scale) + zero_point, quant_min, quant_max)
    dequantize  x = (q - zero_point) * scale

so that an fp64 run judges the float arithmetic between integers: the grid that values are rounded to is part
of what the graph means. A value within rounding of the middle between two integers may become either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

NAMESPACE = "quantized_decomposed"


@cache
def ops() -> Any:
    """The namespace `torch.ops.quantized_decomposed`, its operators defined; they are by an import."""
    import torch.ao.quantization.fx._decomposed

    return torch.ops.quantized_decomposed


def wide_form(op: Any) -> Callable[..., Tensor] | None:
    """The formula of an operator of the vocabulary, for any floating dtype; None for other operators."""
    if not isinstance(op, OpOverload) or op.namespace != NAMESPACE:
        return None
    return _FORMS.get(op._schema.name.partition("::")[2])


def call_wide(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """The operator in a wider dtype than it takes itself: by its formula."""
    form = wide_form(op)
    assert form is not None
    names = [a.name for a in op._schema.arguments]
    return form(dtype, {**dict(zip(names, args, strict=False)), **kwargs})


def _quantize(given: Mapping[str, Any], scale: Any, zero_point: Any) -> Tensor:
    rounded = torch.round(given["input"] * (1 / scale)) + zero_point
    made: Tensor = rounded.clamp(given["quant_min"], given["quant_max"]).to(given["dtype"])
    return made


def _dequantize(dtype: torch.dtype, given: Mapping[str, Any], scale: Any, zero_point: Any) -> Tensor:
    made: Tensor = (given["input"].to(dtype) - zero_point) * scale
    return made


def _along(given: Mapping[str, Any], numbers: Tensor | None) -> Any:
    """One number a channel, in a shape that broadcasts."""
    if numbers is None:
        return 0
    shape = [1] * given["input"].dim()
    shape[given["axis"]] = -1
    return numbers.reshape(shape)


def _by_group(given: Mapping[str, Any], numbers: Tensor | None) -> Any:
    """One number for each `group_size` elements of a row, in the shape of the rows."""
    return 0 if numbers is None else numbers.repeat_interleave(given["group_size"], dim=-1)


_FORMS: dict[str, Callable[[torch.dtype, Mapping[str, Any]], Tensor]] = {
    "quantize_per_tensor": lambda _, g: _quantize(g, g["scale"], g["zero_point"]),
    "dequantize_per_tensor": lambda t, g: _dequantize(t, g, g["scale"], g["zero_point"]),
    "quantize_per_channel": lambda _, g: _quantize(g, _along(g, g["scales"]), _along(g, g["zero_points"])),
    "dequantize_per_channel": lambda t, g: _dequantize(
        t, g, _along(g, g["scales"]), _along(g, g["zero_points"])
    ),
    "dequantize_per_channel_group": lambda t, g: _dequantize(
        t, g, _by_group(g, g["scales"]), _by_group(g, g["zero_points"])
    ),
    "quantize_per_token": lambda _, g: _quantize(g, g["scales"], g["zero_points"]),
    "dequantize_per_token": lambda t, g: _dequantize(t, g, g["scales"], g["zero_points"]),
}

__all__ = ["NAMESPACE", "call_wide", "ops", "wide_form"]
