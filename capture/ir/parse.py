"""Text -> graph: a reader for exactly what text.py prints. Nothing in the text is executed."""

from __future__ import annotations

import json
import re
from typing import Any

import torch

from capture.errors import CaptureError
from capture.ir import graph as ir
from capture.ir.dims import parse_dim
from capture.ir.ops import is_region_op, resolve_op
from capture.ir.origin import Origin
from capture.ir.types import DTYPES, LiteralType, Range, ScalarType, TensorType, ValueType

_NAME = r'(?:[A-Za-z0-9_][A-Za-z0-9_.\-]*|"(?:[^"\\]|\\.)*")'
_HEAD = re.compile(r"graph\((?P<inputs>.*)\)(?: where (?P<dims>[^()]*))?")
_DIM = re.compile(r"(?P<name>[A-Za-z_]\w*) in \[(?P<lower>\d+), (?P<upper>\d+|inf)\]")
_TYPED = re.compile(rf"(?P<sigil>[%@])(?P<name>{_NAME}): (?P<type>.+)")
_TENSOR = re.compile(r"(?P<dtype>\w+)\[(?P<shape>.*)\](?: (?P<format>[a-z]\w*))?(?: @(?P<device>\S+))?")
_SCALAR = re.compile(r"(?P<kind>int|float|bool|none)(?:\((?P<expr>.*)\))?")
_FLOAT = re.compile(r"-?(?:\d+\.\d*(?:e[+-]?\d+)?|\d+e[+-]?\d+|inf|nan)")
_OPENERS, _CLOSERS = "([{", ")]}"


def parse(text: str) -> ir.Graph:
    """Read a graph from its text.

    Raises:
        CaptureError: the text is not a graph's; the message names the line.
    """
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self.lines = [line.rstrip() for line in text.splitlines()]
        self.at = 0

    def read(self) -> ir.Graph:
        try:
            graph = self._graph()
            if any(self.lines[self.at :]):
                raise ValueError("text after the end of the graph")
            return graph
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            shown = self.lines[self.at] if self.at < len(self.lines) else "(end of the text)"
            why = error.args[0] if isinstance(error, KeyError) else str(error)
            raise CaptureError(
                "cannot read the graph's text", where=f"line {self.at + 1}:  {shown.strip()}", why=str(why)
            ) from error

    def _line(self) -> str:
        if self.at >= len(self.lines):
            raise ValueError("the text ends before the graph's `return`")
        return self.lines[self.at]

    def _graph(self) -> ir.Graph:
        head = _HEAD.fullmatch(self._line())
        if not head:
            raise ValueError("expected `graph(%input: type, ...) where N in [1, 64]`")
        graph = ir.Graph()
        for item in split(head["dims"] or ""):
            bounds = _DIM.fullmatch(item)
            if not bounds:
                raise ValueError(f"cannot read the range {item!r}")
            upper = None if bounds["upper"] == "inf" else int(bounds["upper"])
            graph.dims[bounds["name"]] = Range(int(bounds["lower"]), upper)
        values: dict[str, ir.Value] = {}
        self._parameters(graph, head["inputs"], values)
        self.at += 1
        self._body(graph, values)
        return graph

    def _parameters(self, graph: ir.Graph, text: str, values: dict[str, ir.Value]) -> None:
        for item in split(text):
            sigil, name, type_ = _typed(item)
            if sigil + name in values:
                raise ValueError(f"{sigil}{name} is defined twice")
            values[sigil + name] = graph.add_input(name, type_)

    def _body(self, graph: ir.Graph, values: dict[str, ir.Value]) -> None:
        while not self._line().strip().startswith("return"):
            line = self._line().strip()
            if line.startswith("@") and " = " not in line:
                _, name, type_ = _typed(line)
                if not isinstance(type_, TensorType) or name in graph.constants:
                    raise ValueError(f"@{name} is defined twice or is no tensor")
                values["@" + name] = graph.add_constant(name, type_)
                self.at += 1
            else:
                self._node(graph, line, values)
        graph.set_results([_operand(t, values) for t in split(self._line().strip().removeprefix("return"))])
        self.at += 1
        while self.at < len(self.lines) and self.lines[self.at].strip().startswith("write "):
            target, _, value = self._line().strip().removeprefix("write ").partition(" = ")
            graph.set_writeback(_operand(target, values), _operand(value, values))
            self.at += 1

    def _node(self, graph: ir.Graph, line: str, values: dict[str, ir.Value]) -> None:
        code, comment = _uncomment(line)
        code = code.rstrip()
        has_region = code.endswith("{")
        code = code.removesuffix("{").rstrip()
        call = _find(code, " = ")
        left, right = ("", code) if call < 0 else (code[:call], code[call + 3 :])
        op_text, _, rest = right.partition("(")
        end = _closing(rest)
        operands, kwargs = _arguments(rest[:end], values)
        impl = _impl(rest[end + 1 :].strip())
        op = resolve_op(op_text)
        if has_region != is_region_op(op):
            raise ValueError(f"{op_text} {'has no region' if has_region else 'needs a region'}")
        results = [_typed(item) for item in split(left)]
        regions = self._regions(graph) if has_region else []
        node = graph.add_node(
            op, operands, kwargs, types=[t for _, _, t in results], origin=Origin.parse(comment), regions=regions, impl=impl
        )  # fmt: skip
        for (sigil, name, _), value in zip(results, node.results, strict=True):
            if sigil + name in values:
                raise ValueError(f"{sigil}{name} is defined twice")
            values[sigil + name] = value
        self.at += 1

    def _regions(self, graph: ir.Graph) -> list[ir.Graph]:
        """Read the regions of the node on the present line; stop at the line of the last brace."""
        regions: list[ir.Graph] = []
        while not regions or self._line().strip() == "} {":
            self.at += 1
            region, values = graph.new_region(), {}
            head = self._line().strip()
            if not (head.startswith("^(") and head.endswith(")")):
                raise ValueError("expected a region's parameters: `^(%a: type, ...)`")
            self._parameters(region, head[2:-1], values)
            self.at += 1
            self._body(region, values)
            regions.append(region)
        if self._line().strip() != "}":
            raise ValueError("expected `}`")
        return regions


