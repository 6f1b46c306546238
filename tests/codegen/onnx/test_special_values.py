"""Integers are exact and wrap, NaN goes where it goes in torch, reductions of nothing: against eager."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from capture import Graph
from capture.errors import UnsupportedOpError
from codegen import onnx

nan, inf = math.nan, math.inf
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
FLOATS = [torch.float32, torch.float64, torch.float16]


def integers(dtype: torch.dtype) -> torch.Tensor:
    """Both ends of the type, numbers that doubles do not hold, small ones of both signs."""
    limits = torch.iinfo(dtype)
    large = [limits.max, limits.max - 1, limits.max // 2 + 2, limits.max // 3, limits.max // 1000 + 1]
    below = [limits.min, limits.min + 1, limits.min // 3, -7, -2, -1] if limits.min else [9, 8, 6, 5, 4, 12]
    return torch.tensor([*large, *below, 0, 1, 2, 3, 7], dtype=dtype).view(2, 8)


def rows(dtype: torch.dtype) -> torch.Tensor:
    """NaN at every place, beside infinities, and alone."""
    made = [[1, nan, 2, 0], [nan, 3, 1, 2], [1, 2, 3, nan], [inf, 1, -inf, 2], [-inf] * 4, [inf] * 4]
    made += [[nan] * 4, [inf, nan, inf, nan], [-0.0, 0.0, -0.0, 0.0], [3, 1, 2, 1]]
    return torch.tensor(made, dtype=dtype)


INTEGER_FUNCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "sum": lambda x: (x.sum(), x.sum(1), x.sum(0, keepdim=True), x.sum((0, 1)), x.sum(1, dtype=torch.int32)),
    "prod": lambda x: (x.prod(), x.prod(1), x.prod(0, keepdim=True), x.prod(1, dtype=torch.int32)),
    "cumulative": lambda x: (x.cumsum(1), x.cumprod(1), x.cumprod(0)),
    "fmod": lambda x: (torch.fmod(x, 3), torch.fmod(x, 7), torch.fmod(x, x.flip(0) | 1 | 2)),
    "floor": lambda x: (x // 3, x // 7, x // (x.flip(0) | 2), torch.div(x, 5, rounding_mode="floor")),
    "trunc": lambda x: (torch.div(x, 3, rounding_mode="trunc"), x % 3, x % (x.flip(0) | 2)),
    "powers": lambda x: (x**0, x**1, x**2, x**3, x**5, x**10, 2**x),
    "shifts": lambda x: (x << 1, x << 6, x << 40, x >> 1, x >> 40, x << (x & 7), x >> (x & 7)),
    "extremes": lambda x: (x.amax(), x.amin(1), *x.max(1), x.argmin(), torch.fmax(x, x.flip(0))),
    "order": lambda x: (*torch.sort(x, stable=True), *x.median(1), x.median()),
    "products": lambda x: (x @ x.T, torch.addbmm(x[:, :1], x[None], x.T[None]), F.linear(x, x)),
    "scatter": lambda x: x.scatter_add(1, torch.zeros(2, 8, dtype=torch.int64), x),
}


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("name", INTEGER_FUNCTIONS)
def test_integers_are_exact_and_wrap(name: str, dtype: torch.dtype, same: Callable[..., None]) -> None:
    same(INTEGER_FUNCTIONS[name], integers(dtype))


def test_large_products_and_sums(same: Callable[..., None]) -> None:
    same(lambda x: (x.prod(), x.sum(), x.cumprod(0)), torch.tensor([3**19, 3**18]))
    same(lambda x: x.sum(), torch.tensor([2**53, 1]))
    same(lambda x: x.sum(), torch.full((1 << 12,), 2**31 - 1, dtype=torch.int32))
    same(lambda x: (x.sum(dtype=torch.int64), x.prod(dtype=torch.int64)), torch.tensor([2.0**62, 2.5, 1.0]))


def test_integers_of_dynamic_sizes(trace: Callable[..., Graph]) -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.sum(), x.sum(1), x.prod(0, keepdim=True), x.prod(), x.cumprod(1), x // 7, x.fmod(7), x**5

    def args(*shape: int) -> tuple[torch.Tensor]:
        return (torch.randint(-(2**62), 2**62, shape, generator=torch.Generator().manual_seed(4)),)

    graph = trace(fn, args(3, 5), ({0: Dim("n"), 1: Dim("t")},))
    model = onnx.export(graph)
    assert [onnx.check(model, graph, args(*shape)) for shape in ((3, 5), (1, 1), (4, 2))] == [0, 0, 0]


def test_sums_of_what_is_small_stay_one_node(trace: Callable[..., Graph]) -> None:
    model = onnx.export(trace(lambda x: x.sum(1), (integers(torch.int16),)))
    assert [n.op_type for n in model.graph.node] == ["Cast", "ReduceSum"]


def test_integers_to_the_power_of_a_tensor_are_refused(trace: Callable[..., Graph]) -> None:
    x = torch.tensor([3, 5])
    for fn in (lambda x: x**x, lambda x: 3**x):
        with pytest.raises(
            UnsupportedOpError, match=r"aten\.pow\.(.|\n)*test_special_values\.py:(.|\n)*power of a"
        ):
            onnx.export(trace(fn, (x,)))


def test_check_tells_large_integers_apart(trace: Callable[..., Graph]) -> None:
    graph, other = (trace(fn, (torch.tensor(1),)) for fn in (lambda x: x + 2**53, lambda x: x + 2**53 - 1))
    assert onnx.check(onnx.export(graph), graph, (torch.tensor(1),)) == 0
    assert onnx.check(onnx.export(graph), other, (torch.tensor(1),)) == 1


NAN_FUNCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "extremes": lambda x: (x.amax(), x.amax(0), x.amin(1, keepdim=True), x.max(), x.min(), x.amax((0, 1))),
    "extremes of a dim": lambda x: (*x.max(1), *x.min(0), *x.max(0, keepdim=True)),
    "aminmax": lambda x: (*torch.aminmax(x), *torch.aminmax(x, dim=1)),
    "argmax": lambda x: (
        x.argmax(),
        x.argmax(1),
        x.argmin(0),
        x.argmin(1, keepdim=True),
        x.argmax(keepdim=True),
    ),
    "running extremes": lambda x: (*torch.cummax(x, 1), *torch.cummin(x, 1), *torch.cummax(x, 0)),
    "sorts": lambda x: (*torch.sort(x, stable=True), *torch.sort(x, stable=True, descending=True)),
    "topk": lambda x: (x.topk(2).values, x.topk(3, largest=False).values, x.kthvalue(2, 1).values),
    "medians": lambda x: (x.median(), *x.median(1), x.median(0, keepdim=True).values),
    "sums": lambda x: (x.sum(1), x.mean(0), x.prod(1), x.logsumexp(1), x.logsumexp((0, 1)), x.cumsum(1)),
    "norms": lambda x: (x.norm(), *(torch.linalg.vector_norm(x, p, 1) for p in (inf, -inf, 0, 1, 3))),
    "softmax": lambda x: (x.softmax(1), x.log_softmax(1), x.softmax(0)),
    "scatter": lambda x: [
        x.scatter_reduce(1, torch.zeros(10, 4, dtype=torch.int64), x, how) for how in ("amax", "amin")
    ],
    "fmax": lambda x: (torch.fmax(x, x.flip(0)), torch.fmin(x, x.flip(0)), torch.maximum(x, x.flip(1))),
    "floor": lambda x: (x // 2.0, x // -3, x // x.flip(0), torch.div(x, 2.5, rounding_mode="floor"), x % 2),
    "any": lambda x: (x.any(1), x.all(0), x.count_nonzero(1), x.isclose(x.flip(0), equal_nan=True)),
    "buckets": lambda x: [torch.bucketize(x, torch.tensor([-1.0, 0, 2]), right=r) for r in (False, True)],
    "activations": lambda x: (
        F.softshrink(x),
        F.hardshrink(x),
        F.threshold(x, 0.1, 20.0),
        x.relu(),
        F.elu(x),
    ),
    "max pools": lambda x: (
        F.max_pool1d(x[None], 2),
        F.max_pool1d(x[None], 3, 1, 1),
        F.max_pool2d(x[None, None], 2),
        F.max_pool2d(x[None, None], 3, 2, 1, ceil_mode=True),
        F.max_pool3d(x[None, None, None], (1, 2, 2)),
    ),
    "adaptive max pools": lambda x: [F.adaptive_max_pool2d(x[None, None], size) for size in (1, 2, 3)],
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", NAN_FUNCTIONS)
def test_nan_goes_where_it_goes_in_torch(name: str, dtype: torch.dtype, same: Callable[..., None]) -> None:
    if dtype == torch.float64 and name == "activations":  # ONNX Runtime has no Elu of doubles
        return same(lambda x: (F.softshrink(x), F.hardshrink(x), F.threshold(x, 0.1, 20.0)), rows(dtype))
    return same(
        NAN_FUNCTIONS[name], rows(dtype), atol=1e-2 if dtype == torch.float16 else 1e-5, keep_nan=True
    )


def test_a_max_pool_is_one_node_unless_nan_is_kept(trace: Callable[..., Graph]) -> None:
    graph = trace(lambda x: F.max_pool2d(x, 2), (torch.ones(1, 1, 4, 4),))
    assert [n.op_type for n in onnx.export(graph).graph.node] == ["MaxPool"]
    assert [n.op_type for n in onnx.export(graph, keep_nan=True).graph.node].count("MaxPool") == 2


def test_nan_stays_in_its_bin(same: Callable[..., None]) -> None:
    same(lambda x: [F.adaptive_avg_pool2d(x[None, None], size) for size in (1, 2, 3)], rows(torch.float32))


def test_a_token_that_may_look_nowhere_in_doubles(same: Callable[..., None]) -> None:
    x, mask = torch.randn(1, 2, 3, 4).double(), torch.full((3, 3), -inf).double()
    same(lambda x, mask: F.scaled_dot_product_attention(x, x, x, attn_mask=mask), x, mask)


PAIRS = torch.tensor([nan, inf, -inf, -0.0, 0.0, 1.0, -1.0, 2.5, -2.5, 7.0, 100.0])


@pytest.mark.parametrize("fn", [torch.atan2, torch.hypot, torch.floor_divide, torch.fmax, torch.remainder])
def test_pairs_of_special_values(fn: Callable[..., torch.Tensor], same: Callable[..., None]) -> None:
    same(lambda a, b: fn(a, b), PAIRS[:, None], PAIRS)


def test_inf_is_above_the_largest_number(same: Callable[..., None]) -> None:
    largest = torch.finfo(torch.float32).max
    same(
        lambda x: (*torch.sort(x, stable=True), *x.topk(2)), torch.tensor([inf, largest, nan, -largest, 0.0])
    )


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)], ids=str)
def test_means_of_nothing(shape: tuple[int, int], same: Callable[..., None]) -> None:
    same(
        lambda x: (x.mean(), x.mean(0), x.mean(1), x.mean((0, 1), keepdim=True), x.sum(0), x.prod(1)),
        torch.zeros(shape),
    )
    same(lambda x: (x.sum(), x.sum(0), x.prod(1), x.prod()), torch.zeros(shape, dtype=torch.int64))
    same(lambda x: F.adaptive_avg_pool1d(x[None], 1), torch.zeros(4, 0))


def test_products_of_nothing(same: Callable[..., None]) -> None:
    x = torch.zeros(4, 0)
    same(lambda x: (x @ x.T, torch.mv(x, x[0]), torch.einsum("ij,kj->ik", x, x)), x)


def test_means_of_what_may_be_nothing(trace: Callable[..., Graph]) -> None:
    graph = trace(lambda x: x[x > 0].mean(), (torch.ones(3),))
    model = onnx.export(graph)
    assert [onnx.check(model, graph, (x,)) for x in (torch.ones(3), torch.zeros(3))] == [0, 0]


def test_what_a_slice_leaves_may_be_nothing(trace: Callable[..., Graph]) -> None:
    graph = trace(lambda x: (x[:, 1:].mean(1), x[:, 1:].prod(1)), (torch.ones(3, 4),), ({1: Dim("n")},))
    model = onnx.export(graph)
    assert [onnx.check(model, graph, (torch.ones(3, n),)) for n in (4, 1, 2)] == [0, 0, 0]


def test_products_with_a_vector_of_what_may_be_nothing(trace: Callable[..., Graph]) -> None:
    graph = trace(lambda x: torch.mv(x[x > 0].expand(4, -1), x[x > 0]), (torch.ones(3),))
    model = onnx.export(graph)
    assert [onnx.check(model, graph, (x,)) for x in (torch.ones(3), torch.zeros(3))] == [0, 0]


def test_medians_of_bfloat16(same: Callable[..., None]) -> None:
    x = torch.tensor([[1.5, 3, 2], [nan, 1, 0]], dtype=torch.bfloat16)
    same(lambda x: (x.median(), x[0].median(), *x.median(1), x**0.5), x)


def test_a_mean_of_something_is_one_node(trace: Callable[..., Graph]) -> None:
    model = onnx.export(trace(lambda x: x.mean(0), (torch.ones(3, 2),), ({0: Dim("n", min=1)},)))
    assert [n.op_type for n in model.graph.node] == ["ReduceMean"]


NORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "layer norm of two": lambda x: F.layer_norm(x, x.shape[-2:]),
    "rms norm": lambda x: F.rms_norm(x, x.shape[-1:]),
    "instance norm": F.instance_norm,
    "group norm": lambda x: F.group_norm(x, 2),
    "normalize": lambda x: F.normalize(x, dim=-1),
}


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("name", NORMS)
def test_norms_over_a_dynamic_axis(name: str, opset: int, trace: Callable[..., Graph]) -> None:
    graph = trace(NORMS[name], (torch.randn(3, 4, 5),), ({0: Dim("n"), 2: Dim("t")},))
    model = onnx.export(graph, opset=opset)
    for n, size in ((3, 5), (1, 7), (2, 2)):
        assert onnx.check(model, graph, (torch.randn(n, 4, size),)) < 1e-5


def test_gelu_of_doubles(same: Callable[..., None]) -> None:
    x = torch.linspace(-4, 4, 17, dtype=torch.float64)
    same(lambda x: F.gelu(x, approximate="tanh"), x, atol=1e-15)


def test_rows_that_are_not_there(same: Callable[..., None]) -> None:
    x = torch.zeros(0, 4)
    same(lambda x: (*x.max(-1), *x.min(1, keepdim=True), x.argmax(-1), F.cosine_similarity(x, x, -1)), x)
    same(lambda x: torch.bucketize(x, torch.tensor([-1.0, 0, 2])), torch.zeros(0))


INTEGER_IMAGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "conv2d": lambda x: F.conv2d(x, x),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "upsample_bilinear2d": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
}


@pytest.mark.parametrize("name", INTEGER_IMAGES)
def test_integer_images_are_refused(name: str, trace: Callable[..., Graph]) -> None:
    dtype = torch.uint8 if name.startswith("upsample") else torch.int64
    with pytest.raises(UnsupportedOpError, match=rf"aten\.{name}(.|\n)*of integers"):
        onnx.export(trace(INTEGER_IMAGES[name], (torch.ones(1, 1, 4, 4, dtype=dtype),)))
