"""Things that run a graph on flat inputs: generated code, ONNX Runtime, or the model itself."""

from __future__ import annotations

import hashlib
import itertools
import linecache
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.ir import Graph
from capture.ir.interpreter import run_flat, write_back

_serial = itertools.count()


class Executable(Protocol):
    """Takes the flat inputs, returns the flat results; write-backs are done when it returns."""

    backend: str
    source: str | None

    def __call__(self, *flat: Any) -> Sequence[Any]: ...


class AtenExecutable:
    """The generated Python module, in a module object of its own; tracebacks show its lines."""

    backend = "aten"

    def __init__(self, graph: Graph, title: str = "") -> None:
        from codegen import python

        self.source: str | None = python.emit(graph, title=title)
        self._module = load_module(self.source, graph.name)
        self.reload(graph)

    def reload(self, graph: Graph) -> None:
        """Take the graph's constants, packing them anew."""
        self._module.load(bound_constants(graph))
        self._forward: Callable[..., list[Any]] = self._module.forward

    def __call__(self, *flat: Any) -> Sequence[Any]:
        return self._forward(*flat)

    @property
    def module(self) -> types.ModuleType:
        return self._module


class OnnxExecutable:
    """ONNX Runtime on the exported graph."""

    backend = "onnx"
    source: str | None = None

    def __init__(self, graph: Graph, threads: int | None = None) -> None:
        from runtime.onnx_session import Session

        self._session = Session(graph, threads=threads)

    def __call__(self, *flat: Any) -> Sequence[Any]:
        results: Sequence[Any] = self._session(*flat)
        return results


class EagerExecutable:
    """The model itself, called as it was captured."""

    backend = "eager"
    source: str | None = None

    def __init__(self, model: Callable[..., Any], in_spec: Any) -> None:
        self._model, self._in_spec = model, in_spec

    def __call__(self, *flat: Any) -> Sequence[Any]:
        if self._in_spec is None:
            return pytree.tree_leaves(self._model(*flat), is_leaf=lambda v: v is None)
        args, kwargs = pytree.tree_unflatten(list(flat), self._in_spec)
        return pytree.tree_leaves(self._model(*args, **kwargs), is_leaf=lambda v: v is None)


class InterpretedGraph:
    """The reference interpreter: what "eager" means where a graph was given and no module."""

    backend = "eager"
    source: str | None = None

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __call__(self, *flat: Any) -> Sequence[Any]:
        results, written = run_flat(self._graph, flat)
        return write_back(self._graph, flat, results, written)


def bound_constants(graph: Graph) -> dict[str, torch.Tensor]:
    """The graph's constants by name.

    Raises:
        CaptureError: one has no tensor.
    """
    state = {name: c.tensor for name, c in graph.constants.items() if c.tensor is not None}
    missing = graph.constants.keys() - state.keys()
    if missing:
        raise CaptureError(f"the constant @{min(missing)} has no value", hint="graph.bind(state_dict)")
    return state


def load_module(source: str, name: str) -> types.ModuleType:
    """Execute source that this process has generated as a module of its own; its lines show in tracebacks."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    filename = f"<torch-capture {name} {digest} {next(_serial)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = types.ModuleType(f"capture_generated_{digest}")
    module.__file__ = filename
    weakref.finalize(module, linecache.cache.pop, filename, None)
    exec(compile(source, filename, "exec"), module.__dict__)
    return module
