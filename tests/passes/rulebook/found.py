"""Capture a function, clean it up, rewrite it with every application replayed; what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import passes
from capture import Graph, capture
from capture.ir import op_name
from passes.pipelines import CLEAN
from passes.rewrite import Rewrite

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}


class Spelled(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


def rewritten(function: Callable[..., Any], *args: torch.Tensor, check: bool = True, **options: Any) -> Graph:
    """The graph after the built-in rules; that it computes the same is made sure."""
    before = passes.optimize(
        capture(Spelled(function), args, **options), passes=["recompose", *CLEAN], verify=True
    )
    rewrite = Rewrite(check=check, inputs=(args, {}))
    after = passes.optimize(before, passes=[rewrite, *CLEAN], verify=True)
    one, other = after.run(*args), before.run(*args)
    limit = TOLERANCES[args[0].dtype]
    torch.testing.assert_close(one, other, rtol=limit, atol=limit, equal_nan=True)
    return after


def names(graph: Graph) -> list[str]:
    """The operators, without namespace and overload."""
    return [op_name(node.op).split(".")[1] for node in graph.nodes]


def call(graph: Graph) -> str:
    """The one call that is left, as the graph's text has it."""
    assert len(graph.nodes) == 1, str(graph)
    line = next(line for line in str(graph).splitlines() if " = " in line)
    return line.split("#")[0].split(" = ")[1].strip()


def refusals(graph: Graph) -> list[str]:
    """What the ledger says of rules that were refused."""
    return [row.reason for row in passes.ledger(graph) if "refused" in row.reason]
