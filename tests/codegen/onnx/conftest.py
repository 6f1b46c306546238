"""What the ONNX tests share: capture a function, export it, run it in ONNX Runtime, compare with eager."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from capture import Graph, capture
from codegen import onnx


def captured(fn: Callable[..., Any], args: Sequence[Any], dynamic_shapes: Any = None) -> Graph:
    """By dispatch tracing, which takes a few milliseconds, where no size is dynamic."""
    frontend = "dispatch" if dynamic_shapes is None else "export"
    if isinstance(fn, torch.nn.Module):
        return capture(fn.eval(), tuple(args), dynamic_shapes=dynamic_shapes, frontend=frontend)
    try:
        inspect.signature(fn)
    except ValueError:  # torch's built-in functions have none
        return captured(lambda *given: fn(*given), args, dynamic_shapes)
    return capture(fn, tuple(args), dynamic_shapes=dynamic_shapes, frontend=frontend)


def assert_same(
    fn: Callable[..., Any], *args: Any, atol: float = 1e-5, opset: int = 23, keep_nan: bool = False
) -> None:
    """Eager, the graph and ONNX Runtime give the same: within atol of each other, integers exactly."""
    graph = captured(fn, args)
    with torch.no_grad():
        wanted = pytree.tree_leaves(fn(*args))
    for a, b in zip(pytree.tree_leaves(graph.run(*args)), wanted, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    exact = all(not torch.as_tensor(w).is_floating_point() for w in wanted)
    model = onnx.export(graph, opset=opset, keep_nan=keep_nan)
    assert onnx.check(model, graph, args) <= (0 if exact else atol)


@pytest.fixture
def same() -> Callable[..., None]:
    return assert_same


@pytest.fixture
def trace() -> Callable[..., Graph]:
    return captured
