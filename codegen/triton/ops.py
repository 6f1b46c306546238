"""A node of a region as one line of a kernel: `name = expression`.

Elements of half precision are held in float32 and rounded where they leave the kernel, where the graph casts
them, and where rounding decides (a comparison, a floor); that is more exact than rounding after each
operator, as eager does. All others are held in their own dtype.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch

from capture.errors import UnsupportedOpError
from capture.ir import Node, TensorType, Value, op_name
from capture.ir.dims import format_dim
from codegen.triton.helpers import HELPERS, NEEDS
from codegen.triton.table import find, lowers

HALVES = (torch.float16, torch.bfloat16)
TYPES: dict[torch.dtype, str] = {
    torch.float64: "tl.float64",
    torch.float32: "tl.float32",
    torch.float16: "tl.float16",
    torch.bfloat16: "tl.bfloat16",
    torch.int64: "tl.int64",
    torch.int32: "tl.int32",
    torch.int16: "tl.int16",
    torch.int8: "tl.int8",
    torch.uint8: "tl.uint8",
    torch.bool: "tl.int1",
}


def held(dtype: torch.dtype) -> torch.dtype:
    """The dtype of an element's register."""
    return torch.float32 if dtype in HALVES else dtype


class Term(str):
    """The name of an element in a kernel: its dtype, and whether it has been rounded to it."""

    dtype: torch.dtype
    rounded: bool
    rank: int

    def __new__(cls, text: str, dtype: torch.dtype, rounded: bool = True, rank: int = 1) -> Term:
        made = super().__new__(cls, text)
        made.dtype, made.rounded, made.rank = dtype, rounded, rank
        return made


class Expression:
    """What a lowering is given: the node's result, and the kernel's helpers."""

    def __init__(self, node: Node, helpers: dict[str, str]) -> None:
        self.node = node
        self.dtype = node.results[0].tensor_type.dtype
        self._helpers = helpers

    def cast(self, x: Any, dtype: torch.dtype, *, exact: bool = False) -> str:
        """An element, number or size in the register of that dtype; `exact` rounds a half first."""
        if not isinstance(x, Term):
            return number(x, dtype)
        text = str(x)
        if exact and x.dtype in HALVES and not x.rounded:
            text = f"{text}.to({TYPES[x.dtype]}).to(tl.float32)"
        if held(x.dtype) == held(dtype):
            return text
        return f"({text} != 0)" if dtype == torch.bool else f"{text}.to({TYPES[held(dtype)]})"

    def common(self, *operands: Any) -> torch.dtype:
        """The dtype in which PyTorch computes on these operands together."""
        dummies = [
            torch.empty((1,) * min(x.rank, 1), dtype=x.dtype, device="meta") if isinstance(x, Term) else x
            for x in operands
        ]
        first, *rest = [v if not isinstance(v, sympy.Expr) else 1 for v in dummies]
        for other in rest:
            dtype = torch.result_type(first, other)
            ranked = any(torch.is_tensor(v) and v.dim() for v in (first, other))
            first = torch.empty((1,) * ranked, dtype=dtype, device="meta")
        return first.dtype

    def helper(self, name: str, source: str | None = None) -> str:
        """The name of a device function, which the file then holds."""
        add_helper(self._helpers, name, source)
        return name

    def unsupported(self, why: str) -> UnsupportedOpError:
        return UnsupportedOpError(
            f"{op_name(self.node.op)} has no Triton form here", where=str(self.node.origin) or None, why=why
        )


def add_helper(helpers: dict[str, str], name: str, source: str | None = None) -> None:
    """Put a device function among a kernel's helpers, after those that it calls."""
    for needed in NEEDS.get(name, ()):
        add_helper(helpers, needed)
    helpers[name] = (source or HELPERS[name]).strip("\n")


