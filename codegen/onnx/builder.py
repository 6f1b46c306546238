"""What lowerings are written in: ``op.Relu(x)`` adds a node, named after the module that it comes from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as oir
import sympy
import torch
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype

from capture.errors import UnsupportedOpError
from capture.ir import dims
from capture.ir.graph import Constant, Node, Value
from capture.ir.ops import op_name
from capture.ir.types import ScalarType, TensorType, ValueType
from codegen.onnx.sizes import SizeTable, Source

HINT = "codegen.onnx.register_lowering(op, fn)"
SCALAR_DTYPES = {"int": torch.int64, "float": torch.float64, "bool": torch.bool}


class Scope:
    """An ONNX graph under construction: the main one, or a branch of an If. Inner scopes see outer ones."""

    def __init__(self, parent: Scope | None = None) -> None:
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.nodes: list[oir.Node] = []
        self.dims: dict[str, Source] = {}
        self.shared: dict[Any, oir.Value] = {}

    def outwards(self) -> Iterator[Scope]:
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent


class Builder:
    """Adds ONNX nodes for one node of the graph at a time. Lowerings know it as `op`.

    ``op.Name(*inputs, outputs=1, **attributes)`` adds a node of the standard domain. An input is a
    `capture.ir.Value`, the output of an earlier call, a list of sizes (an int64 vector) or None (left out).
    """

    def __init__(self, opset: int, keep_nan: bool = False) -> None:
        self.opset = opset
        self.keep_nan = keep_nan  # where that costs much
        self.domains: dict[str, int] = {}
        self.initializers: dict[str, oir.Value] = {}
        self.constants: dict[str, Constant] = {}  # those among the initializers that are the graph's
        self.scope = Scope()
        self.sizes = SizeTable(self)
        self.env: dict[Value, oir.Value] = {}
        self._node: Node | None = None
        self._path = ""
        self._taken: dict[str, int] = {}
        self._constants: dict[Any, oir.Value] = {}

    # -- for lowerings -----------------------------------------------------------------------------------

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return functools.partial(self.call, op_type)

    def call(self, op_type: str, *inputs: Any, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add an ONNX node; returns its output, or a tuple of them where `outputs` is not 1."""
        if domain:
            self.domains[domain] = 1
        values = [self.value(v) for v in inputs]
        while values and values[-1] is None:
            values.pop()
        name = self.unique("/".join(filter(None, (self._path, op_type))))
        made = [oir.Value(name=name if i == 0 else self.unique(f"{name}:{i}")) for i in range(outputs)]
        given = {k: _attribute(v) for k, v in attributes.items() if v is not None}
        node = oir.Node(
            domain, op_type, values, oir.convenience.convert_attributes(given), outputs=made, name=name,
            metadata_props=self._metadata(),
        )  # fmt: skip
        self.scope.nodes.append(node)
        return made[0] if outputs == 1 else tuple(made)

    def cast(self, operand: Any, dtype: torch.dtype) -> oir.Value:
        """A tensor of that dtype from a tensor, or, of shape [], from a number, a size, a computed scalar."""
        if isinstance(operand, (bool, int, float)):
            return self.const(operand, dtype)
        if isinstance(operand, sympy.Expr):
            return self.sizes.scalar(operand, from_torch_dtype(dtype))
        value = self.value(operand)
        if value.dtype == from_torch_dtype(dtype):
            return value
        made = self.call("Cast", value, to=dtype)
        made.dtype = from_torch_dtype(dtype)
        return made

    def const(self, data: Any, dtype: torch.dtype = torch.int64) -> oir.Value:
        """A constant from a number, nested lists of numbers or a tensor; equal small ones are shared."""
        tensor = data.to(dtype) if isinstance(data, torch.Tensor) else torch.tensor(data, dtype=dtype)
        numbers = tensor.flatten().tolist() if tensor.numel() <= 16 else None
        key = (dtype, tuple(tensor.shape), str(numbers))  # as text: -0.0 is not 0.0, and nan is nan
        if numbers is None or key not in self._constants:
            shown = list(tensor.shape) if numbers is None else numbers if tensor.dim() else numbers[0]
            name = self.unique(f"{str(dtype).removeprefix('torch.')} {shown}")
            made = self._initializer(name, tensor, TensorType(dtype, tuple(tensor.shape)))
            if numbers is None:
                return made
            self._constants[key] = made
        return self._constants[key]

    def vector(self, sizes: Sequence[dims.Dim | Value]) -> oir.Value:
        """An int64 vector of ints, symbolic sizes and computed integers."""
        if all(isinstance(s, int) for s in sizes):
            return self.const(list(sizes))
        parts: list[oir.Value] = []
        run: list[int] = []
        for size in (*sizes, None):  # ints that stand side by side are one constant
            if isinstance(size, int):
                run.append(size)
                continue
            if run:
                parts.append(self.const(run))
                run = []
            if isinstance(size, Value):
                parts.append(self.Reshape(self.cast(size, torch.int64), [1]))
            elif size is not None:
                parts.append(self.sizes.vector(size))
        return parts[0] if len(parts) == 1 else self.sizes.shared("Concat", *parts, axis=0)

    @property
    def results(self) -> list[TensorType]:
        """Types of the results to be produced."""
        return [v.type for v in self.node.results]  # type: ignore[misc]

    @property
    def result(self) -> TensorType:
        """Type of the first result."""
        return self.results[0]

    @property
    def node(self) -> Node:
        """The graph's node being lowered."""
        assert self._node is not None
        return self._node

    @property
    def where(self) -> str | None:
        """The user's line and module path of the node being lowered."""
        return str(self._node.origin) or None if self._node is not None else None

    def unsupported(self, why: str) -> UnsupportedOpError:
        """The error to raise for a case that has no ONNX form."""
        return UnsupportedOpError(
            f"no ONNX lowering for {op_name(self.node.op)}", where=self.where, why=why, hint=HINT
        )

    # -- for the skeleton --------------------------------------------------------------------------------

    def value(self, operand: Any) -> oir.Value | None:
        """The ONNX value of an input of a call."""
        if operand is None or isinstance(operand, oir.Value):
            return operand
        if isinstance(operand, Constant) and operand not in self.env:
            self.env[operand] = self._constant(operand)
        if isinstance(operand, Value):
            if operand not in self.env:
                raise self._not_made(operand)
            return self.env[operand]
        if isinstance(operand, (list, tuple)):
            return self.vector(operand)
        raise TypeError(
            f"{operand!r} cannot be an input of an ONNX node: op.cast(number, dtype) makes it one"
        )

    def declare(self, name: str, type: ValueType) -> oir.Value:
        """A typed value without a producer."""
        value = oir.Value(name=self.unique(name))
        self.annotate(value, type)
        return value

    def annotate(self, value: oir.Value, type: ValueType) -> None:
        """Write the graph's type, with named dims, onto an ONNX value."""
        if isinstance(type, TensorType):
            if type.dtype.is_complex:
                raise UnsupportedOpError(
                    "complex tensors have no ONNX form",
                    where=self.where,
                    hint="compute with real and imaginary parts",
                )
            value.dtype = from_torch_dtype(type.dtype)
            value.shape = oir.Shape([d if isinstance(d, int) else dims.format_dim(d) for d in type.shape])
        elif isinstance(type, ScalarType) and type.kind in SCALAR_DTYPES:
            value.dtype = from_torch_dtype(SCALAR_DTYPES[type.kind])
            value.shape = oir.Shape([])

    def unique(self, name: str) -> str:
        """The name, or with a number behind it where it is taken."""
        made, n = name, self._taken.get(name, 0)
        while made in self._taken:
            n += 1
            made = f"{name}_{n}"
        self._taken[name] = n
        self._taken.setdefault(made, 0)
        return made

    @contextmanager
    def at(self, node: Node) -> Iterator[None]:
        """Nodes made inside stand for `node`: they bear its module path."""
        before = self._node, self._path
        self._node, self._path = node, next(iter(node.origin.modules), "")
        try:
            yield
        finally:
            self._node, self._path = before

    @contextmanager
    def named(self, path: str) -> Iterator[None]:
        before, self._path = self._path, path
        try:
            yield
        finally:
            self._path = before

    @contextmanager
    def within(self, scope: Scope) -> Iterator[None]:
        """Nodes made inside go to `scope`."""
        before, self.scope = self.scope, scope
        try:
            yield
        finally:
            self.scope = before

    def _not_made(self, value: Value) -> UnsupportedOpError:
        """A lowering may leave out results that it cannot make; this one is wanted."""
        assert value.producer is not None
        what = f"the ONNX lowering of {op_name(value.producer.op)} does not make its result {value.index}"
        return UnsupportedOpError(what, where=str(value.producer.origin) or None, hint=HINT)

    def _constant(self, constant: Constant) -> oir.Value:
        name = self.unique(constant.name)
        self.constants[name] = constant
        return self._initializer(name, constant.tensor, constant.tensor_type)

    def _initializer(self, name: str, tensor: torch.Tensor | None, type: TensorType) -> oir.Value:
        value = oir.Value(name=name)
        self.annotate(value, type)
        value.const_value = None if tensor is None else TorchTensor(tensor.detach(), name=name)
        self.initializers[name] = value
        return value

    def _metadata(self) -> dict[str, str]:
        """What tools may show beside a node: the modules and source lines that it stands for."""
        if self._node is None:
            return {}
        origin = self._node.origin
        lines = ", ".join(f"{file}:{line}" for file, line in origin.locations)
        return {k: v for k, v in (("module", ", ".join(origin.modules)), ("source", lines)) if v}


def _attribute(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        value = from_torch_dtype(value)
    if isinstance(value, oir.DataType):
        return value.value
    if isinstance(value, torch.Tensor):
        return TorchTensor(value)
    return value
