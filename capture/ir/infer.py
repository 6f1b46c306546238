"""Type inference: a fake call of the op, with the graph's symbolic sizes as SymInts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.ir import dims, graph as ir
from capture.ir.ops import Fusion, op_name
from capture.ir.types import (
    CONTIGUOUS,
    STRIDED,
    TORCH_FORMATS,
    LiteralType,
    Range,
    ScalarType,
    TensorType,
    ValueType,
    format_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_HINTS = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41)  # unlike each other, and unlike usual channel counts


class FakeContext:
    """A fake mode in which a graph's dims are SymInts, and the two-way map between the two."""

    def __init__(self, ranges: Mapping[str, Range]) -> None:
        self.shape_env = ShapeEnv()
        # The mode of an enclosing torch.compile must not answer our calls.
        self.mode = FakeTensorMode(shape_env=self.shape_env, allow_non_fake_inputs=True)
        self._symints: dict[str, Any] = {}
        self._names: dict[sympy.Symbol, sympy.Symbol] = {}
        for i, (name, bounds) in enumerate(ranges.items()):
            self._add(name, bounds, _HINTS[i % len(_HINTS)] + i // len(_HINTS))

    def _add(self, name: str, bounds: Range, hint: int) -> None:
        from torch._dynamo.source import ConstantSource

        upper = bounds.upper
        hint = max(bounds.lower, hint if upper is None else min(hint, upper))
        source = ConstantSource(f"dim_{name}")
        made = self.shape_env.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC, do_not_specialize_zero_one=True)
        if isinstance(made, sympy.Symbol):
            self._names[made] = dims.symbol(name)
        self._symints[name] = self.shape_env.create_symintnode(made, hint=hint, source=source)

    def _symint(self, s: sympy.Symbol) -> Any:
        if s.name not in self._symints:  # a data-dependent size has no declared range
            self._add(s.name, Range(0), _HINTS[len(self._symints) % len(_HINTS)])
        return self._symints[s.name]

    def size(self, dim: dims.Dim) -> Any:
        """A size as an int or a SymInt."""
        return dims.fold(
            dim,
            self._symint,
            minimum=lambda a, b: torch.sym_min(a, b),
            maximum=lambda a, b: torch.sym_max(a, b),
        )

    def dim(self, size: Any) -> dims.Dim:
        """A size that a fake call gave, in the graph's own dims."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        expr = size.node.expr
        for s in expr.free_symbols - set(self._names):
            self._names[s] = dims.symbol(s.name)
        return dims.normalise(expr.xreplace(self._names))

    def tensor(self, type: TensorType) -> torch.Tensor:
        """A fake tensor of that type."""
        shape = [self.size(d) for d in type.shape]
        format_ = TORCH_FORMATS.get(type.memory_format, torch.contiguous_format)
        with self.mode:
            return torch.empty(shape, dtype=type.dtype, device=type.device, memory_format=format_)

    def operand(self, operand: Any, values: Mapping[Any, Any] | None = None) -> Any:
        """A node's operand as the fake call wants it."""
        if isinstance(operand, ir.Value):
            if values is not None and operand in values:
                return values[operand]
            return self.value(operand.type)
        if isinstance(operand, sympy.Expr):
            return self.size(operand)
        return operand

    def value(self, type: ValueType) -> Any:
        if isinstance(type, TensorType):
            return self.tensor(type)
        if isinstance(type, LiteralType):
            return type.value
        if type.expr is not None:
            return self.size(type.expr)
        return {"int": 2, "float": 0.5, "bool": True, "none": None}[type.kind]

    def type(self, result: Any) -> ValueType:
        """The type of what a fake call returned."""
        if isinstance(result, torch.Tensor):
            shape = tuple(self.dim(d) for d in result.shape)
            format_ = format_of(shape, [self.dim(s) for s in result.stride()])
            return TensorType(result.dtype, shape, format_, result.device)
        if isinstance(result, torch.SymInt):
            return ScalarType("int", self.dim(result))
        if result is None:
            return ScalarType("none")
        kind = {torch.SymFloat: "float", torch.SymBool: "bool", bool: "bool", int: "int", float: "float"}[type_(result)]
        return ScalarType(kind)