def used_helpers(helpers: dict[str, str], kernels: str) -> list[str]:
    """The device functions that the kernels call, directly or through others, in their order."""
    text, kept = kernels, []
    for name, source in reversed(helpers.items()):
        if re.search(rf"\b{name}\b", text):
            kept.insert(0, source)
            text += source
    return kept


def number(x: Any, dtype: torch.dtype) -> str:
    """A Python number as text that Triton takes for that dtype."""
    if isinstance(x, sympy.Expr):
        return f"({format_dim(x)})"
    if dtype == torch.bool:
        return str(bool(x))
    if not dtype.is_floating_point:
        return str(int(x)) if x >= 0 else f"({int(x)})"
    value = float(x)
    if not math.isfinite(value):
        return f'float("{value}")'
    return repr(value) if math.copysign(1, value) > 0 else f"({value!r})"


class Body:
    """The lines of a kernel's arithmetic; `terms` names what has been computed."""

    def __init__(self, helpers: dict[str, str], names: Callable[[Value], str]) -> None:
        self.helpers = helpers
        self.names = names
        self.terms: dict[Value, Term] = {}

    def line(self, node: Node) -> str:
        """``v3 = tl.exp(v2)``; the result's term is known from then on.

        Raises:
            UnsupportedOpError: the operator, its dtype or this use of it has no Triton form.
        """
        result = node.results[0]
        term, text = self.expression(node)
        self.terms[result] = term
        return f"{term} = {text}  # {op_name(node.op)}"

    def expression(self, node: Node) -> tuple[Term, str]:
        result = node.results[0]
        k = Expression(node, self.helpers)
        fn = find(node.op)
        if fn is None:
            raise k.unsupported("it is not in the table (triton.register_lowering adds to it)")
        check_dtypes(node)
        operands, keywords = self._arguments(node)
        text = fn(k, *operands, **keywords)
        dtype = result.tensor_type.dtype
        if dtype.itemsize < 4 and not dtype.is_floating_point and dtype != torch.bool:
            text = f"({text}).to({TYPES[dtype]})"  # narrow integers wrap
        rounded = node.is_op(torch.ops.aten._to_copy.default, torch.ops.aten.relu.default)
        rounded = rounded or dtype not in HALVES
        return Term(self.names(result), dtype, rounded, result.tensor_type.rank), text

    def _arguments(self, node: Node) -> tuple[list[Any], dict[str, Any]]:
        def given(x: Any) -> Any:
            return self.terms[x] if isinstance(x, Value) else x

        named = [a.name for a in node.op._schema.arguments if not a.kwarg_only]
        operands: Mapping[str, Any] = {name: given(node.arg(name)) for name in named}
        return list(operands.values()), {k: given(v) for k, v in node.kwargs.items() if k not in operands}


def check_dtypes(node: Node) -> None:
    """Refuse dtypes that kernels do not hold: complex, float8, wide unsigned integers.

    Raises:
        UnsupportedOpError: an operand or result has such a dtype, or is no tensor.
    """
    for value in (*node.operand_values, *node.results):
        known = isinstance(value.type, TensorType) and value.type.dtype in TYPES
        if not known:
            raise UnsupportedOpError(
                f"{op_name(node.op)} has no Triton form here",
                where=str(node.origin) or None,
                why=f"{value.type} is held in no register",
            )


# -- the built-in table ------------------------------------------------------------------------------------

