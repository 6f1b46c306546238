"""Which operators can put their result into memory that they are given: the one table of what is honest.

Many ``out=`` overloads of ATen compute into memory of their own and copy, and many have in-place forms only.
An operator is listed here if, on a CPU, the call below allocates no memory of the result's size; the tests
measure each entry. What is not listed allocates its own result.

    honest out=     aten.add.out(x, y, out=buffer)
    in place        aten.relu_(x), or aten.add.out(x, y, out=x)

An honest ``out=`` needs the buffer in the layout that the operator would give by itself. Some are wrong where
operand and buffer are strided differently, and callers may pass inputs of other strides than captured: those
take contiguous buffers, or their operand's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload

from capture.ir import Fusion, Node, TensorType, Trait, Value, has, op_name, resolve_op
from capture.ir.types import CONTIGUOUS

# The overload with out= of the same packet takes the same operands.
_SAME = """abs acos acosh asin asinh atan atanh ceil cos cosh digamma elu erf erfc erfinv exp exp2 expm1 floor
frac gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu lgamma log log10 log1p log2 logit mish
nan_to_num neg reciprocal round rsqrt sgn sigmoid sign silu sin sinc sinh softplus softshrink sqrt square tan
tanh threshold trunc clamp clamp_min clamp_max bitwise_not logical_not signbit isneginf isposinf
add.Tensor sub.Tensor mul.Tensor div.Tensor div.Tensor_mode maximum minimum atan2 fmax fmin hypot logaddexp
logaddexp2 pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar remainder.Tensor remainder.Scalar fmod.Tensor
fmod.Scalar copysign.Tensor heaviside xlogy.Tensor nextafter eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor
lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar logical_and logical_or logical_xor
bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor bitwise_and.Scalar bitwise_or.Scalar
bitwise_xor.Scalar where.self lerp.Scalar lerp.Tensor addcmul addcdiv clamp.Tensor
mm addmm bmm baddbmm matmul mv addmv softmax.int _softmax log_softmax.int _log_softmax cat stack mean.dim
sum.dim_IntList amax amin prod.dim_int var.correction std.correction linalg_vector_norm argmax argmin any.dim
all.dim cumsum cumprod index_select gather index.Tensor tril triu take outer scatter.src scatter.value
scatter_add index_add avg_pool2d""".split()

# A number in place of a tensor: the tensor's overload takes it, the number's own would copy. And namesakes.
_OTHER: dict[str, tuple[str, tuple[Any, ...]]] = {
    "add.Scalar": ("add.out", ()),
    "sub.Scalar": ("sub.out", ()),
    "mul.Scalar": ("mul.out", ()),
    "div.Scalar": ("div.out", ()),
    "relu": ("clamp_min.out", (0,)),
    "relu6": ("hardtanh.out", (0, 6)),
}

_CONTIGUOUS_ONLY = {"gelu", "matmul", "_softmax", "_log_softmax"}

# Only the first operand can be written over, by the op whose name ends in an underscore.
_FIRST = "masked_fill.Scalar masked_fill.Tensor celu selu".split()


@dataclass(frozen=True)
class OutForm:
    """The call that writes into given memory: ``overload(*operands, *extra, <out>=buffer)``."""

    overload: OpOverload
    extra: tuple[Any, ...]

    @property
    def out(self) -> str:
        """The keyword's name."""
        return str(next(a.name for a in self.overload._schema.arguments if a.is_out))


@cache
def out_form(op: Any) -> OutForm | None:
    """How `op` writes into memory it is given, or None where it cannot without a copy."""
    if not isinstance(op, OpOverload) or op.namespace != "aten":
        return None
    name = op_name(op).removeprefix("aten.")
    if name in _OTHER:
        overload, extra = _OTHER[name]
        found = _overload(overload)
        return None if found is None else OutForm(found, extra)
    sibling = _sibling(op) if name in _SAME else None
    return None if sibling is None else OutForm(sibling, ())


def _overload(name: str) -> OpOverload | None:
    """The ATen overload of that name, or None where this PyTorch has none."""
    try:
        found: OpOverload = resolve_op(f"aten.{name}")
    except KeyError:
        return None
    return found


