"""The skeleton of a generated module: header, `load`, `forward`. ops.py and kernels.py print the calls."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from typing import Any

import sympy
import torch

from capture.errors import UnsupportedOpError
from capture.ir import Constant, Fusion, Graph, Node, ScalarType, TensorType, Value, dims, op_name
from capture.ir.text import names
from codegen.python.arena import ArenaLayout
from codegen.python.kernels import KERNELS, PRELUDE
from codegen.python.ops import call_text
from codegen.python.regions import region_lines
from passes.destinations import in_place_form, out_form

aten = torch.ops.aten
_COMMENT_COLUMN = 100
_RESERVED = {
    "torch",
    "F",
    "aten",
    "w",
    "m",
    "load",
    "forward",
    "Arena",
    "arenas",
    "SimpleNamespace",
    *PRELUDE,
}


def emit(graph: Graph, *, title: str = "") -> str:
    """The graph as the source of a Python module that needs PyTorch alone.

    ``load(state)`` takes the constants by name and packs those that kernels want packed; ``forward(*inputs)``
    takes the flat inputs and returns the list of results. Values that the memory plan puts into the arena are
    written there; each call in flight has an arena of its own.

    Raises:
        UnsupportedOpError: an operator that has no Python form here; names it and the user's line.
    """
    return Writer(graph, title).module()


class Writer:
    """Prints one graph. Kernels and regions call the methods of the first section."""

    def __init__(self, graph: Graph, title: str = "") -> None:
        self.graph = graph
        self.title = title
        self.names: dict[Value, str] = {}
        self.taken = set(_RESERVED)
        self.numbers = names(graph)  # %12 in the graph's text is v12 here
        self.used: set[str] = set()
        self.loads: dict[str, str] = {}
        self.dims: dict[str, str] = {}
        self.arena = ArenaLayout.of(graph)
        self.functions: list[str] = []

    # -- what kernels call --------------------------------------------------------------------------------

    def text(self, operand: Any) -> str:
        """An operand as a Python expression."""
        if isinstance(operand, Constant):
            return self._weight(operand)
        if isinstance(operand, Value):
            return self.names[operand]
        if isinstance(operand, (list, tuple)):
            return f"[{', '.join(self.text(v) for v in operand)}]"
        if isinstance(operand, sympy.Expr):
            return _expression(operand, self.dims)
        if isinstance(operand, float) and operand not in (operand, float("inf"), float("-inf")):
            return 'float("nan")'
        if isinstance(operand, float) and operand in (float("inf"), float("-inf")):
            return f'float("{operand}")'
        if isinstance(operand, torch.device):
            return f'"{operand}"'
        return repr(operand)

    def packed(self, weight: Constant, function: str, call: str, suffix: str) -> str:
        """The packed form of a weight: a line in `load`, an attribute of `w`."""
        attribute = _identifier(weight.name + suffix)
        line = f"{self.uses(function)}({call.format(tensor=_state(weight))})"
        while self.loads.get(attribute, line) != line:  # the same weight packed in two ways
            attribute += "_"
        self.loads[attribute] = line
        return f"w.{attribute}"

    def uses(self, name: str) -> str:
        """Note that the module needs a name of the prelude."""
        self.used.add(name)
        return name

    def overwrites(self, node: Node, operand: int | None) -> bool:
        """Whether the memory plan has this node write its result over that operand."""
        return operand is not None and self.arena.overwritten(node.results[0]) is node.operands[operand]

    def destination(self, node: Node) -> str | None:
        """The memory that the plan gives the node's only result, or None where the operator allocates it."""
        if len(node.results) != 1:
            return None
        value = node.results[0]
        if value in self.arena.in_place:
            operand = self.arena.overwritten(value)
            return self.names[operand] if operand is not None else None
        return self.arena.view(value, self.names[value])

    def call(self, node: Node, destination: str | None = None) -> str:
        """One ATen call; into `destination` where the operator can truly write there."""
        args = [self.text(v) for v in node.operands]
        keywords = [f"{k}={self.text(v)}" for k, v in node.kwargs.items()]
        if destination is not None and (form := out_form(node.op)) is not None:
            extra = [self.text(v) for v in form.extra]
            return call_text(form.overload, [*args, *extra, *keywords, f"{form.out}={destination}"])
        over_first = in_place_form(node.op) if destination is not None and args[0] == destination else None
        return call_text(over_first or node.op, args + keywords)

    # -- the module ---------------------------------------------------------------------------------------

    def module(self) -> str:
        body = [f"    {line}" for line in self._forward()]
        parameters = ", ".join(self.names[v] for v in self.graph.inputs)
        types = ", ".join(str(v.type) for v in self.graph.inputs)
        prelude = [PRELUDE[name] for name in PRELUDE if name in self.used]
        lines = [
            *self._header(),
            "",
            "from types import SimpleNamespace",
            "",
            "import torch",
            "import torch.nn.functional as F",
            "",
            "aten = torch.ops.aten",
            *prelude,
            "",
            "w = SimpleNamespace()  # weights, set by load()",
            *self.arena.source(),
            "",
            "",
            "def load(state):",
            '    """Take the weights from `state` (name -> tensor) and pack them for their kernels."""',
            *(f"    w.{name} = {value}" for name, value in self.loads.items()),
            *([] if self.loads else ["    del state  # this graph has no weights"]),
            *self.functions,
            "",
            "",
            f"def forward({parameters}):",
            f'    """{types} -> {", ".join(_type_text(v) for v in self.graph.results)}"""',
            *body,
        ]
        return "\n".join(lines) + "\n"

    def _header(self) -> list[str]:
        name = self.title or self.graph.name
        source = f", captured by {self.graph.frontend}" if self.graph.frontend else ""
        lines = [f"# {name}{source}. Runs without torch-capture: load(state), then forward(...)."]
        return lines + self.arena.comment()

    def _forward(self) -> list[str]:
        for value in self.graph.inputs:
            self.names[value] = self._fresh(value.name or "arg")
        lines = [*self._bind_dims(self.graph.inputs)]
        start = len(lines)
        dying = self._dying(self.graph)
        for node in self.graph.nodes:
            for result in node.results:
                self.names[result] = self._fresh(f"v{self.numbers[result].removeprefix('%')}")
            lines += _commented(self._node(node), node, dying.get(node, []), self.names)
            lines += self._bind_dims(node.results)
        for target, value in self.graph.writebacks.items():
            lines.append(f"{self.text(target)}.copy_({self.text(value)})")
        if self.arena.views:
            lines.insert(start, "m = arenas.pop() if arenas else Arena()")
            lines.append("arenas.append(m)")
        lines.append(f"return {self.text(self.graph.results)}")
        return lines

    def _node(self, node: Node) -> list[str]:
        left = self._targets(node)
        if node.impl is not None and node.impl.kernel in KERNELS:
            return [f"{left}{KERNELS[node.impl.kernel](self, node)}"]
        if isinstance(node.op, Fusion):
            return region_lines(self, node)
        if node.regions:
            return [f"{left}{self._cond(node)}"]
        return [f"{left}{self.call(node, self.destination(node))}"]

    def _targets(self, node: Node) -> str:
        if not node.results:
            return ""
        many = len(node.results) > 1 or _returns_sequence(node)
        names = [self.names[v] for v in node.results]
        return f"{', '.join(names)}{',' if many and len(names) == 1 else ''} = "

    def _cond(self, node: Node) -> str:
        """torch.cond as a Python conditional between two functions."""
        if op_name(node.op) != "higher_order.cond":
            raise UnsupportedOpError(
                f"{op_name(node.op)} has no Python form",
                where=str(node.origin) or None,
                hint='backend="eager"',
            )
        predicate, _, _, operands = node.operands
        calls = []
        for word, region in zip(("true", "false"), node.regions, strict=True):
            inner = Writer(region)
            inner.loads, inner.used, inner.functions = self.loads, self.used, self.functions
            inner.dims = dict(self.dims)
            inner.taken |= self.taken
            name = self._fresh(f"{word}_branch")
            body = [f"    {line}" for line in inner._forward()]
            free = list(self.dims.values())
            parameters = [inner.names[v] for v in region.inputs] + free
            self.functions += ["", "", f"def {name}({', '.join(parameters)}):", *body]
            calls.append(f"{name}({', '.join([*(self.text(v) for v in operands), *free])})")
        return f"{calls[0]} if {self.text(predicate)} else {calls[1]}"

    # -- names --------------------------------------------------------------------------------------------

    def _fresh(self, wanted: str) -> str:
        name = base = _identifier(wanted)
        count = 1
        while name in self.taken:
            name, count = f"{base}_{count}", count + 1
        self.taken.add(name)
        return name

    def _weight(self, constant: Constant) -> str:
        attribute = _identifier(constant.name)
        self.loads.setdefault(attribute, _state(constant))
        return f"w.{attribute}"

    def _bind_dims(self, values: Iterable[Value]) -> list[str]:
        lines = []
        for value in values:
            for name, expression in _dims_in(value, self.names.get(value, "")):
                if name not in self.dims:
                    self.dims[name] = self._fresh(name)
                    lines.append(f"{self.dims[name]} = {expression}")
        return lines

    def _dying(self, graph: Graph) -> dict[Node, list[Value]]:
        """Per node, the results of nodes that nobody needs after it."""
        last: dict[Value, Node] = {}
        for node in graph.nodes:
            last.update(dict.fromkeys(node.results, node))
            last.update({v: node for v in node.operand_values if v.producer is not None})
        dying: dict[Node, list[Value]] = {}
        for value, node in last.items():
            if not value.is_result:
                dying.setdefault(node, []).append(value)
        return dying


