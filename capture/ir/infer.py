"""Type inference: a fake call of the op, with the graph's symbolic sizes as SymInts."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

import sympy
import torch
from torch._C import _DisableAutocast
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._sympy.numbers import int_oo

from capture.errors import CaptureError
from capture.ir import dims
from capture.ir import graph as ir
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
    type_names,
)

_FAKE_LOG = logging.getLogger("torch._subclasses.fake_tensor")
# Example sizes: unlike each other, unlike usual channel counts, and large, so that dividing one (by a patch's
# size, say) does not end at 1 or 0, sizes at which operators behave in their own ways.
_HINTS = tuple(96 * n for n in sympy.primerange(7, 200))
_NEAR = 200  # how far from its lower bound a narrow range is searched


class FakeContext:
    """A fake mode in which a graph's dims are SymInts, and the two-way map between the two.

    What a fake call asks of the sizes is answered by their ranges, else by example sizes ("hints") unlike
    each other; the answers are not kept, so that no call can specialise a size for the next one.
    """

    def __init__(self, ranges: Mapping[str, Range], taken: Callable[[], set[str]] = set) -> None:
        """`taken` tells the names of the data-dependent sizes that the graph has so far."""
        self.shape_env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.shape_env, allow_non_fake_inputs=True)
        self.calls: dict[Any, Sequence[ValueType]] = {}
        self._taken = taken
        self._hints: set[int] = set()
        self._symints: dict[str, Any] = {}
        self._names: dict[sympy.Symbol, sympy.Symbol] = {}
        for name, bounds in ranges.items():
            self._add(name, bounds)

    def _add(self, name: str, bounds: Range) -> None:
        hint = self._hint(bounds)
        source = ConstantSource(f"dim_{name}")
        made = self.shape_env.create_symbol(
            hint, source, dynamic_dim=DimDynamic.DYNAMIC, do_not_specialize_zero_one=True
        )
        if isinstance(made, sympy.Symbol):
            self._names[made] = dims.symbol(name)
            self.shape_env.constrain_symbol_range(
                made, compiler_min=bounds.lower, compiler_max=int_oo if bounds.upper is None else bounds.upper
            )
        self._symints[name] = self.shape_env.create_symintnode(made, hint=hint, source=source)

    def _hint(self, bounds: Range) -> int:
        """A size within the bounds, neither 1 nor another dim's hint where that can be had."""
        higher = range(bounds.lower, bounds.lower + _NEAR + len(self._hints))
        found = [n for n in (*_HINTS, *higher) if n in bounds]
        hint: int = min(found, key=lambda n: (n in self._hints, n < 2))
        self._hints.add(hint)
        return hint

    @contextmanager
    def active(self) -> Iterator[None]:
        """Where fake calls belong: nothing of the caller's gets in, neither a fake mode nor autocast."""
        # Without Python's decompositions, C++ makes an integer of each size that passes through a float.
        dispatcher = enable_python_dispatcher if self._symints else nullcontext
        was_disabled = _FAKE_LOG.disabled
        _FAKE_LOG.disabled = True  # else it prints a traceback for each operand that an op refuses
        try:
            with (
                _disable_current_modes(),
                self.shape_env.suppress_guards(),
                _DisableAutocast(),
                torch.no_grad(),
                dispatcher(),
            ):
                yield
        finally:
            _FAKE_LOG.disabled = was_disabled

    def _symint(self, s: sympy.Symbol) -> Any:
        if s.name not in self._symints:  # a data-dependent size has no declared range
            self._add(s.name, Range(0))
        return self._symints[s.name]

    def size(self, dim: dims.Dim) -> Any:
        """A size as an int or a SymInt."""
        return dims.fold(dim, self._symint, minimum=torch.sym_min, maximum=torch.sym_max)

    def dim(self, size: Any) -> dims.Dim:
        """A size that a fake call gave, in the graph's own dims.

        Raises:
            CaptureError: the size is computed by what the grammar of sizes does not have.
        """
        if not isinstance(size, torch.SymInt):
            return int(size)
        expr = size.node.expr
        for s in sorted(expr.free_symbols - set(self._names), key=str):
            self._names[s] = self._fresh()
        found = dims.normalise(expr.xreplace(self._names))
        if not dims.is_size(found):
            raise CaptureError(
                f"the size {found} is no integer arithmetic",
                hint="give the size as an integer, or make it static",
            )
        return found

    def _fresh(self) -> sympy.Symbol:
        """A symbol for a size that the call's data decide, unlike any that the graph has."""
        taken = self._taken() | {s.name for s in self._names.values()} | set(self._symints)
        return dims.symbol(next(name for i in count() if (name := f"u{i}") not in taken))

    def tensor(self, type: TensorType) -> torch.Tensor:
        """A fake tensor of that type."""
        with self.active(), self.mode:
            shape = [self.size(d) for d in type.shape]
            format_ = TORCH_FORMATS.get(type.memory_format, torch.contiguous_format)
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
        """A fake of a value of that type; a scalar that no size names gets an example."""
        if isinstance(type, TensorType):
            return self.tensor(type)
        if isinstance(type, LiteralType):
            return type.value
        if type.expr is not None:
            return self.size(type.expr)
        return {"int": 2, "float": 0.5, "bool": True, "none": None}[type.kind]

    def type(self, result: Any) -> ValueType:
        """The type of what a fake call returned.

        Raises:
            CaptureError: a graph cannot hold such a thing.
        """
        if isinstance(result, torch.Tensor):
            shape = tuple(self.dim(d) for d in result.shape)
            format_ = format_of(shape, [self.dim(s) for s in result.stride()])
            return TensorType(result.dtype, shape, format_, result.device)
        if isinstance(result, torch.SymInt):
            return ScalarType("int", self.dim(result))
        for kind, types in _SCALARS.items():
            if isinstance(result, types):
                return ScalarType(kind)
        raise CaptureError(f"a graph cannot hold what the op returns, a {type_(result).__name__}")


