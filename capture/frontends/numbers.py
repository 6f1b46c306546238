"""Real numbers that a model computes from dynamic sizes, such as ``1 / math.sqrt(x.shape[-1])``."""

from __future__ import annotations

import sympy
import torch
from torch.utils._sympy import functions as tsf

from capture.frontends.sizes import Sizes
from capture.ir import Graph, Origin, ScalarType, TensorType, Value

__all__ = ["emit_number"]

aten = torch.ops.aten
_F64 = TensorType(torch.float64, ())


def emit_number(graph: Graph, sizes: Sizes, expr: sympy.Basic, origin: Origin) -> Value:
    """Add nodes that compute `expr` in fp64 tensors of no dims and read the number.

    Raises:
        ValueError: the expression uses a function that has no ATen counterpart here.
    """
    tensor = _emit(graph, sizes, expr, origin)
    read = graph.add_node(
        aten._local_scalar_dense.default, [tensor], types=[ScalarType("float")], origin=origin
    )
    return read.result


def _emit(graph: Graph, sizes: Sizes, expr: sympy.Basic, origin: Origin) -> Value:
    def node(op: object, *operands: object) -> Value:
        return graph.add_node(op, operands, types=[_F64], origin=origin).result

    def recur(e: sympy.Basic) -> Value:
        return _emit(graph, sizes, e, origin)

    if isinstance(expr, tsf.ToFloat):
        return recur(expr.args[0])
    if expr.is_number or getattr(expr, "is_integer", False):
        size = float(expr) if expr.is_number else sizes.size(expr)
        made = graph.add_node(
            aten.full.default, [[], size], {"dtype": torch.float64}, types=[_F64], origin=origin
        )
        return made.result
    if isinstance(expr, (tsf.IntTrueDiv, tsf.FloatTrueDiv)):
        return node(aten.div.Tensor, *map(recur, expr.args))
    if isinstance(expr, (sympy.Add, sympy.Mul)):
        op = aten.add.Tensor if isinstance(expr, sympy.Add) else aten.mul.Tensor
        first, *rest = map(recur, expr.args)
        for value in rest:
            first = node(op, first, value)
        return first
    if isinstance(expr, (sympy.Pow, tsf.FloatPow, tsf.PowByNatural)):
        if expr.args[1] == sympy.Rational(1, 2) or expr.args[1] == 0.5:
            return node(aten.sqrt.default, recur(expr.args[0]))
        return node(aten.pow.Tensor_Tensor, *map(recur, expr.args))
    unary = _UNARY.get(type(expr).__name__.removeprefix("OpaqueUnaryFn_"))
    if unary is None:
        raise ValueError(f"{type(expr).__name__} of a size has no ATen counterpart")
    return node(unary, recur(expr.args[0]))


_UNARY = {
    "sqrt": aten.sqrt.default,
    "log": aten.log.default,
    "log2": aten.log2.default,
    "exp": aten.exp.default,
    "sin": aten.sin.default,
    "cos": aten.cos.default,
    "tanh": aten.tanh.default,
}
