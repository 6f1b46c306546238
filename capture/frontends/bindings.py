"""What a graph starts from: constants that share memory with the model, and inputs that capture baked in."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from capture.errors import CaptureError
from capture.ir import Constant, Graph, LiteralType, TensorType
from capture.ir.memory import identity
from capture.ir.text import format_literal

__all__ = ["Constants", "add_literal_input"]


def add_literal_input(graph: Graph, name: str, value: Any) -> None:
    """An input that is no tensor: the graph holds for this value only.

    Raises:
        CaptureError: a graph cannot hold such a value.
    """
    try:
        format_literal(value)
    except TypeError as error:
        raise CaptureError(
            f"the input {name} is a {type(value).__name__}",
            why="A graph is made for tensors, and for numbers, strings and dtypes that do not change.",
            hint="tensors, in tuples, lists and dicts as needed",
        ) from error
    graph.add_input(name, LiteralType(value))


class Constants:
    """The constants of a graph. A tensor with two paths (tied weights) is one constant, under the first."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._known: dict[Any, Constant] = {}

    def add(self, name: str, tensor: torch.Tensor, type: TensorType) -> Constant:
        """The constant of that tensor; bound, unless the tensor is fake."""
        key = identity(tensor)
        if key not in self._known:
            fake = isinstance(tensor, FakeTensor) or tensor.is_meta
            self._known[key] = self.graph.add_constant(name, type if fake else tensor)
        return self._known[key]

    def drop_unused(self) -> None:
        for name, constant in list(self.graph.constants.items()):
            if not constant.num_uses and constant not in self.graph.writebacks:
                self.graph.erase_constant(name)
