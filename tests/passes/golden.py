"""Golden tests of passes: a graph as text, a pass's name, the graph after; and that both compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import dedent

import torch

import passes
from capture.ir import Graph
from tests.random_builder import random_tensor
from tests.random_graphs import Case, assert_same_results


def parse(text: str, **state: torch.Tensor) -> Graph:
    """A graph from indented text, its constants bound to seeded random numbers, or to `state` by name."""
    graph = Graph.parse(dedent(text).strip("\n"))
    generator = torch.Generator().manual_seed(1)
    for name, constant in graph.constants.items():
        type_ = constant.tensor_type
        tensor = random_tensor(type_.shape, type_.dtype, generator)
        constant.tensor = tensor.abs() + 0.5 if name.endswith("running_var") else tensor
    for name, tensor in state.items():
        graph.constants[name.replace("__", ".")].tensor = tensor
    return graph


def check(
    graph: Graph | str,
    pass_: str,
    after: str | None = None,
    *,
    exact: bool = True,
    folds: torch.dtype | None = None,
    sizes: Mapping[str, int] | None = None,
    runs: bool = True,
) -> Graph:
    """Run one pass: the text must be `after` (None: as it was), the results the same. Returns the new graph.

    `runs` says whether the graph can be run for comparison: it has all its constants, and draws no numbers.
    """
    graph = parse(graph) if isinstance(graph, str) else graph
    before = str(graph)
    made = passes.optimize(graph, passes=[pass_], verify=True)
    assert str(made) == (before if after is None else dedent(after).strip("\n") + "\n")
    assert str(graph) == before
    assert made.history[-1].changed == (after is not None)
    if runs:
        assert_same_results(Case(graph, seed=1), made, exact=exact, folds=folds, **(sizes or {}))
    return made
