"""Built-in lowerings that take more than a form: options, several dtypes, composite activations."""

from __future__ import annotations

from typing import Any

import torch

from codegen.triton.ops import HALVES, TYPES, Expression, Term, held
from codegen.triton.table import lowers


@lowers("add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar")
def add(k: Expression, a: Any, b: Any, alpha: Any = 1) -> str:
    name = k.node.op._schema.name.partition("::")[2]
    if name == "rsub":
        a, b = b, a
    left, right = k.cast(a, k.dtype), k.cast(b, k.dtype)
    if k.dtype == torch.bool:
        return f"{left} | {right}"
    scaled = right if alpha == 1 else f"{k.cast(alpha, k.dtype)} * {right}"
    return f"{left} {'+' if name == 'add' else '-'} {scaled}"


@lowers("mul.Tensor mul.Scalar")
def mul(k: Expression, a: Any, b: Any) -> str:
    return f"{k.cast(a, k.dtype)} {'&' if k.dtype == torch.bool else '*'} {k.cast(b, k.dtype)}"


@lowers("floor_divide div.Tensor_mode div.Scalar_mode")
def divide(k: Expression, a: Any, b: Any, rounding_mode: str | None = "floor") -> str:
    if rounding_mode is None:
        return f"{k.cast(a, k.dtype)} / {k.cast(b, k.dtype)}"
    left, right = k.cast(a, k.dtype, exact=True), k.cast(b, k.dtype, exact=True)
    floating = k.dtype.is_floating_point
    if rounding_mode == "floor":
        return f"{k.helper('floor_div_float' if floating else 'floor_div')}({left}, {right})"
    return f"{k.helper('trunc')}({left} / {right})" if floating else f"{left} // {right}"


@lowers("pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar")
def power(k: Expression, x: Any, y: Any) -> str:
    if not k.dtype.is_floating_point:
        if isinstance(y, int) and 1 <= y <= 8:
            return " * ".join([k.cast(x, k.dtype)] * y)
        raise k.unsupported("an integer power that is not a small number")
    if not isinstance(x, Term):
        base = k.cast(y, k.dtype)
        return f"{k.helper('power')}(tl.zeros_like({base}) + {k.cast(x, k.dtype)}, {base})"
    text = k.cast(x, k.dtype)
    products = {1: text, 2: f"{text} * {text}", 3: f"{text} * {text} * {text}", -1: f"1 / {text}"}
    products |= {0.5: f"tl.sqrt({text})", -0.5: f"1 / tl.sqrt({text})", -2: f"1 / ({text} * {text})"}
    if not isinstance(y, Term) and y in products:
        return products[y]
    return f"{k.helper('power')}({text}, {k.cast(y, k.dtype)})"


@lowers("round")
def nearest(k: Expression, x: Any, decimals: int = 0) -> str:
    if decimals:
        raise k.unsupported("to a number of decimals")
    text = k.cast(x, k.dtype, exact=True)
    return f"{k.helper('rounded')}({text})" if k.dtype.is_floating_point else text


@lowers("where.self where.ScalarSelf where.ScalarOther where.Scalar")
def where(k: Expression, condition: Any, a: Any, b: Any) -> str:
    return f"tl.where({k.cast(condition, torch.bool)}, {k.cast(a, k.dtype)}, {k.cast(b, k.dtype)})"


@lowers("masked_fill.Scalar masked_fill.Tensor")
def masked_fill(k: Expression, x: Any, mask: Any, value: Any) -> str:
    return where(k, mask, value, x)


@lowers("clamp hardtanh")
def clamp(k: Expression, x: Any, low: Any = None, high: Any = None) -> str:
    text = k.cast(x, k.dtype)
    for name, bound in (("maximum", low), ("minimum", high)):
        if bound is not None:
            text = f"tl.{name}({text}, {k.cast(bound, k.dtype)}, propagate_nan=tl.PropagateNan.ALL)"
    return text


@lowers("gelu")
def gelu(k: Expression, x: Any, approximate: str = "none") -> str:
    text = k.cast(x, k.dtype)
    if approximate == "none":
        return f"0.5 * {text} * (1 + tl.erf({text} * 0.7071067811865476))"
    inner = f"0.7978845608028654 * ({text} + 0.044715 * {text} * {text} * {text})"
    return f"0.5 * {text} * (1 + {k.helper('tanh')}({inner}))"


@lowers("leaky_relu")
def leaky_relu(k: Expression, x: Any, slope: Any) -> str:
    text = k.cast(x, k.dtype)
    return f"tl.where({text} > 0, {text}, {text} * {k.cast(slope, k.dtype)})"


@lowers("elu")
def elu(k: Expression, x: Any, alpha: Any, scale: Any, input_scale: Any) -> str:
    text, factor = k.cast(x, k.dtype), float(alpha) * float(scale)
    below = f"{k.cast(factor, k.dtype)} * {k.helper('expm1')}({text} * {k.cast(input_scale, k.dtype)})"
    return f"tl.where({text} > 0, {text} * {k.cast(scale, k.dtype)}, {below})"


@lowers("celu")
def celu(k: Expression, x: Any, alpha: Any) -> str:
    return elu(k, x, alpha, 1.0, 1.0 / float(alpha))


@lowers("selu")
def selu(k: Expression, x: Any) -> str:
    return elu(k, x, 1.6732632423543772, 1.0507009873554805, 1.0)


@lowers("softplus")
def softplus(k: Expression, x: Any, beta: Any, threshold: Any) -> str:
    text, scale = k.cast(x, k.dtype), k.cast(beta, k.dtype)
    soft = f"{k.helper('log1p')}(tl.exp({text} * {scale})) / {scale}"
    return f"tl.where({text} * {scale} > {k.cast(threshold, k.dtype)}, {text}, {soft})"


@lowers("lerp.Scalar lerp.Tensor")
def lerp(k: Expression, a: Any, b: Any, weight: Any) -> str:
    start, end = k.cast(a, k.dtype), k.cast(b, k.dtype)
    return f"{start} + {k.cast(weight, k.dtype)} * ({end} - {start})"


@lowers("addcmul addcdiv")
def addcmul(k: Expression, x: Any, a: Any, b: Any, value: Any = 1) -> str:
    sign = "*" if k.node.op._schema.name == "aten::addcmul" else "/"
    term = f"{k.cast(value, k.dtype)} * {k.cast(a, k.dtype)} {sign} {k.cast(b, k.dtype)}"
    return f"{k.cast(x, k.dtype)} + {term}"


@lowers("bitwise_not")
def bitwise_not(k: Expression, x: Any) -> str:
    return f"{x} == 0" if k.dtype == torch.bool else f"~{x}"


@lowers("_to_copy")
def to_copy(k: Expression, x: Term, dtype: torch.dtype | None = None, **others: Any) -> str:
    if set(others) - {"non_blocking", "memory_format"}:
        raise k.unsupported(f"with {', '.join(sorted(others))}")
    text = k.cast(x, k.dtype, exact=True)
    if k.dtype in HALVES and x.dtype != k.dtype:
        text = f"{text}.to({TYPES[k.dtype]}).to({TYPES[held(k.dtype)]})"
    return text


__all__: list[str] = []
