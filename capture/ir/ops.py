"""The op vocabulary: names, schemas, and the traits that PyTorch does not tell.

Every op is an ATen (or other registered) OpOverload, a higher-order op, or a `Fusion`.
An op of an unknown namespace counts as effectful until `register_traits` says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from functools import cache
from typing import Any

import sympy
import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from capture.ir import quantized

aten = torch.ops.aten
_OP_NAME = re.compile(r"fusion\.[A-Za-z0-9_]+|[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*){1,2}")


@dataclass(frozen=True)
class Fusion:
    """A node whose meaning is its region; `kind` says which: pointwise, conv, linear, ..."""

    kind: str

    def __str__(self) -> str:
        return f"fusion.{self.kind}"


class Trait(Flag):
    """What an op is, as far as passes care."""

    NONE = 0
    POINTWISE = auto()
    REDUCTION = auto()
    VIEW = auto()  # the result shares the first operand's memory
    MATMUL = auto()  # matmul-like: linear, mm, attention
    CONV = auto()
    NORM = auto()
    RANDOM = auto()
    EFFECTFUL = auto()
    MOVE = auto()  # only moves data: cat, index, gather, clone, pad
    POOL = auto()


def op_name(op: Any) -> str:
    """``aten.conv2d``, ``aten.add.Tensor``, ``higher_order.cond``, ``fusion.linear``."""
    if isinstance(op, OpOverload):
        return str(op).removesuffix(".default")
    if isinstance(op, HigherOrderOperator):
        return f"higher_order.{op.name()}"
    return str(op)


def resolve_op(name: str) -> Any:
    """The op of that name; the reverse of `op_name`.

    Only operators of PyTorch's dispatcher are found: TorchScript's own (``aten.save``, which writes a file)
    are none of the vocabulary, and would run for real in a fake call.

    Raises:
        KeyError: nothing of that name is registered.
    """
    if not _OP_NAME.fullmatch(name):
        raise KeyError(f"{name!r} is not an operator's name")
    space, _, rest = name.partition(".")
    if space == "fusion":
        return Fusion(rest)
    packet, _, overload = rest.partition(".")
    if space == quantized.NAMESPACE:
        quantized.ops()
    try:
        if space == "higher_order":
            found = torch.ops.higher_order.__getattr__(packet)
        else:
            torch._C._dispatch_find_schema_or_throw(f"{space}::{packet}", overload)
            found = getattr(getattr(getattr(torch.ops, space), packet), overload or "default")
    except (AttributeError, RuntimeError) as error:
        raise KeyError(f"no operator named {name!r} is registered") from error
    if not isinstance(found, (OpOverload, HigherOrderOperator)):
        raise KeyError(f"{name!r} is not an operator")
    return found


def is_region_op(op: Any) -> bool:
    return isinstance(op, (Fusion, HigherOrderOperator))


def is_predicate(op: Any, index: int) -> bool:
    """Whether an op's `index`-th region decides whether to go on: it returns one value that is no result."""
    return op is torch.ops.higher_order.while_loop and index == 0


