"""A graph that grows by one drawn op at a time: what tests/random_ops.py draws with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from capture.ir import CapturedOp, Constant, Graph, Origin, Range, TensorType, Value, op_name, symbol

aten = torch.ops.aten

LIMIT = 64.0  # bound of every value's magnitude; what would pass it is fed tanh of its operand
SIZES = (1, 2, 3, 5, 7, 8)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Keep = Callable[[TensorType], bool]


def random_tensor(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Normal numbers cut off at 3; integers and booleans likewise."""
    numbers = torch.randn(tuple(shape), generator=generator, dtype=torch.float64).clamp(-3, 3)
    if dtype is torch.bool:
        return numbers > 0
    return numbers.round().to(dtype) if not dtype.is_floating_point else numbers.to(dtype)


def anything(type: TensorType) -> bool:
    return True


def is_float(type: TensorType) -> bool:
    return type.dtype.is_floating_point


def is_number(type: TensorType) -> bool:
    return type.dtype is not torch.bool


def is_filled(type: TensorType) -> bool:
    return all(d != 0 for d in type.shape)


def has_axis(type: TensorType) -> bool:
    return type.rank >= 1


class Builder:
    """Knows the values so far, a bound of each one's magnitude, and how to draw."""

    def __init__(self, draw: st.DrawFn, dtype: torch.dtype, seed: int, dynamic: bool) -> None:
        self.draw = draw
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(seed)
        self.graph = Graph()
        self.bounds: dict[Value, float] = {}
        rank = draw(st.sampled_from([2, 4, 3, 1, 5]))
        # An empty batch is legal everywhere; other empty sizes come from slicing.
        batch: Any = draw(st.sampled_from([2, 1, 3, 7, 0]))
        if dynamic:
            self.graph.dims["N"] = Range(1, 64)
            batch = symbol("N")
        small = (1, 2, 3, 5) if rank == 5 else SIZES
        self.input([batch, *(draw(st.sampled_from(small)) for _ in range(rank - 1))], dtype)

    def one_of(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def flip(self) -> bool:
        return self.draw(st.booleans())

    def axis(self, type: TensorType) -> int:
        """An axis, counted from either end."""
        axis = self.one_of(range(type.rank))
        return axis - type.rank if self.flip() else axis

    # -- values

    def input(self, shape: Sequence[Any], dtype: torch.dtype) -> Value:
        name = f"x{len(self.graph.inputs)}"
        return self._bounded(self.graph.add_input(name, TensorType(dtype, tuple(shape))), 3.0)

    def constant(
        self, stem: str, shape: Sequence[int], dtype: torch.dtype, *, scale: float = 1.0, low: float = -3.0
    ) -> Constant:
        """A random constant with elements in [low, 3] * scale."""
        tensor = random_tensor(shape, dtype, self.generator)
        if dtype.is_floating_point:
            tensor = tensor.clamp(min=low) * scale
        name = f"m{len(self.graph.nodes)}.{stem}"
        return self._bounded(self.graph.add_constant(name, tensor), 3.0 * scale)

    def _bounded(self, value: Any, bound: float) -> Any:
        self.bounds[value] = bound
        return value

    def values(self, keep: Keep = anything) -> list[Value]:
        """Inputs and results so far that suit, newest first."""
        found = [*self.graph.inputs, *(v for n in self.graph.nodes for v in n.results if v in self.bounds)]
        return [v for v in reversed(found) if keep(v.tensor_type)]

    def pick(self, keep: Keep = anything, growth: float = 1.0) -> Value | None:
        """A value that suits and may grow by `growth` (made small by tanh where it may not)."""
        found = self.values(keep)
        if not found:
            return None
        value: Value = self.one_of(found)
        if self.bounds[value] * growth > LIMIT:
            squash = aten.tanh.default if is_float(value.tensor_type) else aten.sign.default
            value = self.add(squash, [value], bound=1.0)
        return value if self.bounds[value] * growth <= LIMIT else None

    # -- nodes

    def add(
        self, op: Any, operands: Sequence[Any], kwargs: Any = None, *, bound: float, module: str = ""
    ) -> Value:
        """Append a node with its row of the ledger; returns its first result."""
        number = len(self.graph.captured)
        module = module or f"m{len(self.graph.nodes)}"
        row = CapturedOp(number, op_name(op), module, "model.py", 10 + number)
        self.graph.captured[number] = row
        node = self.graph.add_node(op, operands, kwargs, origin=Origin.of(row))
        return self._bounded(node.results[0], bound)

    def finish(self) -> Graph:
        """Return the last value and a few more; what they do not need stays as dead code."""
        found = self.values()
        more = self.draw(st.lists(st.sampled_from(found), max_size=2))
        self.graph.set_results([found[0], *more])
        return self.graph