def _commented(lines: list[str], node: Node, dead: list[Value], names: dict[Value, str]) -> list[str]:
    """Add the deletions and the comment (type and origin) to a node's last line."""
    *before, line = lines
    gone = [names[v] for v in dead]
    if gone:
        line += f"; del {', '.join(gone)}"
    types = ", ".join(str(v.type) for v in node.results)
    return [*before, f"{line.ljust(_COMMENT_COLUMN)}  # {types}   {node.origin}".rstrip()]


def _expression(expr: dims.Dim, names: dict[str, str]) -> str:
    """A size as a Python expression over local names."""
    text = dims.format_dim(expr)
    return re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), text)


def _dims_in(value: Value, text: str) -> list[tuple[str, str]]:
    if isinstance(value.type, ScalarType) and isinstance(value.type.expr, sympy.Symbol):
        return [(value.type.expr.name, text)]
    if not isinstance(value.type, TensorType):
        return []
    found = []
    for axis, dim in enumerate(value.type.shape):
        if isinstance(dim, sympy.Symbol):
            found.append((dim.name, f"{text}.shape[{axis}]"))
        elif isinstance(dim, sympy.Expr) and len(dim.free_symbols) == 1:
            solved = _solve(dim, f"{text}.shape[{axis}]")
            found += [solved] if solved else []
    return found


def _solve(dim: sympy.Expr, size: str) -> tuple[str, str] | None:
    """The name in a size that is linear in it, as an expression of the size: 2*N + 1 -> (size - 1) // 2."""
    (symbol,) = dim.free_symbols
    slope = dim.diff(symbol)
    if not (slope.is_Integer and slope != 0):
        return None
    return symbol.name, f"({size} - {dim.subs(symbol, 0)}) // {slope}"


def _returns_sequence(node: Node) -> bool:
    if isinstance(node.op, Fusion):
        return False
    if node.regions:
        return True
    returns = node.op._schema.returns
    return len(returns) == 1 and str(returns[0].type).startswith("List")


def _type_text(value: Any) -> str:
    return str(value.type) if isinstance(value, Value) else repr(value)


def _state(constant: Constant) -> str:
    return f'state["{constant.name}"]'


def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W", "_", name)
    if cleaned[:1].isdigit() or not cleaned:
        cleaned = f"_{cleaned}"
    return f"{cleaned}_" if keyword.iskeyword(cleaned) else cleaned
