"""What the torch.compile backend did, graph by graph, kept for `runtime.explain`."""

from __future__ import annotations

import re
import sys
import threading
import weakref
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

from torch import fx, nn
from torch._dynamo.utils import get_metrics_context

from capture.frontends.source import import_root_path, innermost_user_frame, is_user_file, parse_stack
from capture.logs import logger

__all__ = ["GraphBreak", "GraphRecord", "clear", "new_record", "owner_of", "records_of"]

KEPT = 256  # graphs of one compiled callable, and events of one graph
log = logger("backend")
_lock = threading.Lock()
_warned: set[str] = set()


@dataclass(frozen=True)
class GraphBreak:
    """What Dynamo could not follow, what may help, and the user's line."""

    what: str
    hint: str = ""
    where: str = ""


@dataclass
class GraphRecord:
    """One graph that Dynamo handed over.

    Attributes:
        name: Dynamo's own name of the compilation, as in its logs: frame/how often it was compiled.
        function, where: what was compiled.
        runs: what became of it: inference, training, or eager (as it came).
        backend: what runs it.
        nodes, optimized_nodes: before and after the passes.
        frozen: weights that were folded or packed.
        seconds: per stage: capture, optimize, compile, and packing again.
        ended_by: the graph break that the graph ended at.
        recompiled: the guard that failed, where the function had been compiled before.
        fell_back: why it runs in eager.
        events: what happened later: weights that changed, calls that had to run in eager.
    """

    name: str
    function: str = ""
    where: str = ""
    runs: str = ""
    backend: str = ""
    nodes: int = 0
    optimized_nodes: int = 0
    frozen: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    ended_by: GraphBreak | None = None
    recompiled: str = ""
    fell_back: str = ""
    packed_again: int = 0
    events: deque[str] = field(default_factory=partial(deque, maxlen=KEPT))

    def tell(self, event: str) -> None:
        """Note something that happened after the graph was compiled."""
        self.events.append(event)
        log.info("%s %s: %s", self.name, self.function, event)

    def copy(self) -> GraphRecord:
        """The record as it is now."""
        return replace(self, seconds=dict(self.seconds), events=self.events.copy())

    def falls_back(self, why: str) -> None:
        """Note, and warn once for each reason, that the graph runs in eager."""
        self.runs, self.fell_back = "eager", why
        warn_once(f"{self.place} runs in eager: {why}", key=why)

    def summary(self) -> str:
        """What became of the graph, in a line."""
        took = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        counts = f"{self.nodes} -> {self.optimized_nodes} nodes" if self.optimized_nodes else ""
        frozen = f"{self.frozen} weight{'s' * (self.frozen != 1)} frozen" if self.frozen else ""
        backend = "" if self.backend == self.runs else self.backend
        told = ", ".join(filter(None, (self.runs, backend, counts, frozen, took)))
        return f"{self.name} {self.place}: {told}".strip()

    @property
    def place(self) -> str:
        """The function, and its line in the user's code where that is known."""
        return f"{self.function} ({self.where})" if self.where else self.function

    def add_seconds(self, stages: dict[str, float]) -> None:
        for stage, seconds in stages.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def warn_once(message: str, key: str) -> None:
    """A warning to the log, the first time that this happens for this reason."""
    with _lock:
        new = key not in _warned
        if new and len(_warned) < 10_000:
            _warned.add(key)
    if new:
        log.warning("%s", message)
    else:
        log.info("%s", message)