type_ = type


def context_for(graph: ir.Graph) -> FakeContext:
    """The graph's fake context; regions share their graph's, by sharing its dims."""
    key = tuple(graph.dims.items())
    if graph.dims.context is None or graph.dims.context[0] != key:
        graph.dims.context = (key, FakeContext(graph.dims))
    context: FakeContext = graph.dims.context[1]
    return context


def infer_types(graph: ir.Graph, node: ir.Node) -> Sequence[ValueType]:
    """Types of the results that the node's op gives for its operands.

    Raises:
        CaptureError: the op refuses the operands.
    """
    if isinstance(node.op, Fusion):
        assert node.region is not None
        return [v.type for v in node.region.result_values]
    if node.regions:
        return [v.type for v in node.regions[0].result_values]
    context = context_for(graph)
    leaf = context.operand
    args = ir.map_operand(node.operands, leaf)
    kwargs = {k: ir.map_operand(v, leaf) for k, v in node.kwargs.items()}
    return fake_call(context, node.op, args, kwargs)


class FakeRun:
    """One run of a graph on fake tensors, node by node: true strides, and which values share a storage."""

    def __init__(self, graph: ir.Graph) -> None:
        self.context = context_for(graph)
        self.values: dict[ir.Value, Any] = {}

    def value(self, value: ir.Value) -> Any:
        """The fake of a value; inputs and constants are made when first asked for."""
        if value not in self.values:
            self.values[value] = self.context.value(value.type)
        return self.values[value]

    def step(self, node: ir.Node) -> list[Any]:
        """Run one node on the fakes of its operands; returns and keeps the fakes of its results."""

        def leaf(operand: Any) -> Any:
            return self.value(operand) if isinstance(operand, ir.Value) else self.context.operand(operand)

        args = ir.map_operand(node.operands, leaf)
        if isinstance(node.op, Fusion) and node.region is not None:
            results = self._region(node.region, args)
        elif node.regions:
            results = [self.context.value(v.type) for v in node.results]
        else:
            kwargs = {k: ir.map_operand(v, leaf) for k, v in node.kwargs.items()}
            results = _flat_call(self.context, node.op, args, kwargs)
        self.values.update(zip(node.results, results, strict=False))
        return results

    def _region(self, region: ir.Graph, args: Sequence[Any]) -> list[Any]:
        self.values.update(zip(region.inputs, args, strict=True))
        for node in region.nodes:
            self.step(node)
        return [self.value(v) for v in region.result_values]


def fake_call(context: FakeContext, op: Any, args: Any, kwargs: Any) -> Sequence[ValueType]:
    """Types of what the op returns for fake operands. Raises CaptureError where it refuses them."""
    return [context.type(r) for r in _flat_call(context, op, args, kwargs)]


def _flat_call(context: FakeContext, op: Any, args: Any, kwargs: Any) -> list[Any]:
    try:
        with ExitStack() as stack:
            if detect_fake_mode() is not None:
                stack.enter_context(torch.utils._python_dispatch._disable_current_modes())
            stack.enter_context(context.mode)
            stack.enter_context(torch.no_grad())
            results = op(*args, **kwargs)
    except Exception as error:
        shown = ", ".join(str(context.type(a)) if isinstance(a, torch.Tensor) else repr(a) for a in args)
        raise CaptureError(f"{op_name(op)} does not accept these operands", why=f"{error}\n({shown})") from error
    return pytree.tree_leaves(results, is_leaf=lambda v: v is None)


__all__ = ["CONTIGUOUS", "STRIDED", "FakeContext", "FakeRun", "context_for", "fake_call", "infer_types"]
