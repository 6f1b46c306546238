"""A region with reductions as steps: pointwise lines, and reductions that keep a state.

    layer_norm(x, weight)  ==>   count, mean, square = moments(x)                    a reduction
                                 scale = 1 / sqrt(square / count + eps)              one number a row
                                 v0 = (x - mean) * scale * weight                    an element

Each reduction can be done on a whole row, on chunk after chunk, or on parts of a row by several programs: its
`state` is what is known of a part, `join` makes one state of two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from capture.errors import UnsupportedOpError
from capture.ir import Node, Value, op_name
from codegen.triton.ops import TYPES, Body, Expression, Term, add_helper, check_dtypes, held
from codegen.triton.table import find

COUNT = "column_count"  # the length of a row, in a kernel


@dataclass(frozen=True)
class Reduction:
    """How rows become one state each.

    Attributes:
        state: names of its parts: one, or several.
        part: expression of the state of a part of a row; a tuple where there are several names.
        start: initial values, before any part.
        join: expression from ``{0}``, ``{1}``, ... (the state so far) and ``{0}_part``, ...
        dtypes: Triton's type of each part of the state.
        fold: the function that joins two states, for `tl.reduce`; "" where they are summed.
    """

    state: tuple[str, ...]
    part: str
    start: tuple[str, ...]
    join: str
    dtypes: tuple[str, ...]
    fold: str = ""


@dataclass(frozen=True)
class Step:
    """``names = text``; `reads` are the names in it, `wide` tells whether it varies along a row.

    A scan also has a `carry`: its name, its Triton type and the element that is summed up before a chunk.
    """

    names: tuple[str, ...]
    text: str
    wide: bool
    comment: str = ""
    reduction: Reduction | None = None
    carry: tuple[str, str, str] | None = None

    @property
    def reads(self) -> set[str]:
        return set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", self.text))


class Steps:
    """The steps of a piece, in order; `terms` names each value's element."""

    def __init__(self, names: Callable[[Value], str]) -> None:
        self.helpers: dict[str, str] = {}
        self.body = Body(self.helpers, names)
        self.steps: list[Step] = []
        self.wide: set[str] = {"column"}

    def add(self, node: Node) -> None:
        """Take a node.

        Raises:
            UnsupportedOpError: it has no Triton form.
        """
        check_dtypes(node)
        fn = REDUCTIONS.get(op_name(node.op).removeprefix("aten."))
        if fn is not None:
            term = self.body.terms[node.operands[0]]
            result = node.results[0]
            text = fn(self, node, Expression(node, self.helpers), term)
            name = self.body.names(result)
            self.define(name, text, op_name(node.op))
            self.body.terms[result] = Term(name, result.tensor_type.dtype, False, result.tensor_type.rank)
            return
        if find(node.op) is None:
            raise Expression(node, self.helpers).unsupported("it is not in the table")
        term, text = self.body.expression(node)
        self.body.terms[node.results[0]] = term
        self.define(str(term), text, op_name(node.op))

    def define(self, name: str, text: str, comment: str = "") -> str:
        """One more step, `name = text`."""
        step = Step((name,), text, False, comment)
        wide = not step.reads.isdisjoint(self.wide)
        self.steps.append(Step((name,), text, wide, comment))
        if wide:
            self.wide.add(name)
        return name

    def reduce(self, reduction: Reduction) -> None:
        self.steps.append(Step(reduction.state, reduction.part, False, "", reduction))

    def element(self, node: Node, k: Expression, term: Term) -> str:
        """The reduced operand in the result's register, for every column of a tile."""
        text = k.cast(term, k.dtype)
        if text not in self.wide and str(term) not in self.wide:
            text = f"tl.broadcast_to({text}, (ROWS, COLUMNS))"
        return self.define(f"{self.body.names(node.results[0])}_x", text) if text != str(term) else text

    def need(self, *helpers: str) -> None:
        for name in helpers:
            add_helper(self.helpers, name)


def _total(steps: Steps, name: str, x: str, dtype: torch.dtype) -> str:
    """The sum of each row."""
    kind = TYPES[held(dtype)]
    zero = "0.0" if dtype.is_floating_point else "0"
    part = f"tl.sum(tl.where(inside, {x}, {zero}), 1, keep_dims=True)"
    steps.reduce(Reduction((name,), part, (zero,), "{0} + {0}_part", (kind,)))
    return name


def _name(steps: Steps, node: Node, suffix: str) -> str:
    return f"{steps.body.names(node.results[0])}_{suffix}"


