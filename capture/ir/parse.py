"""Text -> graph: a reader for exactly what text.py prints. Nothing in the text is executed.

The grammar is written out in docs/ir.md; each method below reads one of its rules.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from capture.errors import CaptureError
from capture.ir import graph as ir
from capture.ir.dims import is_name, read_dim
from capture.ir.ops import is_region_op, resolve_op
from capture.ir.origin import Origin
from capture.ir.scan import IDENTIFIER, INTEGER, Scanner, split
from capture.ir.types import (
    CONTIGUOUS,
    DTYPES,
    MEMORY_FORMATS,
    SCALAR_KINDS,
    LiteralType,
    Range,
    ScalarType,
    TensorType,
    ValueType,
)

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_DOTTED = re.compile(r"[A-Za-z0-9_.]+")
_FLOAT = re.compile(r"-?(?:[0-9]+\.[0-9]*(?:e[+-]?[0-9]+)?|[0-9]+e[+-]?[0-9]+|(?:inf|nan)\b)")
_WORD = re.compile(r"(?:None|True|False)\b")
_WORDS = {"None": None, "True": True, "False": False}
_KEYWORD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")
_DEVICE = re.compile(r"[a-z_]+(?::[0-9]+)?")
_RETURN = re.compile(r"return(?![A-Za-z0-9_.])")
_WRITE = re.compile(r"write(?![A-Za-z0-9_.])")
_TORCH = re.compile(r"torch\.([a-z0-9_]+)")
_TORCH_LITERALS = {
    name: value
    for name, value in vars(torch).items()
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout))
}

Names = dict[str, ir.Value]  # what the text calls a value, sigil included


def parse(text: str) -> ir.Graph:
    """Read a graph from its text.

    Raises:
        CaptureError: the text is not a graph's; the message names the line.
    """
    return _Reader(text).read()


class _Reader:
    """Goes through the text line by line; blank lines and indentation do not matter."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.at = 0
        self.line = Scanner("")

    def read(self) -> ir.Graph:
        try:
            self._to_line(0)
            graph = self._graph()
            if self.at < len(self.lines):
                raise ValueError("text after the end of the graph")
            return graph
        except (ValueError, KeyError, TypeError, RecursionError, ArithmeticError) as error:
            shown = self.lines[self.at].strip() if self.at < len(self.lines) else "(end of the text)"
            why = "nested too deeply" if isinstance(error, RecursionError) else str(error.args[0])
            raise CaptureError(
                "cannot read the graph's text", where=f"line {self.at + 1}:  {shown}", why=why
            ) from error

    def _to_line(self, at: int) -> None:
        """Go to line `at`, or to the first one behind it that is not blank."""
        while at < len(self.lines) and not self.lines[at].strip():
            at += 1
        self.at = at
        self.line = Scanner(self.lines[at].strip() if at < len(self.lines) else "")

    def _end_line(self) -> None:
        self.line.finish()
        self._to_line(self.at + 1)

    def _graph(self) -> ir.Graph:
        graph, names = ir.Graph(), Names()
        self.line.expect("graph(")
        self._parameters(graph, names)
        if self.line.take("where "):
            self._dim(graph)
            while self.line.take(","):
                self._dim(graph)
        self._end_line()
        self._body(graph, names)
        return graph

    def _dim(self, graph: ir.Graph) -> None:
        name = self.line.need(IDENTIFIER, "the name of a size")
        if not is_name(name) or name in graph.dims:
            raise ValueError(f"the size {name!r} is defined twice, or has a name that means something else")
        self.line.expect("in ")
        self.line.expect("[")
        lower = int(self.line.need(INTEGER, "a lower bound"))
        self.line.expect(",")
        upper = None if self.line.take("inf") else int(self.line.need(INTEGER, "an upper bound or `inf`"))
        self.line.expect("]")
        if upper is not None and upper < lower:
            raise ValueError(f"the range of {name} is empty")
        graph.dims[name] = Range(lower, upper)

    def _parameters(self, graph: ir.Graph, names: Names) -> None:
        """``%a: f32[2], %b: i64[]`` up to the closing parenthesis."""
        if self.line.take(")"):
            return
        while True:
            name, type_ = self._typed("%")
            _define(names, f"%{name}", graph.add_input(name, type_))
            if not self.line.take(","):
                break
        self.line.expect(")")

    def _typed(self, sigil: str) -> tuple[str, ValueType]:
        self.line.expect(sigil)
        name = _name(self.line)
        self.line.expect(":")
        return name, read_type(self.line)

    def _body(self, graph: ir.Graph, names: Names) -> None:
        """Constants and nodes, the `return` and the write-backs."""
        while self.line.match(_RETURN) is None:
            if self.at >= len(self.lines):
                raise ValueError("the text ends before the graph's `return`")
            if self.line.sees("@"):
                self._constant(graph, names)
            else:
                self._node(graph, names)
        graph.set_results([] if self.line.at_end else self._operands(names))
        self._end_line()
        while self.line.match(_WRITE) is not None:
            target = read_operand(self.line, names)
            self.line.expect("=")
            value = read_operand(self.line, names)
            if (
                not isinstance(target, ir.Value)
                or not isinstance(value, ir.Value)
                or target in graph.writebacks
            ):
                raise ValueError("expected `write %input = %value`, each target once")
            graph.set_writeback(target, value)
            self._end_line()

    def _operands(self, names: Names) -> list[Any]:
        operands = [read_operand(self.line, names)]
        while self.line.take(","):
            operands.append(read_operand(self.line, names))
        return operands

    def _constant(self, graph: ir.Graph, names: Names) -> None:
        name, type_ = self._typed("@")
        if not isinstance(type_, TensorType) or f"@{name}" in names:
            raise ValueError(f"@{name} is defined twice, or is no tensor")
        _define(names, f"@{name}", graph.add_constant(name, type_))
        self._end_line()

    def _node(self, graph: ir.Graph, names: Names) -> None:
        results: list[tuple[str, ValueType]] = []
        if self.line.sees("%"):
            results.append(self._typed("%"))
            while self.line.take(","):
                results.append(self._typed("%"))
            self.line.expect("=")
        op = resolve_op(self.line.need(_DOTTED, "an operator"))
        self.line.expect("(")
        operands, kwargs = self._arguments(names)
        impl = self._impl()
        has_region = self.line.take("{")
        if has_region != is_region_op(op):
            raise ValueError(f"{op} {'has no region' if has_region else 'needs a region'}")
        origin = Origin()
        if self.line.take("#"):
            origin = Origin.parse(self.line.text[self.line.at :])
        else:
            self.line.finish()
        regions = self._regions(graph) if has_region else []
        node = graph.add_node(
            op, operands, kwargs, types=[t for _, t in results], origin=origin, regions=regions, impl=impl
        )
        for (name, _), value in zip(results, node.results, strict=True):
            _define(names, f"%{name}", value)
        self._to_line(self.at + 1)

    def _arguments(self, names: Names) -> tuple[list[Any], dict[str, Any]]:
        """Operands, then keyword operands, up to the closing parenthesis."""
        operands: list[Any] = []
        kwargs: dict[str, Any] = {}
        if self.line.take(")"):
            return operands, kwargs
        while True:
            keyword = self.line.match(_KEYWORD)
            operand = read_operand(self.line, names)
            if keyword is None and not kwargs:
                operands.append(operand)
            elif keyword is not None and keyword[1] not in kwargs:
                kwargs[keyword[1]] = operand
            else:
                raise self.line.error("each keyword once, behind the other operands")
            if not self.line.take(","):
                break
        self.line.expect(")")
        return operands, kwargs

    def _impl(self) -> ir.Impl | None:
        if not self.line.take("via "):
            return None
        kernel = self.line.need(_DOTTED, "a kernel")
        self.line.expect("(")
        positional, options = self._arguments({})
        if positional:
            raise self.line.error("options as `name=value`")
        return ir.Impl(kernel, options)

    def _regions(self, graph: ir.Graph) -> list[ir.Graph]:
        """The regions of the node on the present line; stops on the line of the last brace."""
        regions: list[ir.Graph] = []
        while True:
            region, names = graph.new_region(), Names()
            self._to_line(self.at + 1)
            self.line.expect("^(")
            self._parameters(region, names)
            self._end_line()
            self._body(region, names)
            if region.writebacks:
                raise ValueError("a region has no write-backs")
            regions.append(region)
            self.line.expect("}")
            if not self.line.take("{"):
                self.line.finish()
                return regions
            self.line.finish()


