"""Cross-entropy written out, put back as the operator that it is.

    %0 = aten.log_softmax.int(%x, 1)
    %1 = aten.gather(%0, 1, aten.unsqueeze(%target, 1))
    %2 = aten.neg(aten.mean(%1))                        ==>     %0 = aten.cross_entropy_loss(%x, %target)

First the loss of each example is recognised, then its sum or mean. Where a target is out of range the formula
raises; the operator raises as well, except for -100, which it leaves out.

Do not fire over other than [examples, classes], along another axis, on targets of another size, where the
log-probabilities are used elsewhere, or where no minus follows or precedes: what is picked is no loss then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from capture.ir import Value
from passes.queries import packet_name
from passes.rewriting import Match
from passes.rulebook.common import spelled, where

aten = torch.ops.aten
X = torch.empty(2, 3)
TARGET = torch.zeros(2, dtype=torch.int64)
WEIGHT = torch.empty(3)
IGNORED = -3
REDUCTIONS = ("none", "mean", "sum")
INFINITE = {"infinite": "the formula multiplies what is not picked by zero, which makes NaN of infinity"}
_BEFORE_MINUS = ("aten.mean", "aten.sum", "aten.cross_entropy_loss")


def loss(x: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
    return F.cross_entropy(x, target, reduction=reduction)


# -- guards -------------------------------------------------------------------------------------------------


def has_a_target_each(match: Match) -> bool:
    """Scores [N, C] and targets [N]."""
    x, target = match["x"].type, match["target"].type
    return bool(x.rank == 2 and target.shape == x.shape[:1] and target.dtype is torch.int64)


def has_probabilities(match: Match) -> bool:
    """Scores [N, C], and as many probabilities in their dtype."""
    x, p = match["x"].type, match["p"].type
    return bool(x.rank == 2 and p.shape == x.shape and p.dtype == x.dtype and x.dtype.is_floating_point)


def is_negated(match: Match) -> bool:
    """Whether a minus follows, or a sum or mean and then a minus."""
    value: Value = match.results[0]
    for _ in range(2):
        if len(value.users) != 1 or value.is_result:
            return False
        [user] = value.users
        if packet_name(user.op) == "aten.neg":
            return True
        if packet_name(user.op) not in _BEFORE_MINUS:
            return False
        value = user.results[0]
    return False


# -- the loss of each example -------------------------------------------------------------------------------

Pick = Callable[[Tensor, Tensor], Tensor]
PICKS: tuple[tuple[Pick, tuple[Any, ...], dict[str, str]], ...] = (
    (lambda p, t: p.gather(1, t.unsqueeze(1)).squeeze(1), (aten.gather,), {}),
    (lambda p, t: p.gather(1, t.unsqueeze(1))[:, 0], (aten.gather, aten.select), {}),
    (lambda p, t: p[torch.arange(p.shape[0]), t], (aten.index,), {}),
    (lambda p, t: (F.one_hot(t, p.shape[1]) * p).sum(1), (aten.one_hot, aten.mul, aten.sum), INFINITE),
    (
        lambda p, t: (F.one_hot(t, p.shape[1]).to(p.dtype) * p).sum(1),
        (aten.one_hot, aten._to_copy, aten.mul, aten.sum),
        INFINITE,
    ),
)


def register_pick(pick: Pick, needed: tuple[Any, ...], excused: dict[str, str]) -> None:
    """A number for each example; the minus before it, or after it."""
    anchors = [aten.log_softmax, *needed]
    spelled(
        "cross-entropy",
        [lambda x, target: pick(-torch.log_softmax(x, 1), target)],
        loss,
        (X, TARGET),
        anchors=[*anchors, aten.neg],
        guard=has_a_target_each,
        excused=excused,
    )
    spelled(
        "cross-entropy",
        [lambda x, target: pick(torch.log_softmax(x, 1), target)],
        lambda x, target: -loss(x, target),
        (X, TARGET),
        anchors=[*anchors, aten.neg],
        guard=where(has_a_target_each, is_negated),
        excused=excused,
    )


for given in PICKS:
    register_pick(*given)

spelled(
    "cross-entropy",
    [
        lambda x, target: torch.logsumexp(x, 1) - x.gather(1, target.unsqueeze(1)).squeeze(1),
        lambda x, target: torch.logsumexp(x, 1) - x.gather(1, target.unsqueeze(1))[:, 0],
    ],
    loss,
    (X, TARGET),
    anchors=[aten.logsumexp, aten.gather, aten.sub],
    guard=has_a_target_each,
    excused={"infinite": "the formula makes NaN of infinity minus infinity in other places"},
)


def register_reduced(reduction: str, op: Any) -> None:
    """What is summed up, or averaged, as it is picked; and what has been recognised before."""

    def reduced(x: Tensor) -> Tensor:
        return x.sum() if reduction == "sum" else x.mean()

    spelled(
        "cross-entropy",
        [lambda x, target: reduced(torch.log_softmax(x, 1).gather(1, target.unsqueeze(1)))],
        lambda x, target: -loss(x, target, reduction),
        (X, TARGET),
        anchors=[aten.log_softmax, aten.gather, aten.neg, op],
        guard=where(has_a_target_each, is_negated),
    )
    spelled(
        "cross-entropy",
        [lambda x, target: reduced(-torch.log_softmax(x, 1).gather(1, target.unsqueeze(1)))],
        lambda x, target: loss(x, target, reduction),
        (X, TARGET),
        anchors=[aten.log_softmax, aten.gather, aten.neg, op],
        guard=has_a_target_each,
    )
    for sign in (1, -1):
        spelled(
            "cross-entropy-reduced",
            [lambda x, target, sign=sign: reduced(sign_of(sign, loss(x, target)))],
            lambda x, target, sign=sign: sign_of(sign, loss(x, target, reduction)),
            (X, TARGET),
            anchors=[aten.cross_entropy_loss, op],
        )


def sign_of(sign: int, x: Tensor) -> Tensor:
    return x if sign == 1 else -x


for reduction, op in (("mean", aten.mean), ("sum", aten.sum)):
    register_reduced(reduction, op)

# -- nll_loss, and probabilities ----------------------------------------------------------------------------


def register_nll(reduction: str) -> None:
    def pattern(x: Tensor, target: Tensor, ignored: int, *weight: Tensor) -> Tensor:
        given = weight[0] if weight else None
        p = torch.log_softmax(x, 1)
        return F.nll_loss(p, target, given, ignore_index=ignored, reduction=reduction)

    def replacement(x: Tensor, target: Tensor, ignored: int, *weight: Tensor) -> Tensor:
        given = weight[0] if weight else None
        return F.cross_entropy(x, target, given, ignore_index=ignored, reduction=reduction)

    for weight in ((), (WEIGHT,)):
        spelled(
            "cross-entropy-nll",
            [pattern],
            replacement,
            (X, TARGET, IGNORED, *weight),
            anchors=[aten.log_softmax, aten.nll_loss_nd],
            guard=lambda match: match["target"].type.dtype is torch.int64,
        )


for reduction in REDUCTIONS:
    register_nll(reduction)

SUMS: tuple[tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]], ...] = (
    (lambda p, x: p * torch.log_softmax(x, 1), lambda made: -made),
    (lambda p, x: p * -torch.log_softmax(x, 1), lambda made: made),
    (lambda p, x: -p * torch.log_softmax(x, 1), lambda made: made),
)


def register_soft(weighted: Callable[[Tensor, Tensor], Tensor], signed: Callable[[Tensor], Tensor]) -> None:
    """Targets that are probabilities."""
    is_loss = signed(torch.ones(())) > 0
    spelled(
        "cross-entropy-soft",
        [lambda x, p: weighted(p, x).sum(1)],
        lambda x, p: signed(loss(x, p)),
        (X, X),
        anchors=[aten.log_softmax, aten.mul, aten.sum, aten.neg],
        guard=has_probabilities if is_loss else where(has_probabilities, is_negated),
    )


for weighted, signed in SUMS:
    register_soft(weighted, signed)
