"""Graphs written as text, with weights put in: what golden tests start from."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch

from capture.ir import Graph, TensorType
from passes.base import Pass
from passes.manager import optimize
from tests.random_builder import random_tensor


def parse(text: str, *, seed: int = 0, bind: bool = True) -> Graph:
    """The graph of an indented text; every constant is given a random tensor."""
    graph = Graph.parse(textwrap.dedent(text).lstrip("\n")).verify()
    generator = torch.Generator().manual_seed(seed)
    if bind:
        state = {
            name: random_tensor(c.tensor_type.concrete({}), c.tensor_type.dtype, generator)
            for name, c in graph.constants.items()
        }
        graph.bind(state)
    return graph


def inputs_of(graph: Graph, *, seed: int = 1, **sizes: int) -> list[torch.Tensor]:
    """Random tensors for the graph's inputs; `sizes` gives the symbolic dims (default 3)."""
    generator = torch.Generator().manual_seed(seed)
    env = dict.fromkeys(graph.dims, 3) | sizes
    types = [v.type for v in graph.inputs]
    return [random_tensor(t.concrete(env), t.dtype, generator) for t in types if isinstance(t, TensorType)]


def rewritten(text: str, *passes: str | Pass) -> str:
    """The text after the passes, every invariant checked after each."""
    return str(run(parse(text), passes))


def run(graph: Graph, passes: Sequence[str | Pass]) -> Graph:
    return optimize(graph, passes=list(passes), verify=True)


def kernels(graph: Graph) -> list[str]:
    """The kernel of each node that has an implementation, in order."""
    return [n.impl.kernel for n in graph.nodes if n.impl is not None]


def kinds(graph: Graph) -> list[str]:
    """Each node's op, a fusion's with the ops inside: ``fusion.conv(conv2d relu)``."""
    shown = []
    for node in graph.nodes:
        inside = " ".join(_short(n.op) for n in node.region.nodes) if node.region is not None else ""
        shown.append(f"{node.op}({inside})" if inside else _short(node.op))
    return shown


def _short(op: object) -> str:
    return str(op).removeprefix("aten.").partition(".")[0]