_FORMS: dict[str, str] = {  # of operands in the result's dtype
    "neg": "-{0}",
    "abs": "tl.abs({0})",
    "relu": "tl.where({0} < 0, 0, {0})",
    "exp": "tl.exp({0})",
    "exp2": "tl.exp2({0})",
    "log": "tl.log({0})",
    "log2": "tl.log2({0})",
    "log10": "tl.log({0}) * 0.4342944819032518",
    "sqrt": "tl.sqrt({0})",
    "rsqrt": "1 / tl.sqrt({0})",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "erf": "tl.erf({0})",
    "sigmoid": "1 / (1 + tl.exp(-{0}))",
    "silu": "{0} / (1 + tl.exp(-{0}))",
    "log_sigmoid": "tl.where({0} < 0, {0}, 0) - {log1p}(tl.exp(-tl.abs({0})))",
    "tanh": "{tanh}({0})",
    "log1p": "{log1p}({0})",
    "expm1": "{expm1}({0})",
    "mish": "{0} * {tanh}(tl.where({0} > 20, {0}, {log1p}(tl.exp({0}))))",
    "reciprocal": "1 / {0}",
    "square": "{0} * {0}",
    "hardsigmoid": "tl.where({0} < -3, 0, tl.where({0} > 3, 1, ({0} + 3) / 6))",
    "hardswish": "{0} * tl.where({0} < -3, 0, tl.where({0} > 3, 1, ({0} + 3) / 6))",
    "div.Tensor": "{0} / {1}",
    "div.Scalar": "{0} / {1}",
    "maximum": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "minimum": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "hypot": "tl.sqrt({0} * {0} + {1} * {1})",
}
_FORMS["max.other"], _FORMS["min.other"] = _FORMS["maximum"], _FORMS["minimum"]
_FORMS["clamp_min"], _FORMS["clamp_max"] = _FORMS["maximum"], _FORMS["minimum"]
_EXACT_FORMS: dict[str, str] = {  # where a rounding may decide, operands are rounded first
    "floor": "tl.floor({0})",
    "ceil": "tl.ceil({0})",
    "trunc": "{trunc}({0})",
    "fmod": "{0} % {1}",
    "remainder": "{remainder}({0}, {1})",
    "sign": "({0} > 0).to({type}) - ({0} < 0).to({type})",
    "heaviside": "tl.where({0} == 0, {1}, ({0} > 0).to({type}))",
}
_COMPARISONS: dict[str, str] = {
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "isnan": "{0} != {0}",
    "isinf": 'tl.abs({0}) == float("inf")',
    "isfinite": 'tl.abs({0}) < float("inf")',
}
_LOGIC: dict[str, str] = {
    "logical_and": "{0} & {1}",
    "logical_or": "{0} | {1}",
    "logical_xor": "{0} ^ {1}",
    "logical_not": "{0} == 0",
}
_BITWISE: dict[str, str] = {"bitwise_and": "{0} & {1}", "bitwise_or": "{0} | {1}", "bitwise_xor": "{0} ^ {1}"}


def _fill(k: Expression, form: str, texts: list[str]) -> str:
    helpers = {name: k.helper(name) for name in HELPERS if f"{{{name}}}" in form}
    return form.format(*texts, **helpers, type=TYPES[held(k.dtype)])


def _by_form(form: str, exact: bool) -> Callable[..., str]:
    def lower(k: Expression, *operands: Any, **keywords: Any) -> str:
        if keywords:
            raise k.unsupported(f"with {', '.join(keywords)}")
        return _fill(k, form, [k.cast(x, k.dtype, exact=exact) for x in operands])

    return lower


def _compared(form: str) -> Callable[..., str]:
    def lower(k: Expression, *operands: Any) -> str:
        dtype = k.common(*operands)
        return _fill(k, form, [k.cast(x, dtype, exact=True) for x in operands])

    return lower


def _logical(form: str) -> Callable[..., str]:
    return lambda k, *operands: form.format(*(k.cast(x, torch.bool, exact=True) for x in operands))


for _table, _make in (
    (_FORMS, lambda form: _by_form(form, exact=False)),
    (_EXACT_FORMS, lambda form: _by_form(form, exact=True)),
    (_COMPARISONS, _compared),
    (_LOGIC, _logical),
    (_BITWISE, lambda form: _by_form(form, exact=False)),
):
    for _name, _form in _table.items():
        lowers(_name)(_make(_form))

__all__ = [
    "HALVES", "TYPES", "Body", "Expression", "Term", "add_helper", "check_dtypes", "held", "number",
    "used_helpers",
]  # fmt: skip
