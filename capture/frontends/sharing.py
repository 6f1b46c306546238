"""Tensors that share memory. A graph's values are separate: a write to one never shows in another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.frontends.failures import UnsoundError
from capture.frontends.state import ModelState
from capture.ir import Graph, Value
from capture.ir.memory import overlapping

__all__ = ["apart", "blame", "check_writes"]


def apart(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The arguments with those cloned that share memory with another one or with the model.

    A tracer would take the two for one tensor, but the graph is for any arguments like these.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    seen: set[int] = set()
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            leaves[i] = leaf.detach().clone() if id(leaf) in seen else leaf
            seen.add(id(leaf))
    state = {f"model {path}": t for path, t in ModelState(model).tensors.items()}
    inputs = {str(i): leaf for i, leaf in enumerate(leaves) if type(leaf) in (torch.Tensor, nn.Parameter)}
    for _, later in overlapping({**state, **inputs}):  # an input, if one of them is: those stand last
        if later in inputs:
            leaves[int(later)] = inputs[later].detach().clone()
    given: tuple[Any, Any] = pytree.tree_unflatten(leaves, spec)
    return given


def check_writes(graph: Graph, leaves: Sequence[Any] = ()) -> None:
    """Make sure that nothing the graph uses shares memory with what it writes to.

    Args:
        leaves: the flat example inputs.

    Raises:
        UnsoundError: names the two.
    """
    held: list[tuple[Value, Any]] = [(c, c.tensor) for c in graph.constants.values()]
    given = list(zip(graph.inputs, leaves, strict=False))
    for what, pairs in (("the model's tensors", held), ("the inputs", given)):
        tensors = {v.name: t for v, t in pairs if isinstance(t, torch.Tensor)}
        written = {v.name for v, _ in pairs if v in graph.writebacks}
        for pair in overlapping(tensors) if written else ():
            if not written.isdisjoint(pair):
                raise _shared(what, pair)


def blame(error: Exception, model: nn.Module) -> None:
    """Explain an error that torch.export gives where a model writes to shared memory.

    Raises:
        UnsoundError: names the tensors that share it.
    """
    if re.search(
        r"expected compiled_fn to be GraphModule|[Aa]liased inputs share storage|view input mutations",
        str(error),
    ):
        for pair in overlapping(ModelState(model).tensors):
            raise _shared("the model's tensors", pair) from error


def _shared(what: str, pair: tuple[str, str]) -> CaptureError:
    return UnsoundError(
        f"{what} {pair[0]} and {pair[1]} share memory",
        why="The model writes to one of them, and so changes the other; the values of a graph are separate.",
        hint="one tensor, and a view of it taken in forward; or tensors of their own, with .clone()",
    )
