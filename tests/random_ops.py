"""The families of ops that random graphs are drawn from.

Each appends one op, or a small group that belongs together; or nothing, where no value suits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st

from capture.ir import Node, TensorType, Value
from tests.random_builder import FLOATS, LIMIT, SIZES, Builder, has_axis, is_filled, is_float, is_number

aten = torch.ops.aten

BOUNDED = ["sigmoid", "tanh", "sin"]  # to [-1, 1]
FLOAT_UNARY = ["relu", "gelu", "silu", "neg", "abs", "hardswish", "leaky_relu", *BOUNDED]
INT_UNARY = ["relu", "neg", "abs", "sign"]


def unary(b: Builder) -> None:
    if (x := b.pick(is_number)) is None:
        return
    name = b.one_of(FLOAT_UNARY if is_float(x.tensor_type) else INT_UNARY)
    b.add(getattr(aten, name).default, [x], bound=1.0 if name in BOUNDED else max(1.0, b.bounds[x]))


def scalar(b: Builder) -> None:
    """Arithmetic with a Python number, the neutral ones among them."""
    if (x := b.pick(is_number, growth=4.0)) is None:
        return
    op = b.one_of([aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor])
    numbers = [1, 2, 3] if not is_float(x.tensor_type) else [1, 1.0, 2, 0.5, 3.0]
    if op is not aten.div.Tensor:
        numbers += [0, -1] if not is_float(x.tensor_type) else [0, 0.0, -0.0, -1.5]
    elif not is_float(x.tensor_type):
        op = aten.mul.Tensor
    number = b.one_of(numbers)
    grown = b.bounds[x] + abs(number) if op in (aten.add.Tensor, aten.sub.Tensor) else b.bounds[x] * 3
    b.add(op, [x, number], bound=grown)


def binary(b: Builder) -> None:
    """Two values, or a value and a constant that broadcasts against it."""
    op, grows = b.one_of(
        [(aten.add.Tensor, 2), (aten.sub.Tensor, 2), (aten.mul.Tensor, 3), (aten.maximum.default, 1)]
    )
    if (x := b.pick(is_number, growth=grows)) is None:
        return
    type = x.tensor_type
    partners = [v for v in b.values(type.same_value_as) if b.bounds[v] <= 3]
    y = b.one_of([None, *partners])
    if y is None:
        shape = [d if isinstance(d, int) and b.flip() else 1 for d in type.shape]
        y = b.constant("weight", shape[b.one_of(range(len(shape) + 1)) :], type.dtype)
    bound = b.bounds[x] * b.bounds[y] if op is aten.mul.Tensor else b.bounds[x] + b.bounds[y]
    b.add(op, [x, y], bound=bound)


def select(b: Builder) -> None:
    """A choice by a constant mask; all true or all false at times."""
    if (x := b.pick(is_number)) is None:
        return
    shape = [d if isinstance(d, int) else 1 for d in x.tensor_type.shape]
    mask = b.one_of([None, True, False])
    if mask is None:
        condition = b.constant("mask", shape, torch.bool)
    else:
        condition = b.graph.add_constant("mask", torch.full(shape, mask))
    if b.flip():
        b.add(aten.masked_fill.Scalar, [x, condition, 1], bound=max(1.0, b.bounds[x]))
    else:
        other = b.add(aten.neg.default, [x], bound=b.bounds[x])
        b.add(aten.where.self, [condition, x, other], bound=b.bounds[x])


def cast(b: Builder) -> None:
    if (x := b.pick(is_number)) is None:
        return
    targets = FLOATS if is_float(x.tensor_type) else (torch.int32, torch.int64, torch.float32)
    y = b.add(aten._to_copy.default, [x], {"dtype": b.one_of(targets)}, bound=b.bounds[x])
    if b.flip():
        b.add(aten._to_copy.default, [y], {"dtype": x.tensor_type.dtype}, bound=b.bounds[x])


def identity(b: Builder) -> None:
    """What leaves its operand as it was."""
    if (x := b.pick()) is None:
        return
    alone = [aten.clone.default, aten.detach.default, aten.alias.default, aten.contiguous.default]
    more = [(aten.dropout.default, 0.1, False), (aten.to.dtype, x.tensor_type.dtype)]
    op, *rest = b.one_of([(op,) for op in alone] + more)
    b.add(op, [x, *rest], bound=b.bounds[x])


def create(b: Builder) -> None:
    """A tensor made of nothing, added to a value."""
    if (x := b.pick(is_number, growth=4.0)) is None:
        return
    type = x.tensor_type
    last = type.shape[-1] if type.rank and isinstance(type.shape[-1], int) else 1
    made = b.one_of(["arange", "full", "ones", "zeros"])
    kwargs = {"dtype": type.dtype}
    if made == "arange":
        y = b.add(aten.arange.default, [last], kwargs, bound=float(last))
    elif made == "full":
        y = b.add(aten.full.default, [[last], 2], kwargs, bound=2.0)
    else:
        y = b.add(getattr(aten, made).default, [[last]], kwargs, bound=1.0)
    b.add(aten.add.Tensor, [x, y], bound=b.bounds[x] + b.bounds[y])


def twin(b: Builder) -> None:
    """A node once more, with the same operands."""
    nodes = [n for n in b.graph.nodes if n.results[0] in b.bounds]
    if nodes:
        node: Node = b.one_of(nodes)
        b.add(node.op, node.operands, node.kwargs, bound=b.bounds[node.results[0]])


def linear(b: Builder) -> None:
    """linear, mm with a constant as it is or transposed, addmm, matmul."""
    x = b.pick(lambda t: is_float(t) and t.rank >= 1 and t.shape[-1] in SIZES)
    if x is None:
        return
    type = x.tensor_type
    k, n = type.shape[-1], b.one_of(SIZES)
    scale = 1 / (3 * k)
    bound = b.bounds[x] + 1
    bias = b.constant("bias", [n], type.dtype, scale=1 / 3)
    kinds = ["linear", "linear_bias", "matmul"] + ["mm", "mm_t", "addmm"] * (type.rank == 2)
    kind = b.one_of(kinds)
    if kind.startswith("linear"):
        operands = [x, b.constant("weight", [n, k], type.dtype, scale=scale)] + [bias] * (
            kind == "linear_bias"
        )
        b.add(aten.linear.default, operands, bound=bound)
    elif kind == "mm_t":
        weight = b.constant("weight", [n, k], type.dtype, scale=scale)
        b.add(aten.mm.default, [x, b.add(aten.t.default, [weight], bound=1.0)], bound=bound)
    elif kind == "addmm":
        b.add(
            aten.addmm.default, [bias, x, b.constant("weight", [k, n], type.dtype, scale=scale)], bound=bound
        )
    else:
        op = aten.mm.default if kind == "mm" else aten.matmul.default
        b.add(op, [x, b.constant("weight", [k, n], type.dtype, scale=scale)], bound=bound)


def attention(b: Builder) -> None:
    """softmax(x x^T) x, from its parts."""
    x = b.pick(lambda t: is_float(t) and t.rank == 3 and is_filled(t), growth=1.0)
    if x is None:
        return
    x = b.add(aten.tanh.default, [x], bound=1.0)
    turned = b.add(aten.transpose.int, [x, 1, 2], bound=1.0)
    scores = b.add(aten.matmul.default, [x, turned], bound=float(max(SIZES)))
    weights = b.add(aten.softmax.int, [scores, -1], bound=1.0)
    b.add(aten.matmul.default, [weights, x], bound=1.0)


def reshape(b: Builder) -> None:
    """reshape to another factorisation, with or without -1; flatten; unsqueeze; squeeze."""
    if (x := b.pick(has_axis)) is None:
        return
    shape = list(x.tensor_type.shape)
    at = b.one_of(range(len(shape)))
    kind = b.one_of(["merge", "split", "same", "flatten", "unsqueeze", "squeeze", "pair"])
    if kind == "pair":
        y = b.add(aten.unsqueeze.default, [x, at], bound=b.bounds[x])
        b.add(aten.squeeze.dim, [y, at], bound=b.bounds[x])
    elif kind in ("unsqueeze", "squeeze"):
        # Capture would not squeeze a symbolic axis without knowing whether its size is 1.
        squeezes = kind == "squeeze" and isinstance(shape[at], int)
        op = aten.squeeze.dim if squeezes else aten.unsqueeze.default
        b.add(op, [x, at], bound=b.bounds[x])
    elif kind == "flatten":
        b.add(aten.flatten.using_ints, [x, at, len(shape) - 1], bound=b.bounds[x])
    else:
        wanted = list(shape)
        if kind == "merge" and at + 1 < len(shape):
            wanted[at : at + 2] = [shape[at] * shape[at + 1]]
        elif kind == "split" and isinstance(shape[at], int) and shape[at]:
            first = b.one_of([d for d in range(1, shape[at] + 1) if shape[at] % d == 0])
            wanted[at : at + 1] = [first, shape[at] // first]
        if is_filled(x.tensor_type) and b.flip():
            wanted[b.one_of(range(len(wanted)))] = -1
        b.add(aten.reshape.default, [x, wanted], bound=b.bounds[x])


def permute(b: Builder) -> None:
    if (x := b.pick(lambda t: t.rank >= 2)) is None:
        return
    type = x.tensor_type
    kind = b.one_of(["permute", "transpose", "twice", "t"])
    if kind == "permute":
        b.add(aten.permute.default, [x, b.draw(st.permutations(range(type.rank)))], bound=b.bounds[x])
    elif kind == "t" and type.rank == 2:
        b.add(aten.t.default, [x], bound=b.bounds[x])
    else:
        axes = [b.axis(type), b.axis(type)]
        y = b.add(aten.transpose.int, [x, *axes], bound=b.bounds[x])
        if kind == "twice":
            b.add(aten.transpose.int, [y, *reversed(axes)], bound=b.bounds[x])


def slice_(b: Builder) -> None:
    """Part of an axis, all of it, or nothing of it."""
    if (x := b.pick(has_axis)) is None:
        return
    axis = b.axis(x.tensor_type)
    size = x.tensor_type.shape[axis]
    if not isinstance(size, int):
        b.add(aten.slice.Tensor, [x, axis, 0, 2**63 - 1], bound=b.bounds[x])
        return
    start = b.draw(st.integers(0, size))
    end = b.one_of([size, 2**63 - 1, *range(start, size)])
    b.add(aten.slice.Tensor, [x, axis, start, end, b.one_of([1, 1, 2])], bound=b.bounds[x])


def cat(b: Builder) -> None:
    """One to three values that differ along one axis at most."""
    if (x := b.pick(has_axis)) is None:
        return
    type, axis = x.tensor_type, b.one_of(range(x.tensor_type.rank))

    def fits(t: TensorType) -> bool:
        rest = [d for i, d in enumerate(t.shape) if i != axis] == [
            d for i, d in enumerate(type.shape) if i != axis
        ]
        return t.rank == type.rank and t.dtype == type.dtype and rest

    others = b.draw(st.lists(st.sampled_from(b.values(fits)), max_size=2))
    b.add(aten.cat.default, [[x, *others], axis], bound=max(b.bounds[v] for v in [x, *others]))


def expand(b: Builder) -> None:
    if (x := b.pick(has_axis)) is None:
        return
    sizes = [b.one_of(SIZES) if d == 1 else b.one_of([d, -1]) for d in x.tensor_type.shape]
    b.add(aten.expand.default, [x, sizes], bound=b.bounds[x])


def reduce_(b: Builder) -> None:
    """Sums, means, maxima, softmax, layer norm."""
    x = b.pick(lambda t: is_float(t) and t.rank >= 1 and is_filled(t), growth=float(max(SIZES)))
    if x is None:
        return
    type, axis = x.tensor_type, b.axis(x.tensor_type)
    kind = b.one_of(["sum", "mean", "amax", "softmax", "layer_norm"])
    keep = b.flip()
    size = type.shape[axis]
    if kind == "softmax":
        b.add(aten.softmax.int, [x, axis], bound=1.0)
    elif kind == "layer_norm" and isinstance(type.shape[-1], int):
        weight = b.constant("weight", [type.shape[-1]], type.dtype)
        b.add(aten.layer_norm.default, [x, [type.shape[-1]], weight], bound=3.0 * math.sqrt(type.shape[-1]))
    elif kind == "sum" and isinstance(size, int):
        b.add(aten.sum.dim_IntList, [x, [axis], keep], bound=b.bounds[x] * size)
    elif kind == "amax":
        b.add(aten.amax.default, [x, [axis], keep], bound=b.bounds[x])
    else:
        b.add(aten.mean.dim, [x, [axis], keep], bound=b.bounds[x])


def _norm(b: Builder, y: Value, channels: int) -> Value:
    """An inference BatchNorm, in either of its forms."""
    dtype, module = y.tensor_type.dtype, f"bn{len(b.graph.nodes)}"
    affine = b.flip()
    weight = b.constant("weight", [channels], dtype, scale=0.25) if affine else None
    bias = b.constant("bias", [channels], dtype, scale=0.25) if affine else None
    mean = b.constant("running_mean", [channels], dtype, scale=0.25)
    var = b.constant("running_var", [channels], dtype, low=0.5)
    bound = (b.bounds[y] + 1.0) * 1.5 + 1.0
    if b.flip():
        operands = [y, weight, bias, mean, var, 0.1, 1e-5]
        return b.add(aten._native_batch_norm_legit_no_training.default, operands, bound=bound, module=module)
    operands = [y, weight, bias, mean, var, False, 0.1, 1e-5, False]
    return b.add(aten.batch_norm.default, operands, bound=bound, module=module)


def conv_norm(b: Builder) -> None:
    """A convolution, plain or transposed, maybe with a BatchNorm and ReLU behind; after linear too."""
    x = b.pick(
        lambda t: is_float(t) and t.rank in (2, 3, 4, 5) and all(d in SIZES for d in t.shape[1:]), growth=4.0
    )
    if x is None:
        return
    type = x.tensor_type
    spatial, channels = type.rank - 2, type.shape[1]
    groups = b.one_of([1, channels]) if spatial else 1
    out = groups * b.one_of([1, 2, 3])
    transposed = spatial > 0 and b.flip() and b.flip()
    kernel = [b.one_of([k for k in (1, 2, 3) if k <= size]) for size in type.shape[2:]]
    fan_in = channels // groups * math.prod(kernel)
    first, second = (channels, out // groups) if transposed else (out, channels // groups)
    weight = b.constant("weight", [first, second, *kernel], type.dtype, scale=1 / (3 * fan_in))
    bias = b.constant("bias", [out], type.dtype, scale=1 / 3) if b.flip() else None
    bound = b.bounds[x] * (math.prod(kernel) if transposed else 1) + 1
    if bound > LIMIT:
        return
    ones, zeros = [1] * spatial, [0] * spatial
    if not spatial:
        op, rest = aten.linear.default, []
    elif transposed:
        packet = getattr(aten, f"conv_transpose{spatial}d")
        op, rest = packet.default if spatial == 1 else packet.input, [ones, zeros, zeros, groups]
    else:
        op = getattr(aten, f"conv{spatial}d").default
        rest = [[b.one_of([1, 2])] * spatial, [b.one_of([0, 1])] * spatial, ones, groups]
    y = b.add(op, [x, weight, bias, *rest], bound=bound)
    if b.flip() and (b.bounds[y] + 1) * 1.5 + 1 <= LIMIT:
        y = _norm(b, y, out)
        if b.flip():
            b.add(aten.relu.default, [y], bound=b.bounds[y])


def pool(b: Builder) -> None:
    x = b.pick(
        lambda t: is_float(t) and t.rank == 4 and is_filled(t) and all(d in SIZES for d in t.shape[1:])
    )
    if x is None:
        return
    window = [min(2, d) for d in x.tensor_type.shape[2:]]
    op = b.one_of([aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default])
    b.add(op, [x, [1, 1] if op is aten.adaptive_avg_pool2d.default else window], bound=b.bounds[x])


FAMILIES: dict[str, Callable[[Builder], None]] = {
    "unary": unary,
    "scalar": scalar,
    "binary": binary,
    "linear": linear,
    "reshape": reshape,
    "permute": permute,
    "slice": slice_,
    "cat": cat,
    "expand": expand,
    "reduce": reduce_,
    "conv_norm": conv_norm,
    "pool": pool,
    "attention": attention,
    "identity": identity,
    "create": create,
    "select": select,
    "cast": cast,
    "twin": twin,
}
