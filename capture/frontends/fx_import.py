"""An fx graph of ATen calls -> Graph. What every front end ends with.

%sym = sym_size(x, 0)               sizes become expressions over the graph's dims, inside operands
%s = split(x, 2); %a = s[0]         one node with several results
%y = view(x, [%sym, 4])             reshape
cond(p, true_graph, false_graph)    one node with two regions
%c = ge(%sym, 2); assert(%c)        gone where a dim's range says it, else kept as an effect
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import GraphModule
from torch.fx import Node as FxNode
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.frontends.bindings import Constants
from capture.frontends.sizes import Sizes, as_expr
from capture.frontends.source import Sources
from capture.ir import CapturedOp, Graph, Origin, RegionRef, ScalarType, TensorType, Value, op_name
from capture.ir.types import ValueType

__all__ = ["FxImporter"]

aten = torch.ops.aten

_RENAMED = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
    aten.lift_fresh_copy.default: aten.clone.default,
}
_IDENTITIES = (
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh.default,
)  # nothing is ever written to
_RANGE_ASSERTS = {
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
    aten._assert_tensor_metadata.default,
}
# Higher-order ops that only mark a stretch of the graph: operands before the region, and after it, to skip.
_INLINED = {
    "wrap_with_set_grad_enabled": (1, 0),
    "wrap_with_autocast": (4, 0),
    "tag_activation_checkpoint": (0, 0),
    "wrap_activation_checkpoint": (0, 0),
    "wrap": (0, 0),
    "invoke_subgraph": (0, 1),
}


# The last argument only chooses a kernel; by its position.
_TUNING = {aten.layer_norm.default: 5, aten.group_norm.default: 5}


@dataclass(frozen=True)
class Condition:
    """A truth value computed from sizes; becomes a tensor where an op takes it."""

    expr: sympy.Basic


@dataclass(frozen=True)
class Number:
    """A real number computed from sizes."""

    expr: sympy.Basic


class FxImporter:
    """Copies the calls of an fx graph into a Graph (or a region of it).

    Args:
        graph: where the nodes go.
        sizes, sources, constants: what all regions of one capture share.
        captured: the ledger; a row is added for each node made.
    """

    def __init__(
        self,
        graph: Graph,
        sizes: Sizes,
        sources: Sources,
        constants: Constants,
        captured: dict[int, CapturedOp],
    ) -> None:
        self.graph = graph
        self.sizes = sizes
        self.sources = sources
        self.constants = constants
        self.captured = captured
        self._env: dict[FxNode, Any] = {}
        self._module: GraphModule | None = None

    def run(self, module: GraphModule, inputs: Sequence[Any]) -> list[Any]:
        """Import the whole graph; returns its flat results.

        Args:
            inputs: for each placeholder what it stands for: a Value, a literal or a size.

        Raises:
            CaptureError: a node has no counterpart in the IR; the message names the user's line.
        """
        outer = self._module
        self._module = module
        results: list[Any] = []
        remaining = iter(inputs)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self._env[node] = next(remaining)
            elif node.op == "output":
                results = [self._operand(v, node) for v in pytree.tree_leaves(node.args[0], is_leaf=_is_none)]
            else:
                self._env[node] = self._node(node)
        self._module = outer
        return results

    # -- nodes -------------------------------------------------------------------------------------------

    def _node(self, node: FxNode) -> Any:
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op != "call_function":
            raise self._error(node, f"the fx node {node.op} {node.target} is not an ATen call")
        target = node.target
        if target is operator.getitem and isinstance(self._env.get(node.args[0]), list):
            return self._env[node.args[0]][node.args[1]]
        if target in _RANGE_ASSERTS or target is torch._C._set_grad_enabled:
            return None
        if target in _IDENTITIES:
            return self._operand(node.args[0], node)
        if target is aten._assert_scalar.default:
            return self._assert(node)
        value = node.meta.get("val")
        if isinstance(target, OpOverload) and (not _is_number(value) or _is_read(target)):
            return self._call(node, target)
        if isinstance(target, HigherOrderOperator):
            return self._higher_order(node, target)
        if isinstance(value, torch.SymInt):
            return self.sizes.size(value)
        if isinstance(value, torch.SymBool):
            return Condition(as_expr(value))
        if isinstance(value, torch.SymFloat):
            return Number(as_expr(value))
        if isinstance(value, (bool, int, float)):
            return value
        name = getattr(target, "__name__", str(target))
        if "autocast" in name:
            raise self._error(
                node, "the model turns autocast on, and tracing above dispatch does not see its casts"
            )
        raise self._error(node, f"the call {name} is not an ATen operator")

    def _call(self, node: FxNode, op: OpOverload) -> Any:
        op = _RENAMED.get(op, op)
        if op._schema.is_mutable:
            raise self._error(node, f"{op_name(op)} changes its operand, and the graph is not functional")
        value = node.meta.get("val")
        if op is aten.copy.default and _same_form(node.args[0], node.args[1]):
            return self._operand(node.args[1], node)
        origin = self._origin(node, op)
        args = self._operands(node.args[: _TUNING.get(op)], node, origin)
        kwargs = {k: self._operands(v, node, origin) for k, v in node.kwargs.items()}
        made = self.graph.add_node(op, args, kwargs, types=self._types(node, value), origin=origin)
        if isinstance(value, torch.SymInt):
            return self.sizes.size(value)
        return (
            list(made.results)
            if isinstance(value, (list, tuple))
            else made.results[0]
            if made.results
            else None
        )

    def _types(self, node: FxNode, value: Any) -> list[ValueType]:
        op = node.target
        if value is None and isinstance(op, OpOverload):
            if op._schema.returns:
                raise self._error(node, f"{op_name(op)} has no recorded result type")
            return []
        values = value if isinstance(value, (list, tuple)) else [value]
        return [self._type(node, v) for v in values]

    def _type(self, node: FxNode, value: Any) -> ValueType:
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided:
                raise self._error(node, f"a tensor of layout {value.layout} has no type in the IR")
            return self.sizes.type(value)
        if value is None:
            return ScalarType("none")
        if isinstance(value, torch.SymInt):
            return ScalarType("int", self.sizes.size(value))
        for kind, classes in (
            ("bool", (bool, torch.SymBool)),
            ("int", (int,)),
            ("float", (float, torch.SymFloat)),
        ):
            if isinstance(value, classes):
                return ScalarType(kind)
        raise self._error(node, f"a result of type {type(value).__name__} has no type in the IR")

    def _attribute(self, node: FxNode) -> Any:
        assert self._module is not None
        found: Any = self._module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        if isinstance(found, torch.Tensor):
            name = re.sub(r"^_tensor_constant(\d+)$", r"lifted_tensor_\1", str(node.target))
            value = node.meta.get("val", found)
            return self.constants.add(name, found, self.sizes.type(value))
        return found  # a GraphModule: the region of a higher-order op

    def _assert(self, node: FxNode) -> None:
        condition = (
            self._env.get(node.args[0], node.args[0]) if isinstance(node.args[0], FxNode) else node.args[0]
        )
        if not isinstance(condition, Condition):
            if isinstance(condition, Value):
                self._call(node, node.target)
            return
        if self.sizes.holds_always(condition.expr):
            return
        size = self.sizes.truth(condition.expr)
        message = f"the sizes do not fulfil {condition.expr.xreplace(self.sizes.names)}"
        self.graph.add_node(
            aten._assert_scalar.default, [size, message], types=[], origin=self._origin(node, node.target)
        )

    # -- regions -----------------------------------------------------------------------------------------

    def _higher_order(self, node: FxNode, op: HigherOrderOperator) -> Any:
        if op.name() in _INLINED:
            return self._inline(node, *_INLINED[op.name()])
        origin = self._origin(node, op)
        modules = [self._env[a] for a in pytree.tree_leaves(node.args) if self._is_region(a)]
        if not modules or node.kwargs or op.name() == "while_loop":  # its condition returns no tuple
            raise self._error(node, f"the higher-order operator {op_name(op)} has no form in the IR")
        regions: list[Graph] = []
        operands = pytree.tree_map(
            lambda a: self._region_or_operand(a, node, origin, regions), list(node.args)
        )
        self._fill_regions(modules, regions, op, operands)
        value = node.meta.get("val")
        made = self.graph.add_node(
            op, operands, types=self._types(node, value), origin=origin, regions=regions
        )
        return list(made.results) if isinstance(value, (list, tuple)) else made.result

    def _is_region(self, arg: Any) -> bool:
        return isinstance(arg, FxNode) and isinstance(self._env.get(arg), GraphModule)

    def _region_or_operand(self, arg: Any, node: FxNode, origin: Origin, regions: list[Graph]) -> Any:
        if self._is_region(arg):
            regions.append(self.graph.new_region())
            return RegionRef(len(regions) - 1)
        return self._operands(arg, node, origin)

    def _fill_regions(
        self, modules: list[GraphModule], regions: list[Graph], op: HigherOrderOperator, operands: list[Any]
    ) -> None:
        """Import the regions. Sizes handed to the branches of ``cond`` are known there by name already."""
        skipped: set[int] = set()
        if op.name() == "cond":
            skipped = {
                i
                for i, v in enumerate(operands[3])
                if isinstance(v, (sympy.Expr, int)) and not isinstance(v, bool)
            }
        for module, region in zip(modules, regions, strict=True):
            inner = FxImporter(region, self.sizes, self.sources, Constants(region), self.captured)
            inputs: list[Any] = []
            placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
            for i, placeholder in enumerate(placeholders):
                if i in skipped:
                    inputs.append(operands[3][i])
                else:
                    inputs.append(
                        region.add_input(
                            placeholder.name, inner._type(placeholder, placeholder.meta.get("val"))
                        )
                    )
            region.set_results(inner.run(module, inputs))
        if skipped:
            operands[3] = [v for i, v in enumerate(operands[3]) if i not in skipped]

    def _inline(self, node: FxNode, before: int, between: int) -> Any:
        region, *rest = node.args[before:]
        module = self._env[region]
        inputs = [self._env[a] if isinstance(a, FxNode) else a for a in rest[between:]]
        return self.run(module, inputs)

    # -- operands ----------------------------------------------------------------------------------------

    def _operands(self, arg: Any, node: FxNode, origin: Origin) -> Any:
        if isinstance(arg, (list, tuple)):
            return [self._operands(a, node, origin) for a in arg]
        return self._operand(arg, node, origin)

    def _operand(self, arg: Any, node: FxNode, origin: Origin | None = None) -> Any:
        found = self._env[arg] if isinstance(arg, FxNode) else arg
        if isinstance(found, (torch.SymInt, torch.SymBool, torch.SymFloat)):
            found = self.sizes.size(found) if isinstance(found, torch.SymInt) else Condition(as_expr(found))
        if isinstance(found, Condition):
            return self._condition(found, origin or self._origin(node, node.target))
        if isinstance(found, Number):
            return self._number(found.expr, node, origin or self._origin(node, node.target))
        if isinstance(found, (GraphModule, torch.ScriptObject, list)):
            raise self._error(node, f"an operand of type {type(found).__name__} has no form in the IR")
        return found

    def _condition(self, condition: Condition, origin: Origin) -> Value:
        """A truth value about sizes, as a bool tensor of no dims."""
        size = self.sizes.truth(condition.expr)
        type_ = TensorType(torch.bool, ())
        return self.graph.add_node(
            aten.full.default, [[], size], {"dtype": torch.bool}, types=[type_], origin=origin
        ).result  # fmt: skip

    def _number(self, expr: sympy.Basic, node: FxNode, origin: Origin) -> Value:
        """A real number computed from sizes: in fp64 tensors of no dims, then read."""
        from capture.frontends.numbers import emit_number

        try:
            return emit_number(self.graph, self.sizes, expr, origin)
        except ValueError as error:
            raise self._error(node, f"the number {expr} is computed from sizes", why=str(error)) from error

    # -- places ------------------------------------------------------------------------------------------

    def _origin(self, node: FxNode, op: Any) -> Origin:
        module, frame = self.sources.of(node.meta)
        number = len(self.captured)
        file, line, code = (frame.file, frame.line, frame.code) if frame else ("", 0, "")
        self.captured[number] = CapturedOp(number, op_name(op), module, file, line, code)
        return Origin.of(self.captured[number])

    def _error(self, node: FxNode, what: str, why: str | None = None) -> CaptureError:
        _, frame = self.sources.of(node.meta)
        return CaptureError(what, where=frame and f"{frame.file}:{frame.line}   {frame.code}", why=why)


def _same_form(target: FxNode, source: FxNode) -> bool:
    """Whether copying one tensor over the other leaves just the other."""
    a, b = target.meta.get("val"), source.meta.get("val")
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    return (a.dtype, a.device) == (b.dtype, b.device) and [as_expr(n) for n in a.shape] == [
        as_expr(n) for n in b.shape
    ]


def _is_none(value: Any) -> bool:
    return value is None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))


def _is_read(op: OpOverload) -> bool:
    """Whether the op reads a number out of a tensor, where others compute sizes."""
    return op in (aten.item.default, aten._local_scalar_dense.default)
