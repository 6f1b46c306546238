"""Graph -> text. ``str(Graph.parse(text)) == text`` holds for every text made here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import sympy
import torch

from capture.ir import dims
from capture.ir import graph as ir
from capture.ir.ops import op_name

COMMENT_COLUMN = 96
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


def format_graph(graph: ir.Graph) -> str:
    """The whole graph: signature, constants, one line a node, results, write-backs."""
    inputs = ", ".join(f"%{_quoted(v.name)}: {v.type}" for v in graph.inputs)
    head = f"graph({inputs})"
    if graph.dims:
        head += " where " + ", ".join(f"{name} in {bounds}" for name, bounds in graph.dims.items())
    return "\n".join([head, *_body(graph, names(graph), "  ")]) + "\n"


def names(graph: ir.Graph) -> dict[ir.Value, str]:
    """The printed name of each value, sigil included: ``%x``, ``@conv1.weight``, ``%0``."""
    named = {v: f"%{_quoted(v.name)}" for v in graph.inputs}
    named.update({c: f"@{_quoted(c.name)}" for c in graph.constants.values()})
    taken = set(named.values())
    fresh = (name for name in _numbers() if name not in taken)
    named.update({v: next(fresh) for node in graph.nodes for v in node.results})
    return named


def region_names(region: ir.Graph) -> dict[ir.Value, str]:
    """Names inside a region: letters, so that they are told from the numbers outside."""
    letters = _letters()
    named: dict[ir.Value, str] = {v: next(letters) for v in region.inputs}
    named.update({c: f"@{_quoted(c.name)}" for c in region.constants.values()})
    named.update({v: next(letters) for node in region.nodes for v in node.results})
    return named


def format_node(node: ir.Node, named: dict[ir.Value, str], indent: str = "") -> list[str]:
    """The node's lines: one, or more where it has regions."""
    lines = [format_call(node, named, indent)]
    for i, region in enumerate(node.regions):
        if i:
            lines.append(f"{indent}}} {{")
        inner = region_names(region)
        parameters = ", ".join(f"{inner[v]}: {v.type}" for v in region.inputs)
        lines += [f"{indent}  ^({parameters})", *_body(region, inner, indent + "  ")]
    if node.regions:
        lines.append(f"{indent}}}")
    return lines


def format_call(node: ir.Node, named: dict[ir.Value, str], indent: str = "") -> str:
    """The node's first line: all of it but the regions."""
    results = ", ".join(f"{named.get(v, '%?')}: {v.type}" for v in node.results)
    operands = [format_operand(v, named) for v in node.operands]
    operands += [f"{k}={format_operand(v, named)}" for k, v in node.kwargs.items()]
    line = f"{indent}{results}{' = ' if results else ''}{op_name(node.op)}({', '.join(operands)})"
    if node.impl is not None:
        options = ", ".join(f"{k}={format_operand(v, named)}" for k, v in node.impl.options.items())
        line += f" via {node.impl.kernel}({options})"
    if node.regions:
        line += " {"
    origin = str(node.origin)
    return f"{line.ljust(COMMENT_COLUMN)}  # {origin}" if origin else line


def format_operand(operand: Any, named: dict[ir.Value, str]) -> str:
    """Text of an operand: a value's name, or a literal."""
    if isinstance(operand, ir.Value):
        return named.get(operand, f"%?{operand.name}")
    if isinstance(operand, (list, tuple)):
        return f"[{', '.join(format_operand(v, named) for v in operand)}]"
    return format_literal(operand)


def format_literal(value: Any) -> str:
    """Text of a literal operand.

    Raises:
        TypeError: a graph cannot hold such a value.
    """
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, (int, float)):
        return (int if isinstance(value, int) else float).__repr__(
            value
        )  # also of an IntEnum or a numpy float
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, sympy.Expr):
        return dims.format_dim(value)
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        return str(value)
    if isinstance(value, torch.device):
        return f'device("{value}")'
    if isinstance(value, ir.RegionRef):
        return f"^{value.index}"
    if isinstance(value, complex):
        return f"complex({value.real!r}, {value.imag!r})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(format_literal(v) for v in value)}]"
    raise TypeError(f"a graph cannot hold the literal {value!r} of type {type(value).__name__}")


def _body(graph: ir.Graph, named: dict[ir.Value, str], indent: str) -> Iterator[str]:
    for constant in graph.constants.values():
        yield f"{indent}{named[constant]}: {constant.type}"
    for node in graph.nodes:
        yield from format_node(node, named, indent)
    yield f"{indent}return {', '.join(format_operand(v, named) for v in graph.results)}".rstrip()
    for target, value in graph.writebacks.items():
        yield f"{indent}write {format_operand(target, named)} = {format_operand(value, named)}"


def _quoted(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else json.dumps(name)


def _numbers() -> Iterator[str]:
    n = 0
    while True:
        yield f"%{n}"
        n += 1


def _letters() -> Iterator[str]:
    n = 0
    while True:
        text, rest = "", n
        while True:
            text, rest = chr(ord("a") + rest % 26) + text, rest // 26 - 1
            if rest < 0:
                break
        yield f"%{text}"
        n += 1