def _define(names: Names, name: str, value: ir.Value) -> None:
    if name in names:
        raise ValueError(f"{name} is defined twice")
    names[name] = value


def _name(scanner: Scanner) -> str:
    return scanner.string() if scanner.sees('"') else scanner.need(_PLAIN_NAME, "a name")


def parse_type(text: str) -> ValueType:
    """Read a type, such as ``f32[N, 3]`` or ``int(u0)``. Raises ValueError."""
    scanner = Scanner(text)
    type_ = read_type(scanner)
    scanner.finish()
    return type_


def read_type(scanner: Scanner) -> ValueType:
    """Read a type from where the scanner stands. Raises ValueError."""
    if scanner.take("="):
        return LiteralType(read_operand(scanner, {}))
    word = scanner.need(IDENTIFIER, "a type")
    if word in DTYPES and scanner.take("["):
        return _tensor_type(DTYPES[word], scanner)
    if word not in SCALAR_KINDS:
        raise ValueError(f"there is no type {word}")
    if not scanner.take("("):
        return ScalarType(word)
    size = read_dim(scanner)
    scanner.expect(")")
    return ScalarType(word, size)


def _tensor_type(dtype: torch.dtype, scanner: Scanner) -> TensorType:
    shape = []
    if not scanner.take("]"):
        shape.append(read_dim(scanner))
        while scanner.take(","):
            shape.append(read_dim(scanner))
        scanner.expect("]")
    found = scanner.match(IDENTIFIER)
    format_ = CONTIGUOUS if found is None else found[0]
    if format_ not in MEMORY_FORMATS:
        raise ValueError(f"there is no memory format {format_}")
    device = _device(scanner.need(_DEVICE, "a device")) if scanner.take("@") else torch.device("cpu")
    return TensorType(dtype, tuple(shape), format_, device)