def total(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    return _total(steps, _name(steps, node, "sum"), steps.element(node, k, x), k.dtype)


def mean(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    return f"{total(steps, node, k, x)} / {COUNT}"


def product(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    steps.need("times")
    name, element, one = _name(steps, node, "product"), steps.element(node, k, x), "1"
    part = f"tl.reduce(tl.where(inside, {element}, {one}), 1, times, keep_dims=True)"
    steps.reduce(Reduction((name,), part, (one,), "{0} * {0}_part", (TYPES[held(k.dtype)],), "times"))
    return name


def extreme(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    """amax, amin, max, min: NaN goes on."""
    which = "max" if "max" in op_name(node.op) else "min"
    return _extreme(steps, _name(steps, node, which), steps.element(node, k, x), x.dtype, which, k)


def _extreme(steps: Steps, name: str, x: str, dtype: torch.dtype, which: str, k: Expression) -> str:
    kind = TYPES[held(dtype)]
    if dtype.is_floating_point:
        steps.need(f"row_{which}")
        start = f'{"-" if which == "max" else ""}float("inf")'
        part = f"row_{which}({x}, inside)"
        fold = "larger" if which == "max" else "smaller"
    elif dtype == torch.bool:
        raise k.unsupported("of booleans")
    else:
        limits = torch.iinfo(dtype)
        start = f"{limits.min if which == 'max' else limits.max}"
        part = f"tl.{which}(tl.where(inside, {x}, {start}), 1, keep_dims=True).to({kind})"
        fold = "larger_whole" if which == "max" else "smaller_whole"
    steps.need(fold)
    steps.reduce(Reduction((name,), part, (start,), f"{fold}({{0}}, {{0}}_part)", (kind,), fold))
    return name


def some(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    """any, all"""
    which = "max" if "any" in op_name(node.op) else "min"
    name, outside = _name(steps, node, "found"), "0" if which == "max" else "1"
    element = steps.element(node, k, x)
    part = f"tl.{which}(tl.where(inside, ({element} != 0).to(tl.int32), {outside}), 1, keep_dims=True)"
    fold = "larger_whole" if which == "max" else "smaller_whole"
    steps.need(fold)
    steps.reduce(Reduction((name,), part, (outside,), f"{fold}({{0}}, {{0}}_part)", ("tl.int32",), fold))
    return f"{name} != 0"


def _exp_sums(steps: Steps, node: Node, k: Expression, x: Term) -> tuple[str, str, str]:
    steps.need("exp_sum", "join_exp_sums")
    element = steps.element(node, k, x)
    top, total_ = _name(steps, node, "top"), _name(steps, node, "sum")
    kind = TYPES[held(k.dtype)]
    join = "join_exp_sums({0}, {1}, {0}_part, {1}_part)"
    start, kinds = ('-float("inf")', "0.0"), (kind, kind)
    part = f"exp_sum({element}, inside)"
    steps.reduce(Reduction((top, total_), part, start, join, kinds, "join_exp_sums"))
    return element, top, total_


def softmax(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    element, top, total_ = _exp_sums(steps, node, k, x)
    whole = steps.define(_name(steps, node, "whole"), f"{total_} + ({top} - {top})", "NaN where infinite")
    return f"tl.exp({element} - {top}) / {whole}"


def log_softmax(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    element, top, total_ = _exp_sums(steps, node, k, x)
    whole = steps.define(_name(steps, node, "whole"), f"tl.log({total_}) + ({top} - {top})")
    return f"{element} - {top} - {whole}"


def logsumexp(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    _, top, total_ = _exp_sums(steps, node, k, x)
    return f"tl.log({total_}) + finite({top})"


def _moments(steps: Steps, node: Node, k: Expression, x: Term) -> tuple[str, str, str]:
    """(element, mean, sum of squared differences)"""
    steps.need("moments", "join_moments")
    element = steps.element(node, k, x)
    names = tuple(_name(steps, node, part) for part in ("count", "mean", "square"))
    kind = TYPES[held(k.dtype)]
    join = "join_moments({0}, {1}, {2}, {0}_part, {1}_part, {2}_part)"
    kinds = ("tl.float32", kind, kind)
    start = ("0.0", "0.0", "0.0")
    part = f"moments({element}, inside)"
    steps.reduce(Reduction(names, part, start, join, kinds, "join_moments"))
    return element, names[1], names[2]


def variance(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    """var, std"""
    if "correction" in op_name(node.op):
        correction: Any = node.arg("correction")
        correction = 1 if correction is None else correction
    else:
        correction = int(node.arg("unbiased"))
    _, _, square = _moments(steps, node, k, x)
    text = f"{square} / tl.maximum({COUNT} - {float(correction)}, 0.0)"
    return f"tl.sqrt({text})" if "std" in op_name(node.op) else text


def layer_norm(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    element, average, square = _moments(steps, node, k, x)
    eps = float(node.arg("eps"))
    scale = steps.define(_name(steps, node, "scale"), f"1 / tl.sqrt({square} / {COUNT} + {eps!r})")
    return _affine(steps, node, k, f"({element} - {average}) * {scale}")


def rms_norm(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    element = steps.element(node, k, x)
    given = node.arg("eps")
    eps = torch.finfo(held(x.dtype)).eps if given is None else float(given)
    total_ = _total(steps, _name(steps, node, "sum"), f"{element} * {element}", k.dtype)
    scale = steps.define(_name(steps, node, "scale"), f"1 / tl.sqrt({total_} / {COUNT} + {eps!r})")
    return _affine(steps, node, k, f"{element} * {scale}")


def _affine(steps: Steps, node: Node, k: Expression, text: str) -> str:
    for name, sign in (("weight", "*"), ("bias", "+")):
        given = node.arg(name) if any(a.name == name for a in node.op._schema.arguments) else None
        if given is not None:
            text = f"{text} {sign} {k.cast(steps.body.terms[given], k.dtype)}"
    return text


def vector_norm(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    order = float(node.arg("ord"))
    element = steps.element(node, k, x)
    if order == 2:
        return f"tl.sqrt({_total(steps, _name(steps, node, 'sum'), f'{element} * {element}', k.dtype)})"
    size = steps.define(_name(steps, node, "size"), f"tl.abs({element})")
    if order == 1:
        return _total(steps, _name(steps, node, "sum"), size, k.dtype)
    if order == float("inf"):
        return _extreme(steps, _name(steps, node, "max"), size, k.dtype, "max", k)
    raise k.unsupported(f"of order {order}")


def position(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    """argmax, argmin: the first of equals; NaN is the best of all."""
    which = "max" if "max" in op_name(node.op) else "min"
    if not x.dtype.is_floating_point:
        raise k.unsupported("of whole numbers")
    steps.need(f"row_{which}", "first_where")
    best, at = _name(steps, node, which), _name(steps, node, "at")
    kind, sign = TYPES[held(x.dtype)], ">" if which == "max" else "<"
    helper = f"best_{which}"
    steps.helpers[helper] = f'''@triton.jit
def best_{which}(x, column, inside):
    """(best element, its column) of each row."""
    best = row_{which}(x, inside)
    return best, first_where(x, best, column, inside)'''
    steps.helpers[f"join_{helper}"] = f'''@triton.jit
def join_best_{which}(best1, at1, best2, at2):
    """The same of two parts of a row, the first one first."""
    better = (best2 {sign} best1) | ((best2 != best2) & (best1 == best1))
    return tl.where(better, best2, best1), tl.where(better, at2, at1)'''
    start = (f'{"-" if which == "max" else ""}float("inf")', "0")
    part = f"best_{which}({x}, column, inside)"
    join = f"join_best_{which}({{0}}, {{1}}, {{0}}_part, {{1}}_part)"
    steps.reduce(Reduction((best, at), part, start, join, (kind, "tl.int32"), f"join_best_{which}"))
    return f"{at}.to(tl.int64)"


def running_sum(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    element = steps.element(node, k, x)
    inside = steps.define(_name(steps, node, "inside"), f"tl.where(inside, {element}, 0)")
    scanned, carry = _name(steps, node, "scan"), (_name(steps, node, "carry"), TYPES[held(k.dtype)], inside)
    steps.steps.append(Step((scanned,), f"tl.cumsum({inside}, 1)", True, "", None, carry))
    steps.wide.add(scanned)
    return scanned


def cross_entropy(steps: Steps, node: Node, k: Expression, x: Term) -> str:
    """The loss of each row: log(sum(exp(x))) - x[target], or 0 where the target is to be ignored."""
    target = steps.body.terms[node.operands[1]]
    plain = node.arg("weight") is None and node.arg("label_smoothing") == 0.0 and node.arg("reduction") == 0
    if not plain or target.dtype != torch.int64 or target.rank != x.rank - 1:
        raise k.unsupported("with weights, smoothing, probabilities, or a sum inside a region")
    element, top, total_ = _exp_sums(steps, node, k, x)
    hit = steps.define(_name(steps, node, "hit"), f"tl.where(column == {target}, {element}, 0.0)")
    picked = _total(steps, _name(steps, node, "picked"), hit, k.dtype)
    whole = steps.define(_name(steps, node, "whole"), f"tl.log({total_}) + ({top} - {top}) + {top}")
    return f"tl.where({target} == {node.arg('ignore_index')}, 0.0, {whole} - {picked})"


REDUCTIONS: dict[str, Callable[[Steps, Node, Expression, Term], str]] = {
    **dict.fromkeys(["sum", "sum.dim_IntList"], total),
    **dict.fromkeys(["mean", "mean.dim"], mean),
    **dict.fromkeys(["prod", "prod.dim_int"], product),
    **dict.fromkeys(["amax", "amin", "max", "min"], extreme),
    **dict.fromkeys(["any", "all", "any.dim", "all.dim"], some),
    **dict.fromkeys(["softmax.int", "_softmax"], softmax),
    **dict.fromkeys(["log_softmax.int", "_log_softmax"], log_softmax),
    **dict.fromkeys(["var.dim", "var.correction", "std.dim", "std.correction"], variance),
    **dict.fromkeys(["argmax", "argmin"], position),
    "cumsum": running_sum,
    "cross_entropy_loss": cross_entropy,
    "logsumexp": logsumexp,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "linalg_vector_norm": vector_norm,
}


def is_reduction(node: Node) -> bool:
    """Whether a kernel reduces along rows for it."""
    return op_name(node.op).removeprefix("aten.") in REDUCTIONS


def unsupported_rows(node: Node) -> UnsupportedOpError:
    return Expression(node, {}).unsupported("it does not work along rows")


__all__ = ["COUNT", "REDUCTIONS", "Reduction", "Step", "Steps", "is_reduction", "unsupported_rows"]
