"""GroupNorm and InstanceNorm spelled out are found, in every dtype and rank; look-alikes are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import passes
from capture import capture
from tests.passes.rulebook.found import Spelled, call, names, refusals, rewritten

Function = Callable[..., Any]
AXES = [2, 3, 4]


def operand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1).to(dtype)


def by_var(g: Tensor, axes: Any) -> Tensor:
    return (g - g.mean(axes, keepdim=True)) / torch.sqrt(g.var(axes, unbiased=False, keepdim=True) + 1e-5)


def by_var_mean(g: Tensor, axes: Any) -> Tensor:
    var, mean = torch.var_mean(g, dim=axes, correction=0, keepdim=True)
    return (g - mean) * torch.rsqrt(var + 1e-5)


def by_square(g: Tensor, axes: Any) -> Tensor:
    d = g - g.mean(axes, keepdim=True)
    return d * (d.pow(2).mean(axes, keepdim=True) + 1e-5).rsqrt()


def by_mean_square(g: Tensor, axes: Any) -> Tensor:
    mean = g.mean(axes, keepdim=True)
    return (g - mean) / (g.pow(2).mean(axes, keepdim=True) - mean**2 + 1e-5).sqrt()


def in_groups(x: Tensor) -> Tensor:
    return by_var(x.view(2, 3, 2, 4, 5), AXES).view(2, 6, 4, 5)


def in_flat_groups(x: Tensor) -> Tensor:
    return by_var_mean(x.reshape(2, 3, -1), -1).reshape(x.shape)


def of_channel(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


GROUP_NORMS: dict[str, tuple[Function, str]] = {
    "in full": (lambda x, w, b: in_groups(x), "3"),
    "flat": (lambda x, w, b: in_flat_groups(x), "3"),
    "by squares": (lambda x, w, b: by_square(x.unflatten(1, (3, 2)), AXES).flatten(1, 2), "3"),
    "by the mean square": (lambda x, w, b: by_mean_square(x.view(2, 2, -1), 2).view(2, 6, 4, 5), "2"),
    "one group": (lambda x, w, b: by_var(x.reshape(2, 1, -1), 2).reshape(2, 6, 4, 5), "1"),
    "factor and offset": (
        lambda x, w, b: in_groups(x) * of_channel(w) + of_channel(b),
        "3, %args_1, %args_2",
    ),
    "without the batch's axis": (
        lambda x, w, b: b[:, None, None] + w[:, None, None] * in_flat_groups(x),
        "3, %args_1, %args_2",
    ),
    "factor alone": (lambda x, w, b: in_groups(x) * of_channel(w), "3, %args_1"),
}


@pytest.mark.parametrize("name", GROUP_NORMS)
def test_a_group_norm_is_found(name: str) -> None:
    function, told = GROUP_NORMS[name]
    found = rewritten(function, operand(2, 6, 4, 5), operand(6), operand(6))
    assert call(found) == f"aten.group_norm(%args_0, {told})"


INSTANCE_NORMS: dict[str, Function] = {
    "by variance": lambda x, w, b: by_var(x, (2, 3)),
    "by both at once": lambda x, w, b: by_var_mean(x, (-2, -1)),
    "by squares": lambda x, w, b: by_square(x, (2, 3)) * of_channel(w) + of_channel(b),
    "by the mean square": lambda x, w, b: by_mean_square(x, (2, 3)) * of_channel(w),
}


@pytest.mark.parametrize("name", INSTANCE_NORMS)
def test_an_instance_norm_is_found(name: str) -> None:
    found = rewritten(INSTANCE_NORMS[name], operand(2, 6, 4, 5), operand(6), operand(6))
    assert names(found) == ["instance_norm"]


def test_along_a_length_it_is_found_by_its_channels() -> None:
    def with_factor(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return by_var(x, -1) * w[:, None] + b[:, None]

    assert names(rewritten(with_factor, operand(2, 6, 7), operand(6), operand(6))) == ["instance_norm"]
    assert names(rewritten(lambda x: by_var(x, -1), operand(2, 6, 7))) == ["layer_norm"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_they_are_found_in_other_dtypes(dtype: torch.dtype) -> None:
    assert names(rewritten(in_groups, operand(2, 6, 4, 5, dtype=dtype), check=False)) == ["group_norm"]
    assert names(rewritten(in_flat_groups, operand(2, 6, 4, 5, dtype=dtype))) == ["group_norm"]


def test_half_precision_computed_in_fp32() -> None:
    x, w, b = (operand(*shape, dtype=torch.bfloat16) for shape in ((2, 6, 4, 5), (6,), (6,)))
    assert names(rewritten(lambda x: in_groups(x.float()).to(x.dtype), x)) == ["group_norm"]
    wide = rewritten(lambda x, w, b: F.group_norm(x.float(), 3, w.float(), b.float()).to(x.dtype), x, w, b)
    assert call(wide) == "aten.group_norm(%args_0, 3, %args_1, %args_2)"


def test_sizes_may_vary() -> None:
    batch, height = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("height", min=2, max=64)

    def function(x: Tensor, w: Tensor) -> Tensor:
        n, c, h, width = x.shape
        return by_var(x.view(n, 3, c // 3, h, width), AXES).view(n, c, h, width) * of_channel(w)

    args = operand(3, 6, 5, 4), operand(6)
    found = rewritten(function, *args, dynamic_shapes=(({0: batch, 2: height}, {}),))
    assert names(found) == ["group_norm"]
    other = operand(2, 6, 9, 4)
    torch.testing.assert_close(found.run(other, args[1]), function(other, args[1]))


def test_the_weights_of_a_module_are_the_operators() -> None:
    class Norm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(operand(1, 6, 1, 1))
            self.bias = torch.nn.Parameter(operand(1, 6, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return in_groups(x) * self.weight + self.bias

    x = operand(2, 6, 4, 5)
    graph = capture(Norm().eval(), (x,))
    found = passes.optimize(graph, passes=passes.PIPELINES[1], verify=True)
    assert names(found) == ["group_norm"]
    assert [v.tensor_type.shape for v in found.constants.values()] == [(6,), (6,)]
    torch.testing.assert_close(found.run(x), graph.run(x), rtol=1e-5, atol=1e-5)


def unbiased(g: Tensor, axes: Any) -> Tensor:
    return (g - g.mean(axes, keepdim=True)) / torch.sqrt(g.var(axes, keepdim=True) + 1e-5)


LOOK_ALIKES: dict[str, Function] = {
    "unbiased": lambda x: unbiased(x.view(2, 3, 2, 4, 5), AXES).view(2, 6, 4, 5),
    "unbiased, of each channel": lambda x: unbiased(x, (2, 3)),
    "over the batch": lambda x: by_var(x, (0, 2, 3)),
    "over channels and height": lambda x: by_var(x, (1, 2)),
    "channels of a group apart": lambda x: by_var(x.view(2, 3, 2, 4, 5), (1, 3, 4)).view(2, 6, 4, 5),
    "other axes put back": lambda x: by_var(x.view(2, 3, 2, 4, 5), AXES).reshape(2, 6, 5, 4),
    "groups across samples": lambda x: by_var(x.reshape(4, 3, 1, 4, 5), AXES).reshape(2, 6, 4, 5),
    "another tensor's variance": lambda x: (x - x.mean((2, 3), True)) * torch.rsqrt(
        (2 * x).var((2, 3), correction=0, keepdim=True) + 1e-5
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_a_look_alike_is_not(name: str) -> None:
    found = rewritten(LOOK_ALIKES[name], operand(2, 6, 4, 5))
    known = {"group_norm", "instance_norm"}
    inside = {"across": "instance_norm", "other axes": "instance_norm"}  # what is normalised is the same
    allowed = {op for part, op in inside.items() if part in name}
    assert not (known - allowed) & set(names(found))
    assert len(found.nodes) > 1


def test_a_factor_of_other_than_the_channels_stays() -> None:
    per_group = rewritten(lambda x, w: in_groups(x) * w, operand(2, 6, 4, 5), operand(2, 6, 1, 1))
    assert names(per_group) == ["group_norm", "mul"]
    assert any("not one number per channel" in reason for reason in refusals(per_group))
    wide = rewritten(lambda x, w: in_groups(x) * w, operand(2, 6, 4, 5), operand(6, 1, 1).double())
    assert "mul" in names(wide)


def test_a_moment_that_is_used_elsewhere_stays() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(var + 1e-5), mean

    assert "instance_norm" not in names(rewritten(function, operand(2, 6, 4, 5)))


def test_integers_and_the_rank_of_a_matrix_stay() -> None:
    graph = capture(Spelled(lambda x: by_var(x, (0, 1))), (operand(3, 4),))
    assert "instance_norm" not in names(passes.optimize(graph, passes=passes.PIPELINES[1]))
