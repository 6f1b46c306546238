"""Runs a graph inside the memory that its plan gives it, and spoils each buffer when the plan frees it.

A plan that frees too early, lets two buffers overlap, or writes over an operand that is still read, gives
wrong numbers here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch

from capture.ir import Fusion, Graph, Node, Value, dims
from capture.ir.graph import map_operand
from capture.ir.interpreter import bind_dims, run_flat
from passes.aliases import may_share
from passes.destinations import in_place_form, out_form
from passes.memory import MemoryPlan

GARBAGE = 0x7F  # as a float32: a huge number; as an int8: 127


class ArenaMachine:
    def __init__(self, graph: Graph, plan: MemoryPlan) -> None:
        plan.check(graph)
        self.graph, self.plan = graph, plan
        self.arena = torch.full((plan.arena_bytes,), GARBAGE, dtype=torch.uint8)
        self.values: dict[Value, Any] = {}
        self.env: dict[str, int] = {}
        buffers = self._buffers()
        self.size = {v: b.size for v, b in buffers.items()}
        self.first = set({id(b): v for v, b in reversed(buffers.items())}.values())

    def _buffers(self) -> dict[Value, Any]:
        from capture.ir.text import names

        by_name = {name: b for b in self.plan.buffers for name in b.values}
        return {v: by_name[name] for v, name in names(self.graph).items() if name in by_name}

    def run(self, args: Sequence[torch.Tensor]) -> list[Any]:
        """The graph's results, then what it writes back; no target is written."""
        for value, given in zip(self.graph.inputs, args, strict=True):
            self.values[value] = given
            bind_dims(value, given, self.env)
        self.values.update({c: c.tensor for c in self.graph.constants.values()})
        for step, node in enumerate(self.graph.nodes):
            self._node(node)
            for buffer in self.plan.buffers:
                if buffer.end == step + 1 and step + 1 < len(self.plan.steps):
                    self.arena[buffer.offset : buffer.offset + buffer.size] = GARBAGE
        return [self._leaf(v) for v in (*self.graph.results, *self.graph.writebacks.values())]

    def _leaf(self, operand: Any) -> Any:
        if isinstance(operand, Value):
            return self.values[operand]
        return dims.evaluate(operand, self.env) if isinstance(operand, sympy.Expr) else operand

    def _node(self, node: Node) -> None:
        args = [map_operand(v, self._leaf) for v in node.operands]
        kwargs = {k: map_operand(v, self._leaf) for k, v in node.kwargs.items()}
        over = self.plan.in_place.get(node.results[0]) if node.results else None
        if over is not None and not isinstance(node.op, Fusion):
            results = [self._write_over(node, args, kwargs, self.values[over])]
        else:
            results = self._call(node, args, kwargs)
        for value, result in zip(node.results, results, strict=True):
            self.values[value] = self._settle(value, result)
            bind_dims(value, result, self.env)

    def _write_over(
        self, node: Node, args: list[Any], kwargs: dict[str, Any], operand: torch.Tensor
    ) -> torch.Tensor:
        form = out_form(node.op)
        if form is not None:
            return form.overload(*args, *form.extra, **kwargs, **{form.out: operand})
        assert args[0] is operand
        return in_place_form(node.op)(*args, **kwargs)

    def _call(self, node: Node, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        if isinstance(node.op, Fusion):
            return run_flat(node.region, args)[0]
        if node.regions:
            branch = node.regions[0 if bool(args[0]) else 1]
            return run_flat(branch, args[3])[0]
        results = node.op(*args, **kwargs)
        return list(results) if isinstance(results, (list, tuple)) else [results]

    def _settle(self, value: Value, result: Any) -> Any:
        """Put a fresh result where the plan says; what lies in the arena or outside the plan stays.

        A copy by what is planned as a view (reshape, of other strides) may not lie on its own base.
        """
        if value not in self.plan.offsets or not isinstance(result, torch.Tensor):
            return result
        op = value.producer.op
        if value not in self.first and not isinstance(op, Fusion) and may_share(op):
            return result
        storage = result.untyped_storage()
        if storage.data_ptr() == self.arena.untyped_storage().data_ptr() and storage.nbytes():
            return result
        offset, size = self.plan.offsets[value], self.size[value]
        slot = self.arena[offset : offset + size].view(result.dtype)
        if storage.nbytes() > size:  # some kernels return a view of more than the result
            result = result.clone()
        assert result.untyped_storage().nbytes() <= size
        placed = slot.as_strided(
            result.shape, result.stride(), slot.storage_offset() + result.storage_offset()
        )
        return placed.copy_(result)
