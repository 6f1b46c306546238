"""Products of the graph, alone or with what runs before and after them, as matrix product kernels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from capture.ir import Node, Range, TensorType, Value, op_name
from codegen.triton.file import KernelFile
from codegen.triton.ops import HALVES, TYPES, Body, Term, held, number
from codegen.triton.piece import Piece
from codegen.triton.templates.matmul import Extra, Matmul
from codegen.triton.templates.sizes import captured_shape

aten = torch.ops.aten
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TAKEN = frozenset(
    "a b c x y m n k acc M N K batch config extras launch lead shape splits strides tiles value".split()
)


@dataclass(frozen=True)
class Product:
    """What an anchor multiplies and adds: result = alpha * a @ b + beta * bias."""

    form: str
    a: Value
    b: Value
    bias: Value | None = None
    alpha: Any = 1
    beta: Any = 1


def _linear(node: Node) -> Product:
    return Product("linear", node.operands[0], node.operands[1], node.arg("bias"))


def _added(form: str) -> Callable[[Node], Product]:
    def read(node: Node) -> Product:
        bias, a, b = node.operands[:3]
        return Product(form, a, b, bias, node.arg("alpha"), node.arg("beta"))

    return read


def _matmul(node: Node) -> Product | None:
    a, b = node.operands
    shape_a, shape_b = a.tensor_type.shape, b.tensor_type.shape
    if len(shape_a) >= 2 and len(shape_b) == 2:
        return Product("flat", a, b)
    alike = len(shape_a) == len(shape_b) >= 3 and shape_a[:-2] == shape_b[:-2]
    return Product("bmm", a, b) if alike else None


PRODUCTS: dict[Any, Callable[[Node], Product | None]] = {
    aten.linear.default: _linear,
    aten.mm.default: lambda node: Product("mm", *node.operands),
    aten.bmm.default: lambda node: Product("bmm", *node.operands),
    aten.addmm.default: _added("mm"),
    aten.baddbmm.default: _added("bmm"),
    aten.matmul.default: _matmul,
}


def product_file(node: Node, dims: Mapping[str, Range]) -> KernelFile | None:
    """The kernel file of a product or of a fusion around one; None where the template does not fit.

    Raises:
        UnsupportedOpError: what runs before or after it has no Triton form.
    """
    piece = Piece.of(node)
    anchors = [n for n in piece.nodes if n.op in PRODUCTS]
    if len(anchors) != 1 or len(piece.results) != 1 or piece.results[0] is not piece.nodes[-1].results[0]:
        return None
    anchor = anchors[0]
    product = PRODUCTS[anchor.op](anchor)
    if product is None or not _is_multiplied_here(product):
        return None
    for value in piece.inputs:
        if piece.names[value] in _TAKEN:
            piece.names[value] += "_in"
    return _Match(piece, anchor, product, dims).file()


def _is_multiplied_here(product: Product) -> bool:
    types = [product.a.tensor_type, product.b.tensor_type]
    floating = types[0].dtype == types[1].dtype and types[0].dtype in _DTYPES
    return floating and types[1].rank >= 2 and types[0].rank >= 2 and product.a is not product.b


class _Match:
    def __init__(self, piece: Piece, anchor: Node, product: Product, dims: Mapping[str, Range]) -> None:
        self.piece, self.anchor, self.product, self.dims = piece, anchor, product, dims
        self.body = Body({}, piece.names.__getitem__)
        position = piece.nodes.index(anchor)
        self.before, self.after = piece.nodes[:position], piece.nodes[position + 1 :]

    def file(self) -> KernelFile | None:
        operands = [self._source(self.product.a), self._source(self.product.b)]
        if None in operands:
            return None
        a, b = operands
        extras = [self._extra(v) for v in self.piece.inputs if v not in (a, b)]
        shape = self.anchor.results[0].tensor_type.shape
        alike = all(n.results[0].tensor_type.shape == shape for n in self.after)
        reused = any(v in (a, b) for n in self.after for v in n.operand_values)
        if None in extras or not alike or reused or a is b:
            return None
        prologue = self._prologue(a, "x") + self._prologue(b, "y")
        value, lines = self._epilogue([v for v in self.piece.inputs if v not in (a, b)])
        *lead, n = captured_shape(shape, self.dims)
        k = captured_shape(a.tensor_type.shape, self.dims)[-1]
        names = self.piece.names
        return Matmul(
            self.product.form,
            (names[a], names[b]),
            tuple(self.piece.parameters),
            a.tensor_type.dtype,
            tuple(lead),
            n,
            k,
            self._reference(a, b),
            operand_dtypes=(a.tensor_type.dtype, b.tensor_type.dtype),
            result_dtype=self.piece.results[0].tensor_type.dtype,
            extras=tuple(extras),
            epilogue=tuple(lines),
            value=value,
            title=f"{self.piece.ops}.",
            prologue=tuple(prologue),
            helpers=tuple(self.body.helpers.values()),
            stands_for=(self.piece.stands_for(),),
        ).file()

    def _source(self, operand: Value) -> Value | None:
        """The input that the operand is, or is made of by the nodes before the anchor: a chain of its own."""
        chain = [n for n in self.before if n.results[0] is operand]
        if not chain:
            return operand if operand in self.piece.inputs else None
        values = chain[0].operand_values
        alone = len(values) == 1 and values[0] in self.piece.inputs and len(self.before) == 1
        same = values[0].tensor_type.shape == operand.tensor_type.shape if alone else False
        return values[0] if same else None

    def _prologue(self, source: Value, tile: str) -> list[str]:
        """Lines that make the multiplied tile of the loaded one."""
        nodes = [n for n in self.before if source in n.operand_values]
        if not nodes:
            return []
        node, dtype = nodes[0], source.tensor_type.dtype
        self.body.terms[source] = Term(tile, dtype, rank=source.tensor_type.rank)
        lines = [f"{tile} = {tile}.to(tl.float32)"] if dtype in HALVES else []
        lines.append(self.body.line(node))
        made = self.body.terms[node.results[0]]
        return [*lines, f"{tile} = {made}.to({TYPES[made.dtype]})"]

    def _reference(self, a: Value, b: Value) -> str:
        """A cast to the other operand's dtype: the reference runs in float64, too."""
        text, names = self.piece.reference(), self.piece.names
        for node in (n for n in self.before if n.is_op(aten._to_copy.default)):
            source = node.operand_values[0]
            made = names[node.results[0]]
            cast = f"{made} = {names[source]}.to({names[b if source is a else a]}.dtype)"
            text = re.sub(rf"^    {made} = .*$", f"    {cast}", text, flags=re.MULTILINE)
        return text

    def _extra(self, value: Value) -> Extra | None:
        """How the epilogue reads an input, or None where it is broadcast in another way."""
        type_, full = value.type, self.anchor.results[0].tensor_type.shape
        if not isinstance(type_, TensorType) or type_.dtype not in TYPES:
            return None
        name = self.piece.names[value]
        if type_.shape == full:
            return Extra(name, "bmn", type_.dtype)
        if all(size == 1 for size in type_.shape):
            return Extra(name, "", type_.dtype)
        if type_.shape[-1] == full[-1] and all(size == 1 for size in type_.shape[:-1]):
            return Extra(name, "n", type_.dtype)
        return None

    def _epilogue(self, inputs: list[Value]) -> tuple[str, list[str]]:
        """(name of the element that is stored, lines that make it of `acc`)."""
        for value in inputs:
            type_ = value.tensor_type
            self.body.terms[value] = Term(f"{self.piece.names[value]}_tile", type_.dtype, rank=type_.rank)
        lines, result = [], self.anchor.results[0]
        if self.product.alpha != 1:
            lines.append(f"acc = acc * {number(self.product.alpha, torch.float32)}")
        if self.product.bias is not None and self.product.beta != 0:
            bias = self.body.terms[self.product.bias]
            text = str(bias) if held(bias.dtype) == torch.float32 else f"{bias}.to(tl.float32)"
            factor = "" if self.product.beta == 1 else f"{number(self.product.beta, torch.float32)} * "
            lines.append(f"acc = acc + {factor}{text}  # {op_name(self.anchor.op)}")
        self.body.terms[result] = Term("acc", result.tensor_type.dtype, rank=result.tensor_type.rank)
        lines += [self.body.line(node) for node in self.after]
        return str(self.body.terms[self.piece.results[0]]), lines


__all__ = ["PRODUCTS", "Product", "product_file"]
