"""The reference interpreter: call the ops in order. The judge of every rewrite, in the graph's dtypes or in fp64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.ir import dims
from capture.ir import graph as ir
from capture.ir.arguments import flatten_inputs
from capture.ir.ops import Fusion, op_name
from capture.ir.types import LiteralType, ScalarType, TensorType

Observer = Callable[[ir.Node, Sequence[Any], Sequence[Any]], None]


def run(graph: ir.Graph, args: Sequence[Any], kwargs: Any, *, dtype: torch.dtype | None = None) -> Any:
    """Run the graph on the arguments that the captured callable took.

    Args:
        dtype: where given, every floating tensor is computed in it (fp64 for a reference).

    Raises:
        GuardError: the arguments do not fit the graph's inputs.
    """
    flat = flatten_inputs(graph, args, kwargs)
    results, written = run_flat(graph, flat, dtype=dtype)
    results = write_back(graph, flat, results, written)
    if graph.out_spec is None:
        return results[0] if len(results) == 1 else tuple(results)
    return pytree.tree_unflatten(results, graph.out_spec)


def write_back(
    graph: ir.Graph, flat: Sequence[Any], results: Sequence[Any], written: Sequence[Any]
) -> list[Any]:
    """Give constants and inputs the values that the graph writes to them.

    Returns the results; those that lie in memory written over are copies of what it held before.
    """
    if not graph.writebacks:
        return list(results)
    targets: list[Any] = [
        target.tensor if isinstance(target, ir.Constant) else flat[graph.inputs.index(target)]
        for target in graph.writebacks
    ]
    storages = {tensor.untyped_storage().data_ptr() for tensor in targets}

    def apart(value: Any) -> Any:
        shares = isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() in storages
        return value.clone() if shares else value

    with torch.no_grad():
        kept, values = [apart(v) for v in results], [apart(v) for v in written]
        for tensor, value in zip(targets, values, strict=True):
            tensor.copy_(value)
    return kept


def run_flat(
    graph: ir.Graph, flat: Sequence[Any], *, dtype: torch.dtype | None = None, observe: Observer | None = None
) -> tuple[list[Any], list[Any]]:
    """Run on flat inputs; returns (results, written-back values). `observe` sees each node with operands and results."""
    env: dict[str, int] = {}
    values: dict[ir.Value, Any] = {}
    for value, given in zip(graph.inputs, flat, strict=True):
        values[value] = _cast(given, dtype)
        bind_dims(value, given, env)
    with torch.no_grad():
        for constant in graph.constants.values():
            if constant.tensor is None:
                raise CaptureError(f"the constant @{constant.name} has no value", hint="graph.bind(state_dict)")
            values[constant] = _cast(constant.tensor, dtype)
        return _run(graph, values, env, dtype, observe)


def _run(
    graph: ir.Graph,
    values: dict[ir.Value, Any],
    env: dict[str, int],
    dtype: torch.dtype | None,
    observe: Observer | None,
) -> tuple[list[Any], list[Any]]:
    last_use = _last_uses(graph)
    leaf = _leaf(values, env, dtype)
    for node in graph.nodes:
        args = [ir.map_operand(v, leaf) for v in node.operands]
        kwargs = {k: ir.map_operand(v, leaf) for k, v in node.kwargs.items()}
        results = _call(node, args, kwargs, env, dtype)
        for value, result in zip(node.results, results, strict=True):
            values[value] = result
            bind_dims(value, result, env)
        if observe is not None:
            observe(node, args, results)
        for dead in last_use.get(node, ()):
            values.pop(dead, None)
    return [leaf(v) for v in graph.results], [values[v] for v in graph.writebacks.values()]


def _leaf(values: dict[ir.Value, Any], env: dict[str, int], dtype: torch.dtype | None) -> Callable[[Any], Any]:
    def leaf(operand: Any) -> Any:
        if isinstance(operand, ir.Value):
            return values[operand]
        if isinstance(operand, sympy.Expr):
            return dims.evaluate(operand, env)
        if dtype is not None and isinstance(operand, torch.dtype) and operand.is_floating_point:
            return dtype
        return operand

    return leaf


def _call(node: ir.Node, args: list[Any], kwargs: dict[str, Any], env: dict[str, int], dtype: Any) -> list[Any]:
    if isinstance(node.op, Fusion):
        assert node.region is not None
        return _run_region(node.region, args, env, dtype)
    if node.regions:

        def branch(region: ir.Graph) -> Callable[..., Any]:
            return lambda *flat: tuple(_run_region(region, pytree.tree_leaves(flat), env, dtype))

        args = [branch(node.regions[a.index]) if isinstance(a, ir.RegionRef) else a for a in args]
    try:
        results = node.op(*args, **kwargs)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise CaptureError(f"{op_name(node.op)} failed", where=str(node.origin) or None, why=str(error)) from error
    return pytree.tree_leaves(results, is_leaf=lambda v: v is None) if node.results else []


def _run_region(region: ir.Graph, flat: Sequence[Any], env: dict[str, int], dtype: torch.dtype | None) -> list[Any]:
    values: dict[ir.Value, Any] = dict(zip(region.inputs, flat, strict=True))
    values.update({c: _cast(c.tensor, dtype) for c in region.constants.values()})
    return _run(region, values, env, dtype, None)[0]


def bind_dims(value: ir.Value, given: Any, env: dict[str, int]) -> None:
    """Learn dims from a value: a bare name in its shape, or a name scaled and shifted by integers."""
    if isinstance(value.type, TensorType) and isinstance(given, torch.Tensor):
        for dim, size in zip(value.type.shape, given.shape, strict=False):
            solve_dim(dim, size, env)
    elif isinstance(value.type, ScalarType) and value.type.expr is not None:
        solve_dim(value.type.expr, given, env)


def solve_dim(dim: dims.Dim, size: int, env: dict[str, int]) -> None:
    """Add the dim's only unknown name to `env`, where `dim` is linear in it with a solution in integers."""
    if isinstance(dim, sympy.Symbol):
        env.setdefault(dim.name, int(size))
        return
    unknown = [s for s in getattr(dim, "free_symbols", ()) if s.name not in env]
    if len(unknown) != 1 or not isinstance(dim, sympy.Expr):
        return
    rest = dim.xreplace({s: sympy.Integer(env[s.name]) for s in dim.free_symbols if s.name in env})
    if (slope := rest.diff(unknown[0])).is_Integer and slope != 0:
        solved = (sympy.Integer(int(size)) - rest.subs(unknown[0], 0)) / slope
        if solved.is_Integer:
            env.setdefault(unknown[0].name, int(solved))


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    if dtype is not None and isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


def _last_uses(graph: ir.Graph) -> dict[ir.Node, list[ir.Value]]:
    """For each node, the values that nobody takes after it."""

    def make() -> dict[ir.Node, list[ir.Value]]:
        kept = set(graph.result_values)
        last: dict[ir.Value, ir.Node] = {}
        for node in graph.nodes:
            for value in (*node.operand_values, *node.results):
                last[value] = node
        found: dict[ir.Node, list[ir.Value]] = {}
        for value, node in last.items():
            if value not in kept:
                found.setdefault(node, []).append(value)
        return found

    uses: dict[ir.Node, list[ir.Value]] = graph.analysis("last_uses", make)
    return uses


__all__ = ["LiteralType", "bind_dims", "flatten_inputs", "run", "run_flat", "solve_dim", "write_back"]
