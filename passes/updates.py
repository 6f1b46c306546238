"""Which nodes update an operand: how each writes its result there, and the recipe that says so.

    %1 = aten.index_put(%0, [%i], %x) via aten.in_place(operand=0)       aten.index_put_(%0, [%i], %x)
    %2 = aten.slice_scatter(%1, %y, 0, 2, 3) via aten.in_place(operand=0)
                                                             aten.slice(%1, 0, 2, 3).copy_(%y)
    %3 = fusion.pointwise(%z, %2) {...} via aten.in_place(operand=1)     aten.mul(%2, 0.9, out=%2); ...

The graph stays pure: the recipe only says where the result lies, and that nobody needs what was there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from torch._ops import OpOverload

from capture.ir import Fusion, Graph, Node, TensorType, Trait, Value, has, op_name, resolve_op
from passes.aliases import may_share
from passes.destinations import overwritten_first

IN_PLACE = (
    "aten.in_place"  # the recipe's kernel; its option `operand` is the position of what is written into
)

# Each writes into a part of its first operand: the overload of the packet that ends in an underscore.
_WRITES = """copy index_put index_copy index_fill.int_Scalar index_fill.int_Tensor index_add index_reduce
scatter.src scatter.value scatter.reduce scatter.value_reduce scatter_add scatter_reduce.two
masked_fill.Scalar masked_fill.Tensor masked_scatter""".split()

# Each copies its second operand into this view of the first.
_PARTS = {"slice_scatter": "slice.Tensor", "select_scatter": "select.int", "diagonal_scatter": "diagonal"}


@dataclass(frozen=True)
class UpdateForm:
    """The write: ``overload(*operands)``; of a `part`, ``overload(x, *operands[2:]).copy_(operands[1])``."""

    overload: OpOverload
    part: bool = False


def update_form(node: Node) -> UpdateForm | None:
    """How the node's op writes its result into its first operand, or None where it cannot."""
    if len(node.results) != 1 or not node.operands or not isinstance(node.operands[0], Value):
        return None
    if node.operands[0].type != node.results[0].type or has(node.op, Trait.RANDOM | Trait.EFFECTFUL):
        return None
    return _form(node.op, has(node.op, Trait.POINTWISE))


@cache
def _form(op: Any, pointwise: bool) -> UpdateForm | None:
    if not isinstance(op, OpOverload) or op.namespace != "aten":
        return None
    name = op_name(op).removeprefix("aten.")
    if name in _PARTS:
        return UpdateForm(resolve_op(f"aten.{_PARTS[name]}"), part=True)
    if name not in _WRITES and not pointwise:
        return None
    packet, _, overload = name.partition(".")
    try:
        found: OpOverload = resolve_op(f"aten.{packet}_.{overload}".removesuffix("."))
    except KeyError:  # no in-place form: maximum, say
        return None
    taken, wanted = ([(a.name, str(a.type)) for a in o._schema.arguments] for o in (found, op))
    return UpdateForm(found) if taken == wanted else None


def updatable(node: Node) -> tuple[int, ...]:
    """The positions of the operands that the node's result can be written into.

    A fusion is written so where its operators run one by one: on a CPU.
    """
    if not isinstance(node.op, Fusion):
        return (0,) if update_form(node) is not None else ()
    made = node.results[0].type if node.results else None
    if not isinstance(made, TensorType) or made.device.type != "cpu":
        return ()
    over = overwritten_first(node)
    return tuple(i for i, v in enumerate(node.operands) if v in over and v.type == made)


def updated_operand(node: Node) -> Value | None:
    """The operand that the node's recipe says is written into, so that the result is its memory."""
    if node.impl is None or node.impl.kernel != IN_PLACE:
        return None
    position = node.impl.options.get("operand")
    operand = node.operands[position] if position in updatable(node) else None
    return operand if isinstance(operand, Value) else None


def first_updates(graph: Graph) -> dict[Value, Node]:
    """Values that show the old content of what is written back -> the node that may write over it."""
    found: dict[Value, Node] = {}
    for target, value in graph.writebacks.items():
        first: Node | None = None
        while value is not target:
            node = value.producer
            positions = updatable(node) if node is not None else ()
            if not positions:
                first = None
                break
            first, value = node, node.operands[positions[0]]
        waiting = [target] if first is not None else []
        while waiting:
            old = waiting.pop()
            found[old] = first
            waiting += [v for user in old.users if may_share(user.op) for v in user.results]
    return found


__all__ = ["IN_PLACE", "UpdateForm", "first_updates", "updatable", "update_form", "updated_operand"]