def _device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise ValueError(f"there is no device {text!r}") from error


def read_operand(scanner: Scanner, names: Names) -> Any:
    """Read an operand from where the scanner stands; `names` are the values known. Raises ValueError."""
    for sigil in "%@":
        if scanner.take(sigil):
            name = sigil + _name(scanner)
            if name not in names:
                raise ValueError(f"{name} is used before it is defined")
            return names[name]
    if scanner.take("["):
        items: list[Any] = []
        while not scanner.take("]"):
            if items:
                scanner.expect(",")
            items.append(read_operand(scanner, names))
        return items
    if scanner.sees('"'):
        return scanner.string()
    if scanner.take("^"):
        return ir.RegionRef(int(scanner.need(INTEGER, "the number of a region")))
    return _literal(scanner)


def _literal(scanner: Scanner) -> Any:
    if word := scanner.match(_WORD):
        return _WORDS[word[0]]
    if number := scanner.match(_FLOAT):
        return float(number[0])
    if found := scanner.match(_TORCH):
        if found[1] not in _TORCH_LITERALS:
            raise ValueError(f"{found[0]} is not a dtype, memory format or layout")
        return _TORCH_LITERALS[found[1]]
    if scanner.take("device("):
        device = _device(scanner.string())
        scanner.expect(")")
        return device
    if scanner.take("complex("):
        real = float(scanner.need(_FLOAT, "a float"))
        scanner.expect(",")
        imaginary = float(scanner.need(_FLOAT, "a float"))
        scanner.expect(")")
        return complex(real, imaginary)
    return read_dim(scanner)


__all__ = ["parse", "parse_type", "read_operand", "read_type", "split"]
