"""What tests of the rewrite pass share: to register a rule for one test, to see why one was refused."""

from __future__ import annotations

from collections.abc import Callable

import torch

import passes
from capture import Graph
from capture.ir import CapturedOp, Origin, op_name
from tests.passes.golden import parse

__all__ = ["Make", "Manual", "X", "reason", "refused", "silu", "with_ledger"]

X = torch.randn(2, 3)
Make = Callable[..., str]


def silu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


class Manual(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x) * x


def reason(graph: Graph) -> set[str]:
    """What the ledger says of rules that were refused."""
    return {row.reason for row in passes.ledger(graph) if "refused" in row.reason}


def refused(text: str, spec: str, why: str) -> None:
    """The graph stays as it is, and the ledger tells why."""
    graph = with_ledger(parse(text))
    after = passes.optimize(graph, passes=[spec], verify=True)
    assert str(after) == str(graph)
    assert not after.history[-1].changed
    assert any(why in told for told in reason(after)), reason(after)


def with_ledger(graph: Graph) -> Graph:
    """Origins as capture makes them: one for each node."""
    for number, node in enumerate(graph.nodes):
        graph.captured[number] = CapturedOp(number, op_name(node.op))
        node.origin = Origin.of(graph.captured[number])
    return graph