def split(text: str, separator: str = ",") -> list[str]:
    """Pieces between separators that lie outside brackets and strings."""
    pieces, depth, start, quoted, i = [], 0, 0, False, 0
    while i < len(text):
        c = text[i]
        if quoted:
            i += c == "\\"
            quoted = c != '"'
        elif c == '"':
            quoted = True
        elif c in _OPENERS:
            depth += 1
        elif c in _CLOSERS:
            depth -= 1
        elif depth == 0 and text.startswith(separator, i):
            pieces.append(text[start:i].strip())
            start = i + len(separator)
        i += 1
    last = text[start:].strip()
    return [*pieces, last] if last or pieces else []


def _find(text: str, wanted: str) -> int:
    """Position of `wanted` outside brackets and strings, or -1."""
    pieces = split(text, wanted)
    return -1 if len(pieces) < 2 else text.index(wanted, len(pieces[0]) if pieces[0] else 0)


def _closing(text: str) -> int:
    """Position of the parenthesis that closes one opened before `text`."""
    depth, quoted, i = 1, False, 0
    while i < len(text):
        c = text[i]
        if quoted:
            i += c == "\\"
            quoted = c != '"'
        elif c == '"':
            quoted = True
        elif c in _OPENERS:
            depth += 1
        elif c in _CLOSERS:
            depth -= 1
            if depth == 0:
                return i
        i += 1
    raise ValueError("a parenthesis is not closed")


def _uncomment(line: str) -> tuple[str, str]:
    quoted, i = False, 0
    while i < len(line):
        c = line[i]
        if quoted:
            i += c == "\\"
            quoted = c != '"'
        elif c == '"':
            quoted = True
        elif line.startswith("  # ", i):
            return line[:i], line[i + 4 :]
        i += 1
    return line, ""


def _typed(text: str) -> tuple[str, str, ValueType]:
    match = _TYPED.fullmatch(text)
    if not match:
        raise ValueError(f"expected `%name: type`, found {text!r}")
    name = json.loads(match["name"]) if match["name"].startswith('"') else match["name"]
    return match["sigil"], name, parse_type(match["type"])


def parse_type(text: str) -> ValueType:
    """Read a type. Raises ValueError."""
    if text.startswith("="):
        return LiteralType(_operand(text[1:], {}))
    if scalar := _SCALAR.fullmatch(text):
        return ScalarType(scalar["kind"], None if scalar["expr"] is None else parse_dim(scalar["expr"]))
    tensor = _TENSOR.fullmatch(text)
    if not tensor or tensor["dtype"] not in DTYPES:
        raise ValueError(f"cannot read the type {text!r}")
    shape = tuple(parse_dim(d) for d in split(tensor["shape"]))
    device = torch.device(tensor["device"] or "cpu")
    return TensorType(DTYPES[tensor["dtype"]], shape, tensor["format"] or "contiguous", device)


def _arguments(text: str, values: dict[str, ir.Value]) -> tuple[list[Any], dict[str, Any]]:
    operands: list[Any] = []
    kwargs: dict[str, Any] = {}
    for piece in split(text):
        if match := re.match(r"([A-Za-z_]\w*)=", piece):
            kwargs[match[1]] = _operand(piece[match.end() :], values)
        else:
            operands.append(_operand(piece, values))
    return operands, kwargs


def _impl(text: str) -> ir.Impl | None:
    if not text:
        return None
    match = re.fullmatch(r"via ([\w.]+)\((.*)\)", text)
    if not match:
        raise ValueError(f"expected `via kernel(option=...)`, found {text!r}")
    return ir.Impl(match[1], _arguments(match[2], {})[1])


_WORDS: dict[str, Any] = {"None": None, "True": True, "False": False}


def _operand(text: str, values: dict[str, ir.Value]) -> Any:
    text = text.strip()
    if text[:1] in ("%", "@"):
        name = text[0] + (json.loads(text[1:]) if text[1:2] == '"' else text[1:])
        if name not in values:
            raise ValueError(f"{text} is used before it is defined")
        return values[name]
    if text in _WORDS:
        return _WORDS[text]
    if text.startswith("["):
        return [_operand(t, values) for t in split(text[1:-1])]
    if text.startswith("^"):
        return ir.RegionRef(int(text[1:]))
    if text.startswith('"'):
        return json.loads(text)
    if text.startswith("torch."):
        found = getattr(torch, text.removeprefix("torch."))
        if not isinstance(found, (torch.dtype, torch.memory_format, torch.layout)):
            raise ValueError(f"{text} is not a dtype, memory format or layout")
        return found
    if text.startswith('device("'):
        return torch.device(json.loads(text.removeprefix("device(").removesuffix(")")))
    if text.startswith("complex("):
        return complex(*(float(part) for part in split(text.removeprefix("complex(").removesuffix(")"))))
    if _FLOAT.fullmatch(text):
        return float(text)
    return parse_dim(text)
