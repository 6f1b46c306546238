"""The op vocabulary: names, schemas, and the traits that PyTorch does not tell.

Every op is an ATen (or other registered) OpOverload, a higher-order op, or a `Fusion`.
An op of an unknown namespace counts as effectful until `register_traits` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch._ops import HigherOrderOperator, OpOverload

aten = torch.ops.aten


@dataclass(frozen=True)
class Fusion:
    """A node whose meaning is its region; `kind` says what sort of fusion it is (pointwise, conv, linear, ...)."""

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

    Raises:
        KeyError: nothing of that name is registered.
    """
    space, _, rest = name.partition(".")
    if space == "fusion" and rest:
        return Fusion(rest)
    packet, _, overload = rest.partition(".")
    try:
        found = getattr(getattr(torch.ops, space), packet)
        if space == "higher_order":
            return found
        return getattr(found, overload or "default")
    except (AttributeError, RuntimeError) as error:
        raise KeyError(f"no operator named {name!r} is registered") from error


def is_region_op(op: Any) -> bool:
    return isinstance(op, (Fusion, HigherOrderOperator))


def normal_form(
    op: Any, operands: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Operands in the one form that equal calls share: positional where the schema allows, defaults left out.

    Raises:
        TypeError: an argument is missing or unknown.
    """
    operands = tuple(_lists(v) for v in operands)
    kwargs = {k: _lists(v) for k, v in kwargs.items()}
    if not isinstance(op, OpOverload):
        return operands, dict(kwargs)
    arguments = op._schema.arguments
    if len(operands) > len(arguments):
        raise TypeError(f"{op_name(op)} takes {len(arguments)} arguments, {len(operands)} given")
    given = {a.name: v for a, v in zip(arguments, operands, strict=False)}
    unknown = set(kwargs) - {a.name for a in arguments}
    if unknown:
        raise TypeError(f"{op_name(op)} has no argument {sorted(unknown)[0]!r}")
    given.update(kwargs)
    positional: list[Any] = []
    keyword: dict[str, Any] = {}
    kept = 0
    for argument_ in arguments:
        if argument_.name not in given and not argument_.has_default_value():
            raise TypeError(f"{op_name(op)} needs the argument {argument_.name!r}")
        value = given.get(argument_.name, argument_.default_value)
        default = argument_.has_default_value() and _is_default(value, argument_.default_value)
        if argument_.kwarg_only:
            if not default:
                keyword[argument_.name] = value
            continue
        positional.append(_lists(value))
        if not default:
            kept = len(positional)
    return tuple(positional[:kept]), keyword


def _lists(value: Any) -> Any:
    """Sequences as lists (torch.Size, immutable_list and tuples are all the same operand), constant sizes as ints."""
    if isinstance(value, (list, tuple)):
        return [_lists(v) for v in value]
    if isinstance(value, sympy.Expr) and value.is_number:
        return int(value)
    return value


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return isinstance(default, (list, tuple)) and list(value) == list(default)
    return type(value) is type(default) and bool(value == default)


def argument(op: Any, operands: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Any:
    """Operand by schema name, or its default. Raises KeyError for a name that the schema has not."""
    if not isinstance(op, OpOverload):
        return kwargs[name]
    for position, argument_ in enumerate(op._schema.arguments):
        if argument_.name == name:
            if not argument_.kwarg_only and position < len(operands):
                return operands[position]
            return kwargs.get(name, argument_.default_value)
    raise KeyError(f"{op_name(op)} has no argument {name!r}")


_REDUCTIONS = """sum mean amax amin max.dim min.dim argmax argmin prod var std var_mean std_mean any all norm logsumexp
linalg_vector_norm softmax _softmax log_softmax _log_softmax cumsum cumprod sort topk median count_nonzero
max min cross_entropy_loss nll_loss_forward nll_loss mse_loss l1_loss""".split()
_MATMULS = """mm addmm bmm baddbmm matmul linear mv dot addmv einsum scaled_dot_product_attention
_scaled_dot_product_flash_attention_for_cpu _scaled_mm bilinear outer multi_head_attention_forward""".split()
_CONVS = """conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d
_convolution convolution_overrideable""".split()
_NORMS = """layer_norm native_layer_norm group_norm native_group_norm batch_norm rms_norm instance_norm
_native_batch_norm_legit_no_training _native_batch_norm_legit_functional _native_batch_norm_legit
_batch_norm_with_update_functional _fused_rms_norm cudnn_batch_norm native_batch_norm""".split()
_POOLS = """max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d
adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d""".split()
_VIEWS = """view reshape _unsafe_view permute transpose t numpy_T unsqueeze squeeze expand slice select alias detach
flatten unflatten split split_with_sizes chunk unbind narrow movedim swapaxes as_strided diagonal view_as expand_as
real imag unfold tensor_split broadcast_to view_as_real view_as_complex""".split()
_MOVES = """cat stack index gather index_select embedding clone contiguous constant_pad_nd pad roll flip repeat
index_put scatter slice_scatter select_scatter repeat_interleave tril triu lift_fresh_copy take_along_dim
masked_select nonzero scatter_add index_add index_copy scatter_reduce upsample_nearest2d reflection_pad2d
replication_pad2d pixel_shuffle pixel_unshuffle tile one_hot""".split()
_POINTWISE = """_to_copy to where masked_fill dropout feature_dropout gelu silu mish hardswish hardsigmoid hardtanh
relu6 leaky_relu elu selu celu softplus clamp lerp addcmul addcdiv bitwise_and bitwise_or bitwise_not bitwise_xor
logical_and logical_or logical_not logical_xor""".split()
_RANDOM = """dropout native_dropout feature_dropout alpha_dropout bernoulli rand randn randint randperm normal uniform
multinomial rand_like randn_like randint_like rrelu rrelu_with_noise exponential random""".split()
_EFFECTS = """_assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size
_local_scalar_dense item copy_ _print""".split()

_TABLE: dict[str, Trait] = {}
for _names, _trait in (
    (_REDUCTIONS, Trait.REDUCTION),
    (_MATMULS, Trait.MATMUL),
    (_CONVS, Trait.CONV),
    (_NORMS, Trait.NORM),
    (_POOLS, Trait.POOL),
    (_VIEWS, Trait.VIEW),
    (_MOVES, Trait.MOVE),
    (_POINTWISE, Trait.POINTWISE),
    (_RANDOM, Trait.RANDOM),
    (_EFFECTS, Trait.EFFECTFUL),
):
    for _name in _names:
        _TABLE[f"aten.{_name}"] = _TABLE.get(f"aten.{_name}", Trait.NONE) | _trait

_PURE_NAMESPACES = {"aten", "prims", "quantized_decomposed", "mkldnn", "onednn"}


def register_traits(op: OpOverload, trait: Trait) -> None:
    """Say what a custom op is. `Trait.NONE` declares it pure and nothing more."""
    _TABLE[op_name(op)] = trait
    traits.cache_clear()


@lru_cache(maxsize=None)
def traits(op: Any) -> Trait:
    """Traits of an op, from the table, PyTorch's own tags, and the schema."""
    if isinstance(op, Fusion):
        return Trait.NONE
    if not isinstance(op, OpOverload):
        return Trait.EFFECTFUL
    name = op_name(op)
    packet = f"{op.namespace}.{op._schema.name.partition('::')[2]}"
    if name in _TABLE:
        found = _TABLE[name]
    elif packet in _TABLE and (f"{packet}.{op._overloadname}") not in _TABLE:
        found = _TABLE[packet]
    else:
        found = Trait.POINTWISE if torch.Tag.pointwise in op.tags else Trait.NONE
        if op.namespace not in _PURE_NAMESPACES:
            found |= Trait.EFFECTFUL
    # aten.max is a reduction, aten.max.other is pointwise: PyTorch's tag decides.
    if torch.Tag.pointwise in op.tags:
        found = (found | Trait.POINTWISE) & ~Trait.REDUCTION
    if torch.Tag.nondeterministic_seeded in op.tags:
        found |= Trait.RANDOM
    if op._schema.is_mutable:
        found |= Trait.EFFECTFUL
    return found


def has(op: Any, trait: Trait) -> bool:
    return bool(traits(op) & trait)


def is_pure(op: Any) -> bool:
    """Whether a call may be dropped, repeated or merged with an equal one."""
    return not has(op, Trait.EFFECTFUL | Trait.RANDOM)
