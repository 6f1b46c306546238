"""What one kernel stands for: a lone node or those of a fusion, with names for what it reads and writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sympy

from capture.errors import UnsupportedOpError
from capture.ir import Constant, Node, TensorType, Value, op_name
from codegen.python.ops import call_text
from codegen.python.spelling import identifier, literal

_RESERVED = {"out", "n", "index", "mask", "start", "row", "column", "rows", "columns", "F", "aten", "torch",
             "tl", "triton", "device", "found", "inputs", "step", "chunk", "part", "float"}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """Nodes in order, and the values that go in and out.

    Attributes:
        inputs, results: values as the nodes have them; `outer` are the operands that the inputs stand for.
        names: of inputs and of all that the nodes make.
    """

    node: Node
    inputs: list[Value]
    outer: list[Value]
    nodes: list[Node]
    results: list[Value]
    names: dict[Value, str] = field(default_factory=dict)

    @staticmethod
    def of(node: Node) -> Piece:
        """The piece of a fusion, or of a lone node.

        Raises:
            UnsupportedOpError: it reads or makes something other than tensors, or tensors on several devices.
        """
        if node.region is not None:
            region = node.region
            results = [v for v in region.results if isinstance(v, Value)]
            piece = Piece(node, list(region.inputs), node.operand_values, list(region.nodes), results)
        else:
            inputs = list(dict.fromkeys(node.operand_values))
            piece = Piece(node, inputs, inputs, [node], list(node.results))
        piece._check()
        piece._name()
        return piece

    def _check(self) -> None:
        values = [*self.inputs, *self.results]
        if (
            not self.inputs
            or len(self.outer) != len(self.inputs)
            or len(set(self.results)) != len(self.results)
        ):
            raise self.unsupported("it reads no tensor, or returns one twice")
        if len(self.results) != len(self.node.results) or not set(self.results).isdisjoint(self.inputs):
            raise self.unsupported("it hands an operand on")
        if not all(isinstance(v.type, TensorType) for v in values):
            raise self.unsupported("not all that it reads and makes are tensors")
        if len({v.tensor_type.device for v in values}) > 1:
            raise self.unsupported("its tensors lie on several devices")

    def _name(self) -> None:
        taken = set(_RESERVED)
        for inner, outer in zip(self.inputs, self.outer, strict=True):
            base = identifier(outer.name.rpartition(".")[2]) if isinstance(outer, Constant) else "x"
            base = f"{base}_" if base in _RESERVED else base
            name, count = base, 1
            while name in taken:
                name, count = f"{base}{count}", count + 1
            taken.add(name)
            self.names[inner] = name
        for number, value in enumerate(v for node in self.nodes for v in node.results):
            self.names[value] = f"v{number}" if f"v{number}" not in taken else f"v{number}_"

    @property
    def parameters(self) -> list[str]:
        return [self.names[v] for v in self.inputs]

    def unsupported(self, why: str) -> UnsupportedOpError:
        return UnsupportedOpError(
            f"{op_name(self.node.op)} has no kernel here", where=str(self.node.origin) or None, why=why
        )

    @property
    def ops(self) -> str:
        """``mul, add, softmax``"""
        return ", ".join(op_name(n.op).split(".")[1] for n in self.nodes)

    def stands_for(self) -> str:
        """``encoder.layer.3 (models/bert.py:71): mul, add, softmax``"""
        return f"{self.node.origin or 'graph'}: {self.ops}"

    def reference(self) -> str:
        """The function in plain PyTorch."""
        lines = [f"def reference({', '.join(self.parameters)}):", '    """The same in plain PyTorch."""']
        for node in self.nodes:
            left = ", ".join(self.names[v] for v in node.results)
            lines.append(f"    {left} = {self._call(node)}")
        lines.append(f"    return {', '.join(self.names[v] for v in self.results)}")
        return "\n".join(lines)

    def _call(self, node: Node) -> str:
        operands: list[Any] = list(node.operands)
        texts = [self._text(v) for v in operands]
        if op_name(node.op) in ("aten.layer_norm", "aten.rms_norm"):
            texts[1] = f"{texts[0]}.shape[-{len(operands[1])}:]"
        return call_text(node.op, texts + [f"{k}={self._text(v)}" for k, v in node.kwargs.items()])

    def _text(self, operand: Any) -> str:
        if isinstance(operand, Value):
            return self.names[operand]
        if isinstance(operand, (list, tuple)):
            return f"[{', '.join(map(self._text, operand))}]"
        if isinstance(operand, sympy.Expr):
            raise self.unsupported("a size is one of its numbers")
        return literal(operand)


__all__ = ["Piece"]
