"""A fusion that has no kernel: its operators one by one, temporaries written over where they die."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capture.ir import Node, TensorType, Value

if TYPE_CHECKING:
    from codegen.python.module import Writer


def region_lines(out: Writer, node: Node) -> list[str]:
    """The lines of a fusion; the place of its result in the arena also holds temporaries before."""
    region = node.region
    assert region is not None
    result, final = out.names[node.results[0]], region.results[0]
    out.names.update({p: out.text(o) for p, o in zip(region.inputs, node.operands, strict=True)})
    destination = out.destination(node)
    # An operand's memory can be written over at the end alone; the arena's own place from the start.
    place = destination if node.results[0] not in out.arena.in_place else None
    last = {v: step for step in region.nodes for v in step.operand_values}
    memory: dict[Value, str] = {}
    lines = []
    for position, step in enumerate(region.nodes):
        value = step.results[0]
        dying = [v for v in dict.fromkeys(step.operand_values) if v.producer and last[v] is step]
        reusable = next((memory[v] for v in dying if v.type == value.type), None)
        free = place if place not in memory.values() and _alike(value, final) else None
        where = destination if value is final and destination else reusable or free
        out.names[value] = result if value is final else f"{result}_{position}"
        memory[value] = where or out.names[value]
        lines.append(f"{out.names[value]} = {out.call(step, where)}")
        if dying:
            lines[-1] += f"; del {', '.join(out.names[v] for v in dying)}"
        for v in dying:
            memory.pop(v)
    return lines


def _alike(a: Value, b: object) -> bool:
    return isinstance(b, Value) and isinstance(a.type, TensorType) and a.type == b.type
