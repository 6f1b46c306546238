"""Softmax, log-softmax and log-sum-exp written out, along the last axis or the second.

    %0 = aten.amax(%x, [-1], True)
    %1 = aten.sub.Tensor(%x, %0)
    %2 = aten.exp(%1)                          ==>     %0 = aten.softmax.int(%x, -1)
    %3 = aten.sum.dim_IntList(%2, [-1], True)
    %4 = aten.div.Tensor(%2, %3)

The operators subtract the largest element themselves: what overflowed without that does not any more. Of a
row that holds infinity softmax is NaN throughout, and its logsumexp infinite: of the formulas some make NaN
of that one element only, others of the sum.

Do not fire on integers, along other axes, where the maximum is that of another axis, or where the
exponentials are used elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from passes.rulebook.common import X, is_floating, spelled

aten = torch.ops.aten
ONE = (X,)
INFINITE = {"infinite": "a row that holds infinity is NaN in other places"}

LARGEST: tuple[tuple[Callable[[Tensor, int], Tensor], object], ...] = (
    (lambda x, dim: x.amax(dim, keepdim=True), aten.amax),
    (lambda x, dim: x.max(dim, keepdim=True).values, aten.max.dim),
)


def softmax_of(
    shifted: Callable[[Tensor, int], Tensor], dim: int
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """exp(..) / sum(exp(..)) of what `shifted` makes of x, and the operator."""

    def pattern(x: Tensor) -> Tensor:
        e = torch.exp(shifted(x, dim))
        return e / e.sum(dim, keepdim=True)

    return pattern, lambda x: torch.softmax(x, dim)


def log_softmax_of(largest: Callable[[Tensor, int], Tensor], dim: int) -> Callable[[Tensor], Tensor]:
    def pattern(x: Tensor) -> Tensor:
        shifted = x - largest(x, dim)
        return shifted - torch.log(torch.exp(shifted).sum(dim, keepdim=True))

    return pattern


def logsumexp_of(largest: Callable[[Tensor, int], Tensor], dim: int) -> Callable[[Tensor], Tensor]:
    def pattern(x: Tensor) -> Tensor:
        m = largest(x, dim)
        return m + torch.log(torch.exp(x - m).sum(dim, keepdim=True))

    return pattern


def register(dim: int) -> None:
    """The rules along one axis."""
    sums = [aten.exp, aten.sum]
    pattern, replacement = softmax_of(lambda x, dim: x, dim)
    spelled(
        "softmax",
        [pattern],
        replacement,
        ONE,
        anchors=[*sums, aten.div],
        guard=is_floating,
        excused=INFINITE,
    )
    for largest, op in LARGEST:

        def shifted(x: Tensor, dim: int, largest: Callable[..., Tensor] = largest) -> Tensor:
            return x - largest(x, dim)

        pattern, replacement = softmax_of(shifted, dim)
        anchors = [*sums, op, aten.sub]
        spelled("softmax", [pattern], replacement, ONE, anchors=[*anchors, aten.div], guard=is_floating)
        spelled(
            "log-softmax",
            [log_softmax_of(largest, dim)],
            lambda x: torch.log_softmax(x, dim),
            ONE,
            anchors=[*anchors, aten.log],
            guard=is_floating,
        )
        spelled(
            "logsumexp",
            [logsumexp_of(largest, dim)],
            lambda x: torch.logsumexp(x, dim, keepdim=True),
            ONE,
            anchors=[*anchors, aten.log, aten.add],
            guard=is_floating,
            excused=INFINITE,
        )
    spelled(
        "log-softmax",
        [lambda x: torch.log(torch.softmax(x, dim))],
        lambda x: torch.log_softmax(x, dim),
        ONE,
        anchors=[aten.log, aten.softmax],
        guard=is_floating,
    )
    spelled(
        "log-softmax",
        [lambda x: x - torch.logsumexp(x, dim, keepdim=True)],
        lambda x: torch.log_softmax(x, dim),
        ONE,
        anchors=[aten.sub, aten.logsumexp],
        guard=is_floating,
        excused=INFINITE,
    )
    for keepdim in (False, True):
        spelled(
            "logsumexp",
            [lambda x, keepdim=keepdim: torch.log(torch.exp(x).sum(dim, keepdim=keepdim))],
            lambda x, keepdim=keepdim: torch.logsumexp(x, dim, keepdim=keepdim),
            ONE,
            anchors=[*sums, aten.log],
            guard=is_floating,
        )


for axis in (-1, 1):
    register(axis)
