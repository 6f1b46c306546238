"""A fusion that has no kernel: its operators one by one, temporaries written over where they die.

What a view shows, an operand or a temporary, is never written over, nor is the view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capture.ir import Graph, Node, TensorType, Trait, Value, has
from passes.aliases import may_share

if TYPE_CHECKING:
    from codegen.python.module import Writer


def region_lines(out: Writer, node: Node) -> list[str]:
    """The lines of a fusion; the place of its result in the arena also holds temporaries before."""
    region = node.region
    assert region is not None
    out.names.update({p: out.text(o) for p, o in zip(region.inputs, node.operands, strict=True)})
    results = dict(zip(reversed(region.results), reversed([out.names[r] for r in node.results]), strict=True))
    destination, final = out.destination(node), region.results[0]
    last = {v: step for step in region.nodes for v in step.operand_values}
    shown = _shown(region)
    memory: dict[Value, str] = {}
    lines = []
    for position, step in enumerate(region.nodes):
        dying = [v for v in memory if last.get(v) is step and v not in results]
        value = step.results[0]
        over = dying if has(step.op, Trait.POINTWISE) else []
        reusable = next((memory[v] for v in over if v.type == value.type and v not in shown), None)
        is_free = destination not in memory.values() and value not in shown
        free = destination if is_free and _alike(value, final) else None
        where = destination if value is final and destination else reusable or free
        for each in step.results:
            out.names[each] = results.get(each) or out.fresh(f"{out.names[node.results[0]]}_{position}")
        lines.append(f"{out.targets(step)}{out.call(step, where)}")
        memory.update({each: out.names[each] for each in step.results})
        if where is not None and where == destination and out.writes_into(step, where):
            memory[value] = where
        if dying:
            lines[-1] += f"; del {', '.join(out.names[v] for v in dying)}"
        for v in dying:
            memory.pop(v)
    for outer, inner in zip(node.results, region.results, strict=True):
        if out.text(inner) != out.names[outer]:  # an operand handed on, or a value returned twice
            lines.append(f"{out.names[outer]} = {out.text(inner)}")
    return lines


def _shown(region: Graph) -> set[Value]:
    """Values that may lie in one memory: views, and what they are views of."""
    views = [step for step in region.nodes if may_share(step.op)]
    return {v for step in views for v in (*step.operand_values, *step.results)}


def _alike(a: Value, b: object) -> bool:
    return isinstance(b, Value) and isinstance(a.type, TensorType) and a.type == b.type
