"""Cross-entropy spelled out is found, with its reductions; look-alikes are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from capture.ir import Fusion
from passes import optimize
from passes.fuse import Fuse
from tests.passes.rulebook.found import call, names, rewritten

Function = Callable[..., Tensor]
N, C = 4, 6
TARGET = torch.tensor([1, 2, 0, 5])


def scores(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape or (N, C), generator=torch.Generator().manual_seed(0)).to(dtype)


def log_p(x: Tensor) -> Tensor:
    return F.log_softmax(x, dim=-1)


def gathered(x: Tensor, t: Tensor) -> Tensor:
    return x.gather(1, t.unsqueeze(1)).squeeze(1)


def indexed(x: Tensor, t: Tensor) -> Tensor:
    return x[torch.arange(x.shape[0]), t]


def masked(x: Tensor, t: Tensor) -> Tensor:
    return (F.one_hot(t, C) * x).sum(-1)


SPELLINGS: dict[str, tuple[Function, str]] = {
    "nll_loss": (lambda x, t: F.nll_loss(log_p(x), t), ""),
    "nll_loss, summed, one class left out": (
        lambda x, t: F.nll_loss(log_p(x), t, reduction="sum", ignore_index=2), ", None, 2, 2"),
    "gather": (lambda x, t: -gathered(log_p(x), t).mean(), ""),
    "gather, the mean last": (lambda x, t: (-gathered(log_p(x), t)).mean(), ""),
    "gather, each": (lambda x, t: -gathered(log_p(x), t), ", None, 0"),
    "gather, a column": (lambda x, t: -log_p(x).gather(-1, t[:, None]).mean(), ""),
    "gather, a column summed": (lambda x, t: (-log_p(x).gather(1, t[:, None])).sum(), ", None, 2"),
    "gather of the negative": (lambda x, t: gathered(-log_p(x), t).sum(), ", None, 2"),
    "gather, the column taken": (lambda x, t: -log_p(x).gather(1, t.view(-1, 1))[:, 0].mean(), ""),
    "index": (lambda x, t: -indexed(log_p(x), t).mean(), ""),
    "index of the negative": (lambda x, t: indexed(-log_p(x), t), ", None, 0"),
    "one-hot": (lambda x, t: -masked(log_p(x), t).mean(), ""),
    "one-hot cast": (lambda x, t: -(log_p(x) * F.one_hot(t, C).float()).sum(1).sum(), ", None, 2"),
    "log of softmax": (lambda x, t: -gathered(torch.softmax(x, 1).log(), t).mean(), ""),
    "logsumexp": (lambda x, t: (torch.logsumexp(x, 1) - gathered(x, t)).mean(), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_is_found(name: str) -> None:
    function, told = SPELLINGS[name]
    assert call(rewritten(function, scores(), TARGET)) == f"aten.cross_entropy_loss(%args_0, %args_1{told})"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_it_is_found_in_other_dtypes(dtype: torch.dtype) -> None:
    found = rewritten(SPELLINGS["gather"][0], scores(dtype=dtype), TARGET)
    assert names(found) == ["cross_entropy_loss"]


def test_class_weights_are_the_operators() -> None:
    found = rewritten(lambda x, t, w: F.nll_loss(log_p(x), t, w), scores(), TARGET, scores(C).abs())
    assert call(found) == "aten.cross_entropy_loss(%args_0, %args_1, %args_2)"


@pytest.mark.parametrize(
    "function",
    [
        lambda x, p: -(p * log_p(x)).sum(-1).mean(),
        lambda x, p: (-p * log_p(x)).sum(1).mean(),
        lambda x, p: (-log_p(x) * p).sum(-1).mean(),
    ],
)
def test_targets_that_are_probabilities(function: Function) -> None:
    found = rewritten(function, scores(), torch.softmax(scores(), 1))
    assert call(found) == "aten.cross_entropy_loss(%args_0, %args_1)"


def test_the_number_of_examples_may_vary() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    found = rewritten(SPELLINGS["index"][0], scores(), TARGET, dynamic_shapes=(({0: batch}, {0: batch}),))
    assert names(found) == ["cross_entropy_loss"]
    x, target = scores(7, C), torch.arange(7) % C
    torch.testing.assert_close(found.run(x, target), F.cross_entropy(x, target))


def test_on_a_gpu_it_takes_what_is_before_it() -> None:
    found = rewritten(lambda x, t: -gathered(log_p(x / 2), t).mean(), scores(), TARGET)
    [node] = optimize(found, passes=[Fuse(target="gpu")]).nodes
    assert node.op == Fusion("reduction")


LOOK_ALIKES: dict[str, Function] = {
    "no minus": lambda x, t: gathered(log_p(x), t).mean(),
    "along the examples": lambda x, t: -gathered(F.log_softmax(x, 0), t).mean(),
    "no logarithm": lambda x, t: -gathered(torch.softmax(x, 1), t).mean(),
    "picked along the examples": lambda x, t: -F.log_softmax(x, 1).gather(0, t.unsqueeze(1) % N).mean(),
    "some examples": lambda x, t: -log_p(x).gather(1, t[:2, None]).mean(),
    "other examples": lambda x, t: -log_p(x)[torch.arange(N).flip(0), t].mean(),
    "the wrong sum": lambda x, t: -(F.one_hot(t, C) * log_p(x)).sum(0).mean(),
    "another tensor": lambda x, t: torch.logsumexp(2 * x, 1) - gathered(x, t),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_a_look_alike_is_not(name: str) -> None:
    assert "cross_entropy_loss" not in names(rewritten(LOOK_ALIKES[name], scores(), TARGET))


def test_log_probabilities_that_are_used_elsewhere_stay() -> None:
    def function(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        p = log_p(x)
        return -gathered(p, t).mean(), p.exp()

    assert "cross_entropy_loss" not in names(rewritten(function, scores(), TARGET))


def test_targets_that_differ_in_number_stay() -> None:
    probabilities = scores(1, C).abs()
    found = rewritten(lambda x, p: -(p * log_p(x)).sum(-1).mean(), scores(), probabilities)
    assert "cross_entropy_loss" not in names(found)
