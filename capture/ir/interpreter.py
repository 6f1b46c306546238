"""The reference interpreter: call the ops in order.

The judge of every rewrite, in the graph's own dtypes or in fp64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch._C import _DisableAutocast
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.ir import dims
from capture.ir import graph as ir
from capture.ir.arguments import flatten_inputs
from capture.ir.binding import bind_dims, bind_inputs, solve_dim
from capture.ir.memory import check_layouts, check_separate
from capture.ir.ops import Fusion, is_predicate, op_name
from capture.ir.quantized import call_wide, wide_form

Observer = Callable[[ir.Node, Sequence[Any], Sequence[Any]], None]


def run(graph: ir.Graph, args: Sequence[Any], kwargs: Any, *, dtype: torch.dtype | None = None) -> Any:
    """Run the graph on the arguments that the captured callable took.

    Args:
        dtype: where given, every floating tensor is computed in it (fp64 for a reference).

    Raises:
        GuardError: the arguments do not fit the graph's inputs, share memory with what it writes to, or are
            written to and lie in memory in another way than those captured.
    """
    flat = flatten_inputs(graph, args, kwargs)
    check_separate(graph, flat)
    check_layouts(graph, flat)
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
    """Run on flat inputs; returns (results, written-back values), and writes nothing back.

    Args:
        dtype: where given, every floating value is computed in it.
        observe: called after each node with the node, its operands and its results.

    Raises:
        GuardError: the inputs do not fit.
        CaptureError: a constant is unbound, or an operator failed.
    """
    env = bind_inputs(graph, flat, any_float=dtype is not None)
    values = dict(zip(graph.inputs, (_cast(given, dtype) for given in flat), strict=True))
    with torch.no_grad(), _DisableAutocast():
        return _Run(graph, values, env, dtype).run(observe)


class _Run:
    """One run of a graph or region. Values are let go after their last use, constants cast at their first."""

    def __init__(
        self, graph: ir.Graph, values: dict[ir.Value, Any], env: dict[str, int], dtype: torch.dtype | None
    ) -> None:
        unbound = [c.name for c in graph.constants.values() if c.tensor is None]
        if unbound:
            raise CaptureError(f"the constant @{unbound[0]} has no value", hint="graph.bind(state_dict)")
        self.graph = graph
        self.values = values
        self.env = env
        self.dtype = dtype

    def run(self, observe: Observer | None = None) -> tuple[list[Any], list[Any]]:
        last_use = _last_uses(self.graph)
        for node in self.graph.nodes:
            self.step(node, observe)
            for dead in last_use.get(node, ()):
                self.values.pop(dead, None)
        results = [self.leaf(v) for v in self.graph.results]
        return results, [self.leaf(v) for v in self.graph.writebacks.values()]

    def step(self, node: ir.Node, observe: Observer | None) -> None:
        try:
            args = [ir.map_operand(v, self.leaf) for v in node.operands]
            kwargs = {k: ir.map_operand(v, self.leaf) for k, v in node.kwargs.items()}
            results = self.call(node, args, kwargs)
        except (RuntimeError, TypeError, LookupError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise CaptureError(f"{op_name(node.op)} failed", where=node.where, why=why) from error
        if len(results) != len(node.results):
            raise CaptureError(
                f"{op_name(node.op)} returned {len(results)} values, not {len(node.results)}",
                where=node.where,
            )
        for value, result in zip(node.results, results, strict=True):
            self.values[value] = result
            bind_dims(value, result, self.env)
        if observe is not None:
            observe(node, args, results)

    def leaf(self, operand: Any) -> Any:
        """What an operand is in this run."""
        if isinstance(operand, ir.Constant) and operand not in self.values:
            self.values[operand] = _cast(operand.tensor, self.dtype)
        if isinstance(operand, ir.Value):
            return self.values[operand]
        if isinstance(operand, sympy.Expr):
            return dims.evaluate(operand, self.env)
        return _cast(operand, self.dtype) if isinstance(operand, torch.dtype) else operand

    def call(self, node: ir.Node, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        if isinstance(node.op, Fusion):
            assert node.region is not None
            return self.region(node.region, args)
        if node.regions:
            args = [self.branch(node, a.index) if isinstance(a, ir.RegionRef) else a for a in args]
        if self.dtype is not None and wide_form(node.op) is not None:
            return [call_wide(node.op, args, kwargs, self.dtype)]
        results = node.op(*args, **kwargs)
        return pytree.tree_leaves(results, is_leaf=lambda v: v is None) if node.results else []

    def branch(self, node: ir.Node, index: int) -> Callable[..., Any]:
        """A region as the function that a higher-order op wants."""

        def call(*operands: Any) -> Any:
            results = self.region(node.regions[index], pytree.tree_leaves(operands))
            return results[0] if is_predicate(node.op, index) else tuple(results)

        return call

    def region(self, region: ir.Graph, args: Sequence[Any]) -> list[Any]:
        values = dict(zip(region.inputs, args, strict=True))
        return _Run(region, values, dict(self.env), self.dtype).run()[0]


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(value, torch.dtype):
        return _in_place_of(value, dtype)
    return value.to(_in_place_of(value.dtype, dtype)) if isinstance(value, torch.Tensor) else value


def _in_place_of(dtype: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """The dtype that a run in `wanted` has where the graph says `dtype`: integers stay what they are."""
    if wanted is None or not (dtype.is_floating_point or dtype.is_complex):
        return dtype
    return wanted.to_complex() if dtype.is_complex else wanted


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


__all__ = ["bind_dims", "flatten_inputs", "run", "run_flat", "solve_dim", "write_back"]