type_ = type
_SCALARS: dict[str, tuple[type, ...]] = {
    "none": (type_(None),),
    "bool": (bool, torch.SymBool),
    "int": (int,),
    "float": (float, torch.SymFloat),
}


def context_for(graph: ir.Graph) -> FakeContext:
    """The graph's fake context; regions share their graph's, by sharing its dims."""
    key = tuple(graph.dims.items())
    if graph.dims.context is None or graph.dims.context[0] != key:
        whole = weakref.ref(graph)
        graph.dims.context = (key, FakeContext(graph.dims, lambda: _data_dependent(whole())))
    context: FakeContext = graph.dims.context[1]
    return context


def _data_dependent(graph: ir.Graph | None) -> set[str]:
    """Names such as ``u0`` among the types of a graph, its regions and the graph that it is a region of."""
    found: set[str] = set()
    graphs = [] if graph is None else list(graph.ancestors())[-1:]
    while graphs:
        part = graphs.pop()
        for value in (*part.inputs, *(v for node in part.nodes for v in node.results)):
            found |= {name for name in type_names(value.type) if dims.is_data_dependent(name)}
        graphs += [region for node in part.nodes for region in node.regions]
    return found


def infer_types(graph: ir.Graph, node: ir.Node) -> Sequence[ValueType]:
    """Types of the results that the node's op gives for its operands.

    Raises:
        CaptureError: the op refuses the operands, or does with its regions what only it knows.
    """
    if node.regions or isinstance(node.op, Fusion):
        types = region_op_types(node)
        if types is None:
            raise CaptureError(
                f"what {op_name(node.op)} makes of its regions is not known", hint="give `types`"
            )
        return types
    return call_types(context_for(graph), node)


def call_types(context: FakeContext, node: ir.Node) -> Sequence[ValueType]:
    """Types of what a node's operator returns. Equal calls, as repeated layers make them, are made once.

    Raises:
        CaptureError: the op refuses the operands.
    """
    key = (node.op, _frozen(node.operands), _frozen([[k, v] for k, v in node.kwargs.items()]))
    if key in context.calls:
        return context.calls[key]
    args = ir.map_operand(node.operands, context.operand)
    kwargs = {k: ir.map_operand(v, context.operand) for k, v in node.kwargs.items()}
    types = fake_call(context, node.op, args, kwargs)
    if not any(map(dims.is_data_dependent, set().union(*map(type_names, types)))):
        context.calls[key] = types
    return types


def _frozen(operand: Any) -> Any:
    """An operand as a key: values by their types, and 1, 1.0, True, 0.0 and -0.0 told from each other."""
    if isinstance(operand, (list, tuple)):
        return tuple(map(_frozen, operand))
    if isinstance(operand, ir.Value):
        operand = operand.type
    if isinstance(operand, TensorType):
        return operand
    return (type(operand), repr(operand)) if not isinstance(operand, sympy.Expr) else operand


def parameter_operands(node: ir.Node) -> list[Any] | None:
    """The operands that the parameters of each region stand for; None where only the op knows."""
    higher = torch.ops.higher_order
    if isinstance(node.op, Fusion):
        return list(node.operands)
    if node.op is higher.cond and len(node.operands) == 4:
        return list(node.operands[3])
    if node.op is higher.while_loop and len(node.operands) == 4:
        return [*node.operands[2], *node.operands[3]]
    return None


def region_op_types(node: ir.Node) -> list[ValueType] | None:
    """What a node returns whose results are those of its (last) region; None for another op with regions."""
    higher = torch.ops.higher_order
    if not node.regions or not (isinstance(node.op, Fusion) or node.op in (higher.cond, higher.while_loop)):
        return None
    region = node.regions[-1]
    context = context_for(region)
    return [v.type if isinstance(v, ir.Value) else context.type(context.operand(v)) for v in region.results]


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
    """Types of what the op returns for fake operands.

    Raises:
        CaptureError: the op refuses them, or returns what a graph cannot hold.
    """
    return [context.type(r) for r in _flat_call(context, op, args, kwargs)]


def _flat_call(context: FakeContext, op: Any, args: Any, kwargs: Any) -> list[Any]:
    try:
        with context.active(), context.mode:
            results = op(*args, **kwargs)
    except Exception as error:
        shown = ", ".join(
            [_shown(context, a) for a in args] + [f"{k}={_shown(context, v)}" for k, v in kwargs.items()]
        )
        raise CaptureError(
            f"{op_name(op)} does not accept these operands", why=f"{error}\n({shown})"
        ) from error
    return pytree.tree_leaves(results, is_leaf=lambda v: v is None)


def _shown(context: FakeContext, operand: Any) -> str:
    if isinstance(operand, (list, tuple)):
        return f"[{', '.join(_shown(context, v) for v in operand)}]"
    if isinstance(operand, torch.SymInt):
        return dims.format_dim(context.dim(operand))
    return str(context.type(operand)) if isinstance(operand, torch.Tensor) else repr(operand)


__all__ = [
    "CONTIGUOUS",
    "STRIDED",
    "FakeContext",
    "FakeRun",
    "call_types",
    "context_for",
    "fake_call",
    "infer_types",
    "parameter_operands",
    "region_op_types",
]
