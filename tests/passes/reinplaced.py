"""What tests of `reinplace` share: generated code against the graph's meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from capture import Graph
from passes import optimize
from runtime.executables import AtenExecutable

PLANNED = ["reinplace", "schedule", "memory"]


def same_as_the_graph(
    graph: Graph, args: list[torch.Tensor], *, passes: Sequence[str] = PLANNED, calls: int = 2
) -> None:
    """Generated code gives what the interpreter gives, and leaves the same state behind."""
    reference = graph.clone()
    for constant in reference.constants.values():
        constant.tensor = constant.tensor.clone() if constant.tensor is not None else None
    f = AtenExecutable(optimize(graph, passes=passes, verify=True))
    mine, theirs = [a.clone() for a in args], [a.clone() for a in args]
    for _ in range(calls):
        wanted: Any = reference.run(*theirs)
        wanted = list(wanted) if isinstance(wanted, (tuple, list)) else [wanted]
        with torch.no_grad():
            torch.testing.assert_close(list(f(*mine)), wanted, equal_nan=True)
        torch.testing.assert_close(mine, theirs, equal_nan=True)
        for name, constant in graph.constants.items():
            torch.testing.assert_close(constant.tensor, reference.constants[name].tensor, equal_nan=True)
