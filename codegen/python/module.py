"""The skeleton of a generated module: header, `load`, `forward`. ops.py and kernels.py print the calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sympy

from capture.errors import UnsupportedOpError
from capture.ir import Constant, Fusion, Graph, Node, TensorType, Value, dims, op_name
from capture.ir.quantized import NAMESPACE as QUANTIZED
from capture.ir.text import names
from codegen.python.arena import ArenaLayout
from codegen.python.kernels import KERNELS, PRELUDE
from codegen.python.ops import call_text
from codegen.python.regions import region_lines
from codegen.python.sizes import expression, factor, sizes_of, solution
from codegen.python.spelling import comment, docstring, identifier, literal, quoted
from passes.aliases import may_share
from passes.destinations import in_place_form, out_form, takes_any_strides
from passes.reinplace import is_written, sound_updates
from passes.updates import update_form, updated_operand

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
    "take_arena",
    "SimpleNamespace",
    "float",
    "complex",
    "max",
    "min",
    *PRELUDE,
}


def emit(graph: Graph, *, title: str = "", boxed: bool = False) -> str:
    """The graph as the source of a Python module that needs PyTorch alone.

    ``load(state)`` takes the constants by name and packs those that kernels want packed; ``forward(*inputs)``
    takes the flat inputs and returns the list of results. Values that the memory plan puts into the arena are
    written there; each call in flight has an arena of its own.

    Args:
        boxed: ``forward`` takes the inputs in one list, empties it, and lets go of each after its last use.

    Raises:
        UnsupportedOpError: an operator that has no Python form here; names it and the user's line.
    """
    return Writer(graph, title, boxed).module()


class Writer:
    """Prints one graph. Kernels and regions call the methods of the first section."""

    def __init__(self, graph: Graph, title: str = "", boxed: bool = False) -> None:
        self.graph = graph
        self.title = title
        self.boxed = boxed
        self.names: dict[Value, str] = {}
        self.taken = {*_RESERVED, "inputs"} if boxed else set(_RESERVED)
        self.numbers = names(graph)  # %12 in the graph's text is v12 here
        self.used: set[str] = set()
        self.loads: dict[str, str] = {}
        self.dims: dict[str, str] = {}
        self.arena = ArenaLayout.of(graph)
        self.updates = sound_updates(graph)
        self.functions: dict[str, list[str]] = {}  # branches of conditions, by name
        self.kept: dict[Any, str] = {}  # copies of what is written over at the end

    # -- what kernels call --------------------------------------------------------------------------------

    def text(self, operand: Any) -> str:
        """An operand as a Python expression."""
        if isinstance(operand, Constant):
            return self._load(operand.name, _state(operand))
        if isinstance(operand, Value):
            return self.names[operand]
        if isinstance(operand, (list, tuple)):
            return f"[{', '.join(self.text(v) for v in operand)}]"
        if isinstance(operand, sympy.Expr):
            return expression(operand, self.dims)
        return literal(operand)

    def packed(self, weight: Constant, function: str, options: str, suffix: str) -> str:
        """The packed form of a weight: a line in `load`, an attribute of `w`."""
        arguments = ", ".join(filter(None, [_state(weight), options]))
        return self._load(weight.name + suffix, f"{self.uses(function)}({arguments})")

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
        if node in self.updates:
            return self.text(updated_operand(node))
        if value in self.arena.in_place:
            operand = self.arena.overwritten(value)
            return self.names[operand] if operand is not None else None
        return self.arena.view(value, self.names[value])

    def call(self, node: Node, destination: str | None = None) -> str:
        """One ATen call; into `destination` where the operator can truly write there."""
        args = [self.text(v) for v in node.operands]
        keywords = [f"{k}={self.text(v)}" for k, v in node.kwargs.items()]
        if getattr(node.op, "namespace", "") == QUANTIZED:
            self.uses("decomposed")
        if destination is None or not self.writes_into(node, destination):
            return call_text(node.op, args + keywords)
        if (form := out_form(node.op)) is not None:
            extra = [self.text(v) for v in form.extra]
            return call_text(form.overload, [*args, *extra, *keywords, f"{form.out}={destination}"])
        return call_text(in_place_form(node.op), args + keywords)

    def writes_into(self, node: Node, destination: str) -> bool:
        """Whether `call` makes the operator write there."""
        over_first = bool(node.operands) and self.text(node.operands[0]) == destination
        if out_form(node.op) is not None:
            return over_first or takes_any_strides(node)
        return over_first and in_place_form(node.op) is not None

    def targets(self, node: Node) -> str:
        """The left side of a node's line: ``v3, v4 = ``."""
        if not node.results:
            return ""
        many = len(node.results) > 1 or _returns_sequence(node)
        names = [self.names[v] for v in node.results]
        return f"{', '.join(names)}{',' if many and len(names) == 1 else ''} = "

    # -- the module ---------------------------------------------------------------------------------------

    def module(self) -> str:
        body = [f"    {line}" for line in self._forward()]
        parameters = "inputs" if self.boxed else ", ".join(self.names[v] for v in self.graph.inputs)
        types = ", ".join(str(v.type) for v in self.graph.inputs)
        results = ", ".join(_type_text(v) for v in self.graph.results)
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
            *(line for lines in self.functions.values() for line in lines),
            "",
            "",
            f"def forward({parameters}):",
            f'    """{docstring(f"{types} -> {results}")}"""',
            *body,
        ]
        return "\n".join(lines) + "\n"

    def _header(self) -> list[str]:
        name = self.title or self.graph.name
        source = f", captured by {self.graph.frontend}" if self.graph.frontend else ""
        line = f"# {name}{source}. Runs without torch-capture: load(state), then forward(...)."
        return [comment(line), *self.arena.comment()]

    def _forward(self) -> list[str]:
        for value in self.graph.inputs:
            self.names[value] = self.fresh(value.name or "arg")
        lines = self._unboxed() if self.boxed else []
        lines += self._bind_dims(self.graph.inputs)
        start = len(lines)
        dying = self._dying(self.graph)
        for node in self.graph.nodes:
            for result in node.results:
                self.names[result] = self.fresh(f"v{self.numbers[result].removeprefix('%')}")
            lines += self._statement(node, dying.get(node, []))
        lines += self._write_back()
        if self.arena.views:
            lines.insert(start, "m = take_arena()")
            lines.append("arenas.append(m)")
        results = [self.kept.get(v) or self.text(v) for v in self.graph.results]
        lines.append(f"return [{', '.join(results)}]")
        return lines

    def _unboxed(self) -> list[str]:
        """Lines that take the inputs out of their list, and let go of those that nothing reads."""
        if not self.graph.inputs:
            return []
        names = "".join(f"{self.names[v]}, " for v in self.graph.inputs)
        lines = [f"{names.rstrip()} = inputs", "inputs.clear()"]
        unread = [self.names[v] for v in self.graph.inputs if self._may_go(v) and not v.num_uses]
        return [*lines, f"del {', '.join(unread)}"] if unread else lines

    def _may_go(self, value: Value) -> bool:
        """Whether a value is let go after its last use; only a boxed call's inputs can be."""
        if value.is_result or value in self.graph.writebacks:
            return False
        return value.producer is not None or (
            self.boxed and value.is_input and isinstance(value.type, TensorType)
        )

    def _statement(self, node: Node, dead: list[Value]) -> list[str]:
        """A node's lines: the call, its comment, the sizes that its results tell, what is let go after it."""
        *before, line = self._node(node)
        sizes = self._bind_dims(node.results)
        gone = f"del {', '.join(self.names[v] for v in dead)}" if dead else ""
        if gone and not sizes:
            line, gone = f"{line}; {gone}", ""
        types = ", ".join(str(v.type) for v in node.results)
        line = f"{line.ljust(_COMMENT_COLUMN)}  # {comment(f'{types}   {node.origin}')}".rstrip()
        return [*before, line, *sizes, *([gone] if gone else [])]

    def _write_back(self) -> list[str]:
        """Copies into what the model updates; old content that is still to be read is put aside first."""
        old = _views_of_targets(self.graph)
        needed = [v for v in self.graph.result_values if v in old and self.graph.writebacks.get(v) is not v]
        lines = []
        for value in dict.fromkeys(needed):
            name = self.fresh("old")
            lines.append(f"{name} = {self.text(value)}.clone()")
            self.kept[value] = name
        for target, value in self.graph.writebacks.items():
            if value is not target and not (value.producer in self.updates and is_written(target, value)):
                lines.append(f"{self.text(target)}.copy_({self.kept.get(value) or self.text(value)})")
        return lines

    def _node(self, node: Node) -> list[str]:
        left = self.targets(node)
        if node in self.updates and not isinstance(node.op, Fusion):
            return self._update(node, left)
        if node.impl is not None and node.impl.kernel in KERNELS:
            return [f"{left}{KERNELS[node.impl.kernel](self, node)}"]
        if isinstance(node.op, Fusion):
            return region_lines(self, node)
        if node.regions:
            return [f"{left}{self._cond(node)}"]
        return [f"{left}{self.call(node, self.destination(node))}"]

    def _update(self, node: Node, left: str) -> list[str]:
        """A node whose recipe says that it writes into an operand: the result is that operand's memory."""
        form = update_form(node)
        assert form is not None  # or it would have no such recipe
        args = [self.text(v) for v in node.operands]
        args += [f"{k}={self.text(v)}" for k, v in node.kwargs.items()]
        if not form.part:
            return [f"{left}{call_text(form.overload, args)}"]
        part = call_text(form.overload, [args[0], *args[2:]])
        return [f"{part}.copy_({args[1]})", f"{left}{args[0]}"]

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
            name = self.fresh(f"{word}_branch")
            self.functions[name] = []  # the name is taken, for the branches inside too
            inner = Writer(region)
            inner.loads, inner.used, inner.functions = self.loads, self.used, self.functions
            inner.dims = dict(self.dims)
            inner.taken |= set(self.dims.values())
            body = [f"    {line}" for line in inner._forward()]
            free = list(self.dims.values())
            parameters = [inner.names[v] for v in region.inputs] + free
            self.functions[name] = ["", "", f"def {name}({', '.join(parameters)}):", *body]
            calls.append(f"{name}({', '.join([*(self.text(v) for v in operands), *free])})")
        return f"{calls[0]} if {self.text(predicate)} else {calls[1]}"

    # -- names --------------------------------------------------------------------------------------------

    def fresh(self, wanted: str) -> str:
        """A local name that nothing else has."""
        name = base = identifier(wanted)
        count = 1
        while name in self.taken or name in self.functions:
            name, count = f"{base}_{count}", count + 1
        self.taken.add(name)
        return name

    def _load(self, name: str, line: str) -> str:
        """The attribute of `w` that `load` gives this value."""
        attribute = identifier(name)
        while (
            self.loads.get(attribute, line) != line
        ):  # names that look alike, or a weight packed in two ways
            attribute += "_"
        self.loads[attribute] = line
        return f"w.{attribute}"

    def _bind_dims(self, values: Iterable[Value]) -> list[str]:
        """Lines that read unknown sizes off the values: ``N = x.shape[0]``, ``M = v3.shape[1] // 2``."""
        sizes = [pair for value in values for pair in sizes_of(value, self.names.get(value, ""))]
        lines: list[str] = []
        found = True
        while found:
            found = False
            for dim, text in sizes:
                if (solved := dims.unknown(dim, self.dims)) is not None:
                    name, slope, rest = solved
                    solved_for = solution(text, factor(slope, self.dims), factor(rest, self.dims))
                    self.dims[name] = self.fresh(name)
                    lines.append(f"{self.dims[name]} = {solved_for}")
                    found = True
        return lines

    def _dying(self, graph: Graph) -> dict[Node, list[Value]]:
        """Per node, the values that nobody needs after it."""
        last: dict[Value, Node] = {}
        for node in graph.nodes:
            last.update(dict.fromkeys(node.results, node))
            last.update(dict.fromkeys(node.operand_values, node))
        dying: dict[Node, list[Value]] = {}
        for value, node in last.items():
            if self._may_go(value):
                dying.setdefault(node, []).append(value)
        return dying


def _views_of_targets(graph: Graph) -> set[Value]:
    """What the graph writes over at its end, and all that may be a view of it."""
    found: set[Value] = set(graph.writebacks)
    for node in graph.nodes:
        inner = node.region.nodes if isinstance(node.op, Fusion) and node.region is not None else [node]
        if any(may_share(n.op) for n in inner) and not found.isdisjoint(node.operand_values):
            found.update(node.results)
    return found


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
    return f"state[{quoted(constant.name)}]"
