"""Recorders of one call: when each op began, how long it took, and which line of the user's code it is.

`EagerRecorder` times the ATen ops of plain PyTorch as they are dispatched. `LineRecorder` times the lines of
a generated module. Both add their own cost between ops, not to them.
"""

from __future__ import annotations

import io
import sys
import time
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from capture.frontends.source import Sources, is_user_file
from capture.ir import Graph, Node, op_name
from capture.ir.text import names

__all__ = ["EagerRecorder", "Event", "LineRecorder", "line_nodes"]


@dataclass(frozen=True)
class Event:
    """One op of one call; times in microseconds, `start` counted from the start of the call."""

    name: str
    op: str
    module: str
    file: str
    line: int
    start: float
    microseconds: float


class EagerRecorder(TorchDispatchMode):
    """Times every ATen op that runs under it, with its module and the user's line that asked for it.

    A higher-order op, such as `torch.cond`, is timed as a whole: torch lets no mode see into it.
    """

    supports_higher_order_operators = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._sources = Sources()
        self._paths = {id(m): n for n, m in model.named_modules()} if isinstance(model, nn.Module) else {}
        self._stack: list[str] = []
        self._hooks: list[Any] = []
        self._begin = 0

    def __enter__(self) -> EagerRecorder:
        self._hooks = [
            register_module_forward_pre_hook(
                lambda module, _: self._stack.append(self._paths.get(id(module), ""))
            ),
            register_module_forward_hook(lambda *_: self._stack.pop() and None, always_call=True),
        ]
        self._begin = time.perf_counter_ns()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        start = time.perf_counter_ns()
        result = func(*args, **kwargs)
        end = time.perf_counter_ns()
        file, line = self._place(sys._getframe(1))
        module = next((path for path in reversed(self._stack) if path), "")
        name = f"{op_name(func)}#{len(self.events)}"
        began, took = (start - self._begin) / 1e3, (end - start) / 1e3
        self.events.append(Event(name, op_name(func), module, file, line, began, took))
        return result

    def _place(self, frame: FrameType | None) -> tuple[str, int]:
        """The innermost user frame, its file as seen from the import root."""
        while frame is not None:
            if is_user_file(frame.f_code.co_filename):
                return self._sources.path(frame.f_code.co_filename), frame.f_lineno
            frame = frame.f_back
        return "", 0


class LineRecorder:
    """Times each line of a generated module's `forward`; a node may take several lines."""

    def __init__(self, module: ModuleType, nodes: dict[int, Node], named: dict[Node, str]) -> None:
        self.events: list[Event] = []
        self._code = module.forward.__code__
        self._nodes, self._named = nodes, named
        self._marks: list[tuple[int, int]] = []  # (line, nanoseconds at which it began)
        self._before: Any = None

    def __enter__(self) -> LineRecorder:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: Any) -> None:
        sys.settrace(self._before)
        spent: dict[Node, Event] = {}
        first = self._marks[0][1] if self._marks else 0
        for (line, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            node = self._nodes.get(line)
            if node is None:
                continue
            took, so_far = (end - start) / 1e3, spent.get(node)
            began = (start - first) / 1e3 if so_far is None else so_far.start
            spent[node] = self._event(node, began, took + (so_far.microseconds if so_far else 0.0))
        self.events = list(spent.values())

    def _event(self, node: Node, start: float, microseconds: float) -> Event:
        origin = node.origin
        file, line = origin.locations[0] if origin.locations else ("", 0)
        return Event(
            self._named[node], label(node), ", ".join(origin.modules), file, line, start, microseconds
        )

    def _call(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        return self._line if frame.f_code is self._code else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        if event in ("line", "return"):
            self._marks.append((frame.f_lineno, time.perf_counter_ns()))
        return self._line


def label(node: Node) -> str:
    """The op; of a fusion also what it holds: ``fusion.conv (conv2d, relu)``."""
    if node.region is None:
        return op_name(node.op)
    inner = ", ".join(op_name(n.op).removeprefix("aten.").partition(".")[0] for n in node.region.nodes)
    return f"{op_name(node.op)} ({inner})"


def line_recorder(graph: Graph, module: ModuleType, source: str) -> LineRecorder:
    """A recorder for the module that was generated from `graph`."""
    named = names(graph)
    shown = {n: ", ".join(named[v] for v in n.results) or op_name(n.op) for n in graph.nodes}
    return LineRecorder(module, line_nodes(graph, module, source), shown)


def line_nodes(graph: Graph, module: ModuleType, source: str) -> dict[int, Node]:
    """Line number -> the node that it belongs to, for the lines of `forward`.

    A node's last line ends in a comment, and only those lines do; the lines before it are its own too.

    Raises:
        ValueError: the module was not generated from this graph.
    """
    first = module.forward.__code__.co_firstlineno
    comments = [
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and token.start[0] > first
    ]
    nodes: Sequence[Node] = list(graph.nodes)
    if len(comments) != len(nodes):
        raise ValueError(f"{len(comments)} lines for {len(nodes)} nodes")
    owner: dict[int, Node] = {}
    line = first + 1
    for last, node in zip(comments, nodes, strict=True):
        owner.update(dict.fromkeys(range(line, last + 1), node))
        line = last + 1
    return owner