class _Owners:
    """By what the user compiled (a module or a function), the records of its graphs."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[weakref.ref[Any], deque[GraphRecord]]] = {}

    def of(self, owner: Any) -> deque[GraphRecord]:
        key = id(owner)
        with _lock:
            if key not in self._held:
                forget = partial(self._forget, key)
                self._held[key] = (weakref.ref(owner, forget), deque(maxlen=KEPT))
            return self._held[key][1]

    def of_class(self, cls: type) -> list[GraphRecord]:
        """Those of all that is of a class: Dynamo shares compiled code among the modules of one."""
        with _lock:
            held = list(self._held.values())
        return [record for owner, records in held if type(owner()) is cls for record in records]

    def _forget(self, key: int, _: Any) -> None:
        self._held.pop(key, None)

    def clear(self) -> None:
        with _lock:
            self._held.clear()
            _warned.clear()


_owners = _Owners()
clear = _owners.clear


def records_of(compiled: Any) -> list[GraphRecord]:
    """The records of what `torch.compile` returned, or of the module or function that it was given.

    A module without any runs, if it was called, in the code that was compiled for others of its class.
    """
    owner = owner_of(compiled)
    own = list(_owners.of(owner))
    return _owners.of_class(type(owner)) if not own and isinstance(owner, nn.Module) else own


def owner_of(compiled: Any) -> Any:
    """The module or function that was compiled."""
    found = getattr(compiled, "_orig_mod", compiled)
    while not isinstance(found, nn.Module):
        inner = getattr(found, "_torchdynamo_orig_callable", None) or getattr(found, "__wrapped__", None)
        if inner is None:
            break
        found = inner
    bound = getattr(found, "__self__", None)
    return bound if isinstance(bound, nn.Module) else found


def new_record(module: fx.GraphModule) -> GraphRecord:
    """A record for a GraphModule that Dynamo is compiling, filed under what the user compiled."""
    compiling = module.meta.get("dynamo_compile_id")
    metrics: dict[str, Any] = getattr(get_metrics_context(), "_metrics", {})
    code, owner = _being_compiled()
    record = GraphRecord(
        name=str(compiling) if compiling else "",
        function=_function(code, owner),
        where=_first_line_of(module) or _start(code),
        recompiled=_reason(metrics.get("recompile_reason") or ""),
        ended_by=_graph_break(module),
    )
    if owner is not None:
        _owners.of(owner).append(record)
    return record


def _being_compiled() -> tuple[CodeType | None, Any]:
    """The code that Dynamo is compiling, and what the user gave to torch.compile, by the Python stack.

    Dynamo does not tell its backends. Where a version of torch has other names, nothing is found.
    """
    code: CodeType | None = None
    frame = sys._getframe(1)
    while frame is not None:
        here = (Path(frame.f_code.co_filename).name, frame.f_code.co_name)
        if code is None and here == ("convert_frame.py", "_compile"):
            code = frame.f_locals.get("code")
        if here == ("eval_frame.py", "compile_wrapper"):
            return code, owner_of(frame.f_locals.get("fn"))
        frame = frame.f_back
    return code, None


def _function(code: CodeType | None, owner: Any) -> str:
    """``forward``; ``forward, from line 15`` for what is left of it after a graph break."""
    if code is None or not is_user_file(code.co_filename):  # a layer of torch's that was compiled by itself
        return getattr(owner, "__name__", type(owner).__name__) if owner is not None else ""
    rest = re.fullmatch(r"torch_dynamo_resume_in_(.+)_at_(\d+)", code.co_name)
    return f"{rest[1]}, from line {rest[2]}" if rest else code.co_name


def _start(code: CodeType | None) -> str:
    known = code is not None and is_user_file(code.co_filename)
    return f"{_shown(code.co_filename)}:{code.co_firstlineno}" if code is not None and known else ""


def _first_line_of(module: fx.GraphModule) -> str:
    """The user's line of the first operation that has one."""
    for node in module.graph.nodes:
        frame = innermost_user_frame(parse_stack(node.meta.get("stack_trace") or ""))
        if frame is not None:
            return f"{_shown(frame.file)}:{frame.line}"
    return ""


def _graph_break(module: fx.GraphModule) -> GraphBreak | None:
    """Why Dynamo ended the graph where it did; None where the function ends there too."""
    found = getattr(module, "compile_subgraph_reason", None)
    if found is None or not found.graph_break:
        return None
    frame = found.user_stack[-1] if found.user_stack else None
    where = f"{_shown(frame.filename)}:{frame.lineno}   {(frame.line or '').strip()}" if frame else ""
    return GraphBreak(*_explained(found.reason), where.rstrip())


def _explained(reason: str) -> tuple[str, str]:
    """Dynamo's words for a graph break: what it met, and the first of its hints."""
    what, _, rest = reason.partition("\n")
    if what.startswith("generic_jump"):
        return "a Python `if` or `while` on the value of a tensor", "torch.where, or torch.cond"
    hint = re.search(r"Hint: (.+)", rest)
    return what, hint[1] if hint else ""


def _reason(failed: str) -> str:
    """The guard that failed, in a line."""
    line = failed.strip().partition("\n")[0]
    return re.sub(r"\s{2,}", "   ", re.sub(r"^\d+/\d+: ", "", line))


def _shown(file: str) -> str:
    return import_root_path(file) if is_user_file(file) and Path(file).is_file() else file