def normal_form(
    op: Any, operands: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Operands in the one form that equal calls share: positional where the schema allows, defaults left out.

    Raises:
        TypeError: an argument is missing, unknown, or given twice.
    """
    operands = tuple(_lists(v) for v in operands)
    kwargs = {k: _lists(v) for k, v in kwargs.items()}
    if not isinstance(op, OpOverload):
        return operands, dict(kwargs)
    arguments = op._schema.arguments
    given = _by_name(op, operands, kwargs)
    positional: list[Any] = []
    keyword: dict[str, Any] = {}
    kept = 0
    for argument_ in arguments:
        if argument_.name not in given and not argument_.has_default_value():
            raise TypeError(f"{op_name(op)} needs the argument {argument_.name!r}")
        value = _spread(given.get(argument_.name, argument_.default_value), argument_)
        default = argument_.has_default_value() and _same(value, _spread(argument_.default_value, argument_))
        if argument_.kwarg_only:
            if not default:
                keyword[argument_.name] = value
            continue
        positional.append(value)
        if not default:
            kept = len(positional)
    return tuple(positional[:kept]), keyword


def _by_name(op: OpOverload, operands: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = [a.name for a in op._schema.arguments]
    if len(operands) > len(names):
        raise TypeError(f"{op_name(op)} takes {len(names)} arguments, {len(operands)} given")
    given = dict(zip(names, operands, strict=False))
    for name, value in kwargs.items():
        if name not in names:
            raise TypeError(f"{op_name(op)} has no argument {name!r}")
        if name in given:
            raise TypeError(f"{op_name(op)} is given the argument {name!r} twice")
        given[name] = value
    return given


def _lists(value: Any) -> Any:
    """Sequences as lists (torch.Size and tuple are the same operand), constant sizes as ints."""
    if isinstance(value, (list, tuple)):
        return [_lists(v) for v in value]
    if isinstance(value, sympy.Expr) and value.is_number:
        return int(value)
    return value


def _spread(value: Any, argument_: Any) -> Any:
    """A number given for ``int[2] stride`` stands for a list of two."""
    if argument_.N and isinstance(value, (int, sympy.Expr)) and not isinstance(value, bool):
        return [value] * argument_.N
    return _lists(value)


def _same(value: Any, default: Any) -> bool:
    """Equal in type and value, so that 1 is not True and 0.0 not -0.0."""
    if isinstance(default, list):
        return isinstance(value, list) and len(value) == len(default) and all(map(_same, value, default))
    return type(value) is type(default) and bool(repr(value) == repr(default))


def argument(op: Any, operands: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Any:
    """Operand by schema name, or its default. Raises KeyError for a name that the schema has not."""
    if not isinstance(op, OpOverload):
        return kwargs[name]
    for position, argument_ in enumerate(op._schema.arguments):
        if argument_.name == name:
            if not argument_.kwarg_only and position < len(operands):
                return operands[position]
            return kwargs[name] if name in kwargs else _spread(argument_.default_value, argument_)
    raise KeyError(f"{op_name(op)} has no argument {name!r}")


_TABLE_TEXT: dict[Trait, str] = {
    Trait.REDUCTION: """sum mean amax amin aminmax max min argmax argmin prod var std var_mean std_mean
        any all norm logsumexp linalg_vector_norm linalg_norm softmax _softmax log_softmax _log_softmax
        _safe_softmax logcumsumexp cumsum cumprod cummax cummin sort argsort topk kthvalue median
        nanmedian nansum nanmean mode count_nonzero cross_entropy_loss nll_loss_forward nll_loss
        nll_loss_nd mse_loss l1_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div""",
    Trait.MATMUL: """mm addmm bmm baddbmm addbmm matmul linear mv dot vdot inner outer addmv addr einsum
        tensordot bilinear scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_mm
        _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
        multi_head_attention_forward lstm gru rnn_tanh rnn_relu""",
    Trait.CONV: """conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d
        _convolution convolution_overrideable""",
    Trait.NORM: """layer_norm native_layer_norm group_norm native_group_norm batch_norm rms_norm
        instance_norm _native_batch_norm_legit_no_training _native_batch_norm_legit_functional
        _native_batch_norm_legit _batch_norm_with_update_functional _fused_rms_norm cudnn_batch_norm
        native_batch_norm""",
    Trait.POOL: """max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices
        avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d
        adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
        adaptive_max_pool3d""",
    Trait.VIEW: """_unsafe_view reshape flatten unflatten""",  # and whatever the schema says shares memory
    Trait.MOVE: """cat concat stack hstack vstack index gather index_select embedding clone contiguous
        constant_pad_nd pad roll flip repeat tile index_put scatter slice_scatter select_scatter
        diagonal_scatter as_strided_scatter repeat_interleave tril triu lift_fresh_copy take_along_dim
        take masked_select masked_scatter nonzero scatter_add index_add index_copy index_fill
        scatter_reduce upsample_nearest1d upsample_nearest2d upsample_nearest3d reflection_pad1d
        reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
        pixel_shuffle pixel_unshuffle channel_shuffle one_hot im2col col2im rot90 diag_embed""",
    Trait.POINTWISE: """_to_copy to where masked_fill dropout feature_dropout gelu silu mish hardswish
        hardsigmoid hardtanh relu6 leaky_relu elu selu celu softplus clamp lerp addcmul addcdiv
        bitwise_and bitwise_or bitwise_not bitwise_xor logical_and logical_or logical_not logical_xor""",
    Trait.RANDOM: """dropout native_dropout feature_dropout alpha_dropout bernoulli rand randn randint
        randperm normal uniform multinomial rand_like randn_like randint_like rrelu rrelu_with_noise
        exponential random lstm gru rnn_tanh rnn_relu""",
    Trait.EFFECTFUL: """_assert_async _assert_scalar _assert_tensor_metadata _functional_assert_async
        _functional_assert_scalar sym_constrain_range sym_constrain_range_for_size _local_scalar_dense
        item copy_ _print from_file _copy_from _copy_from_and_resize _resize_output""",
}  # fmt: skip

_TABLE: dict[str, Trait] = {}
for _trait, _names in _TABLE_TEXT.items():
    for _name in _names.split():
        _TABLE[f"aten.{_name}"] = _TABLE.get(f"aten.{_name}", Trait.NONE) | _trait
_TABLE["onednn.qlinear_pointwise.binary"] = (
    Trait.EFFECTFUL
)  # adds onto its operand, which the schema does not say

_PURE_NAMESPACES = {"aten", "prims", "quantized_decomposed", "mkldnn", "onednn"}


def register_traits(op: OpOverload | OpOverloadPacket, trait: Trait) -> None:
    """Say what a custom op, or each overload of a packet, is. `Trait.NONE`: pure, and nothing more."""
    _TABLE[op_name(op)] = trait
    traits.cache_clear()


@cache
def traits(op: Any) -> Trait:
    """Traits of an op, from the table, PyTorch's own tags, and the schema."""
    if isinstance(op, Fusion):
        return Trait.NONE
    if not isinstance(op, OpOverload):
        return Trait.EFFECTFUL
    schema, tags, mutates = op._schema, op.tags, op._schema.is_mutable
    found = _TABLE.get(op_name(op), _TABLE.get(f"{op.namespace}.{schema.name.partition('::')[2]}"))
    if found is None:
        shares = any(r.alias_info is not None for r in schema.returns)
        found = Trait.EFFECTFUL if op.namespace not in _PURE_NAMESPACES or not schema.returns else Trait.NONE
        found |= Trait.VIEW if shares and not mutates and torch.Tag.pointwise not in tags else Trait.NONE
    # aten.max is a reduction, aten.max.other is pointwise: PyTorch's tag decides.
    if torch.Tag.pointwise in tags:
        found = (found | Trait.POINTWISE) & ~Trait.REDUCTION
    if torch.Tag.nondeterministic_seeded in tags or any("Generator" in str(a.type) for a in schema.arguments):
        found |= Trait.RANDOM
    if mutates:
        found |= Trait.EFFECTFUL
    return found


def has(op: Any, trait: Trait) -> bool:
    return bool(traits(op) & trait)


def is_pure(op: Any) -> bool:
    """Whether any call of the op may be dropped, repeated or merged with an equal one."""
    return not has(op, Trait.EFFECTFUL | Trait.RANDOM)


def is_pure_call(op: Any, operands: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether this very call may be: dropout in evaluation, say, draws no random numbers."""
    if is_pure(op):
        return True
    return not has(op, Trait.EFFECTFUL) and _draws_nothing(op, operands, kwargs)


def _draws_nothing(op: Any, operands: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an argument turns the randomness off: ``train=False``, or a dropout probability of 0."""
    names = {a.name for a in op._schema.arguments}
    for name in ("train", "training"):
        if name in names and argument(op, operands, kwargs, name) is False:
            return True
    probabilities = ("dropout_p", "dropout") if "dropout" not in op._schema.name else ("p",)
    return any(n in names and argument(op, operands, kwargs, n) == 0.0 for n in probabilities)


__all__ = [
    "Fusion",
    "Trait",
    "argument",
    "has",
    "is_predicate",
    "is_pure",
    "is_pure_call",
    "is_region_op",
    "normal_form",
    "op_name",
    "register_traits",
    "resolve_op",
    "traits",
]
