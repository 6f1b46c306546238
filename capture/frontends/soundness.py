"""Does a graph do what the model does? Asked where a front end cannot know: by running both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._C import _DisableAutocast
from torch.utils import _pytree as pytree

from capture.frontends.state import ModelState, StateGuard
from capture.ir import Constant, Graph, Trait, has

__all__ = ["agrees", "carries_state", "run_aside"]


def run_aside(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], times: int = 1
) -> list[Any]:
    """Run the model on copies of the arguments, with the same random numbers; then undo what it did."""
    kept = {
        t: t.detach().clone() for t in ModelState(model).tensors.values() if not isinstance(t, nn.Parameter)
    }
    outputs = []
    try:
        with StateGuard(model), torch.no_grad(), _DisableAutocast(), torch.random.fork_rng():
            for _ in range(times):
                given, named = pytree.tree_map(_copied, (args, dict(kwargs)))
                torch.manual_seed(0)
                outputs.append(pytree.tree_map(_copied, model(*given, **named)))
    finally:
        _restore(kept)
    return outputs


def _restore(kept: Mapping[torch.Tensor, torch.Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in kept.items():
            tensor.detach().copy_(value)


def carries_state(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a second call on equal arguments gives another result than the first."""
    first, second = run_aside(model, args, kwargs, times=2)
    return not _equal(first, second, rtol=0.0)


def agrees(graph: Graph, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the graph gives the model's results on these arguments, up to rounding.

    A graph that draws random numbers is not compared: it may draw them in another order.
    """
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    unreal = any(isinstance(v, torch.Tensor) and type(v) not in (torch.Tensor, nn.Parameter) for v in leaves)
    if unreal or any(has(node.op, Trait.RANDOM) for node in graph.nodes):
        return True
    (expected,) = run_aside(model, args, kwargs)
    given, named = pytree.tree_map(_copied, (args, dict(kwargs)))
    targets = [c.tensor for c in graph.writebacks if isinstance(c, Constant) and c.tensor is not None]
    kept = {tensor: tensor.clone() for tensor in targets}
    try:
        result = graph.run(*given, **named)
    finally:
        _restore(kept)
    return _equal(expected, result, rtol=None)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _equal(a: Any, b: Any, rtol: float | None) -> bool:
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(left) == len(right) and all(_same(x, y, rtol) for x, y in zip(left, right, strict=True))


def _same(x: Any, y: Any, rtol: float | None) -> bool:
    """Equal tensors or literals; without `rtol`, up to a few roundings of the dtype."""
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        return type(x) is type(y) and bool(x == y)
    if (x.dtype, x.shape) != (y.dtype, y.shape):
        return False
    inexact = x.is_floating_point() or x.is_complex()
    if rtol is None:
        rtol = 100 * torch.finfo(x.dtype).eps if inexact else 0.0
    scale = float(x.abs().nan_to_num(0.0, 0.0, 0.0).max()) if inexact and x.numel() else 0.0
    return torch.allclose(x, y, rtol=rtol, atol=rtol * scale, equal_nan=True)