def _sibling(op: OpOverload) -> OpOverload | None:
    """The overload of the same packet that takes the same operands and one out=, if this PyTorch has it."""
    wanted = [(a.name, str(a.type)) for a in op._schema.arguments]
    for name in op.overloadpacket.overloads():
        overload: OpOverload = getattr(op.overloadpacket, name)
        arguments = overload._schema.arguments
        taken = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        if taken == wanted and sum(a.is_out for a in arguments) == 1:
            return overload
    return None


@cache
def in_place_form(op: Any) -> OpOverload | None:
    """The overload that writes a pointwise op's result over its first operand, where `out_form` has none."""
    name = op_name(op).removeprefix("aten.")
    if not isinstance(op, OpOverload) or op.namespace != "aten" or name not in _FIRST:
        return None
    packet, _, overload = name.partition(".")
    return _overload(f"{packet}_.{overload}".removesuffix("."))


def takes_destination(node: Node) -> bool:
    """Whether the node's result can be written into memory that the caller gives."""
    if len(node.results) != 1 or node.impl is not None:
        return False
    if isinstance(node.op, Fusion):
        return _runs_in_its_result(node)
    if not takes_any_strides(node):
        return False
    if node.is_op(torch.ops.aten.matmul.default) and node.operands[0].tensor_type.rank == 1:
        return False  # vector times matrix resizes what it is given
    return out_form(node.op) is not None


def takes_any_strides(node: Node) -> bool:
    """Whether the op may write into memory laid out as its result's type says, however its operands lie."""
    type_ = node.results[0].type
    contiguous = isinstance(type_, TensorType) and type_.memory_format == CONTIGUOUS
    return contiguous or op_name(node.op).removeprefix("aten.") not in _CONTIGUOUS_ONLY


def may_overwrite(node: Node) -> tuple[Value, ...]:
    """The operands that the node's result may be written over, if nobody else needs them; in order of
    preference.

    An elementwise operator reads each element before it writes it. A fusion's operators write one after the
    other, so only what the first alone reads may be written over. A kernel says in its recipe which operand
    it updates: the option `inplace`, a position among the node's operands.
    """
    if node.impl is not None:
        position = node.impl.options.get("inplace")
        named = (
            node.operands[position] if type(position) is int and 0 <= position < len(node.operands) else None
        )
        return (named,) if isinstance(named, Value) else ()
    if isinstance(node.op, Fusion):
        return overwritten_first(node)
    if not has(node.op, Trait.POINTWISE) or has(node.op, Trait.RANDOM | Trait.EFFECTFUL):
        return ()
    if out_form(node.op) is not None:
        return tuple(dict.fromkeys(node.operand_values))
    first = node.operands[0] if node.operands and in_place_form(node.op) is not None else None
    return (first,) if isinstance(first, Value) else ()


def overwritten_first(node: Node) -> tuple[Value, ...]:
    """The operands of a fusion that its operators, called one by one, may write their result over."""
    if len(node.results) != 1 or not _runs_in_its_result(node) or not _is_pointwise(node):
        return ()
    return _read_first(node)


def _runs_in_its_result(node: Node) -> bool:
    """Whether the operators of a fusion can all write into the memory of its one result."""
    last = _last(node)
    return last is not None and all(
        takes_destination(n) and n.results[0].type == last.results[0].type for n in node.region.nodes
    )


def _last(node: Node) -> Node | None:
    """The node of a fusion's region that makes its only result, where it is the region's last."""
    if node.region is None or len(node.region.results) != 1:
        return None
    last = next(reversed(node.region.nodes), None)
    return last if last is not None and last.results == node.region.results else None


def _read_first(node: Node) -> tuple[Value, ...]:
    """The operands of a fusion that its first operator reads and no later one."""
    assert node.region is not None
    first = next(iter(node.region.nodes))
    pairs = list(zip(node.operands, node.region.inputs, strict=True))
    late = {outer for outer, inner in pairs if inner.users != (first,)}
    return tuple(dict.fromkeys(outer for outer, _ in pairs if outer not in late))


def _is_pointwise(node: Node) -> bool:
    return node.region is not None and all(
        has(n.op, Trait.POINTWISE) and not has(n.op, Trait.RANDOM | Trait.EFFECTFUL)
        for n in node.region.nodes
    )


__all__ = [
    "OutForm", "in_place_form", "may_overwrite", "out_form", "overwritten_first", "takes_destination",
]  # fmt: skip
