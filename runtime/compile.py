"""`runtime.compile`: capture, optimise, generate, choose a backend; and the callable it returns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from capture import capture
from capture.errors import GuardError, UsageError
from capture.ir import Graph, TensorType
from capture.ir.interpreter import flatten_inputs
from passes import optimize
from passes.base import Pass
from runtime.attributes import ModuleGuards
from runtime.cache_graphs import cached
from runtime.executables import AtenExecutable, EagerExecutable, Executable, InterpretedGraph, OnnxExecutable
from runtime.guards import InputGuards
from runtime.inventory import Inventory
from runtime.weights import WeightGuards

if TYPE_CHECKING:
    from runtime.report import Report

BACKENDS = ("auto", "aten", "triton", "onnx", "eager")


@dataclass(frozen=True)
class Candidate:
    """One backend that `auto` considered: its median in ms, or the reason why it is out."""

    backend: str
    milliseconds: float | None = None
    reason: str = ""


@dataclass
class Recipe:
    """How a graph was optimised, so that it can be done again when weights change.

    Attributes:
        inputs: example inputs as (args, kwargs), kept where rewrites are to be checked on them.
    """

    level: int = 2
    disable: tuple[str, ...] = ()
    passes: Sequence[str | Pass] | None = None
    title: str = ""
    threads: int | None = None
    check_rewrites: bool = False
    inputs: tuple[Sequence[Any], Mapping[str, Any]] | None = None

    def optimize(self, graph: Graph, **more: Any) -> Graph:
        args, kwargs = self.inputs or (None, None)
        return optimize(
            graph,
            self.level,
            self.disable,
            passes=self.passes,
            check_rewrites=self.check_rewrites,
            args=args,
            kwargs=kwargs,
            **more,
        )


@dataclass
class Compiled:
    """A compiled model. Call it as the model was called; it runs without gradients.

    Attributes:
        captured, graph: the graph as captured, and as optimised.
        backend, source: what runs it; the generated Python module where there is one.
        candidates: what `auto` measured.
        seconds: time spent in capture, optimize and compile.
        reference: eager's and fp64's outcome on the example inputs, where `auto` has made them.
        recompiles: how often changed weights made it fold and pack again.
    """

    captured: Graph
    graph: Graph
    executable: Executable
    recipe: Recipe
    module: torch.nn.Module | None = None
    candidates: list[Candidate] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    reference: Any = None
    recompiles: int = 0

    def __post_init__(self) -> None:
        self._inputs = InputGuards(self.captured)
        self._lock = threading.Lock()
        self._flat_args = _is_flat(self.captured)
        spec = self.captured.out_spec
        self._single = spec is not None and spec.is_leaf()
        self._eager = self.module if isinstance(self.executable, EagerExecutable) else None
        held = self._inventory()
        self._weights = self._guard_weights(held)
        self._module_guards = None if held is None else ModuleGuards(held)
        self._devices = _device_types(self.captured)
        self._report: Report | None = None

    @property
    def backend(self) -> str:
        return self.executable.backend

    @property
    def source(self) -> str | None:
        return self.executable.source

    @property
    def report(self) -> Report:
        """Capture, passes, memory plan and backend; once it was measured, also parity, latency and ops."""
        from runtime.report import build_report

        if self._report is not None:
            return self._report
        return build_report(self, model=self.captured.name, title=self.recipe.title)

    @report.setter
    def report(self, report: Report) -> None:
        self._report = report

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._eager is not None:  # the model looks after its own inputs
            with torch.no_grad():
                return self._eager(*args, **kwargs)
        if self._module_guards is not None:
            self._module_guards.check()
        self._check_autocast()
        flat = args if self._flat_args and not kwargs else flatten_inputs(self.captured, args, kwargs)
        self._inputs.check(flat)
        if self._weights is not None and not self._weights.fresh:
            self._refreeze()
        with torch.no_grad():
            results = self.executable(*flat)
        if self._single:
            return results[0]
        spec = self.captured.out_spec
        if spec is None:
            return results[0] if len(results) == 1 else tuple(results)
        return pytree.tree_unflatten(results, spec)

    def _check_autocast(self) -> None:
        if any(map(torch.is_autocast_enabled, self._devices)):
            raise GuardError(
                "captured without torch.autocast, called under it",
                why="the captured operators compute in the dtypes that they were captured with",
                hint="call it with autocast off, or compile model.to(torch.bfloat16)",
            )

    def _inventory(self) -> Inventory | None:
        """What the module holds now; None where there is none, or it runs itself."""
        return None if self.module is None or self._eager is not None else Inventory(self.module)

    def _guard_weights(self, held: Inventory | None) -> WeightGuards | None:
        """Eager reads the module's own weights: there is nothing to go stale."""
        return None if self.backend == "eager" else WeightGuards(self.captured, held)

    def _refreeze(self) -> None:
        """Fold and pack again from the weights as they are now. Where that fails all stays as it was."""
        with self._lock:
            if self._weights is None or self._weights.fresh:  # another thread was here first
                return
            before = {name: c.tensor for name, c in self.captured.constants.items()}
            try:
                self._take(self._weights.current())
                # From before they are read: a change meanwhile is not missed.
                watch = self._guard_weights(self._inventory())
                graph = self.recipe.optimize(self.captured)
                made = make_executable(self.backend, graph, self.captured, self.module, self.recipe)
            except BaseException:
                self._take(before)
                raise
            self.graph, self.executable, self._weights = graph, made, watch
            self._inputs = InputGuards(self.captured)
            self.recompiles += 1

    def _take(self, weights: Mapping[str, torch.Tensor | None]) -> None:
        for name, tensor in weights.items():
            self.captured.constants[name].tensor = tensor

    def save(self, folder: str | Path) -> None:
        """Write the compiled model to a folder: graphs with weights, settings, and the source to read."""
        from runtime.persist import save

        save(self, Path(folder))


def compile(
    model_or_graph: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    level: int = 2,
    backend: str = "auto",
    dynamic_shapes: Any = None,
    disable: Iterable[str] = (),
    passes: Sequence[str | Pass] | None = None,
    frontend: str = "auto",
    verify: bool = False,
    check_rewrites: bool = False,
    dump_dir: str | Path | None = None,
    threads: int | None = None,
    title: str = "",
    progress: Callable[[str], None] | None = None,
    cache: bool = True,
    eager: Callable[..., Any] | None = None,
) -> Compiled:
    """Capture and compile a model for inference.

    Args:
        model_or_graph: an nn.Module, GraphModule, ExportedProgram, or a captured Graph.
        args, kwargs: example inputs; also what `auto` measures with.
        level: optimisation level 0-3.
        backend: aten (generated Python on PyTorch's and oneDNN's kernels), triton (the same, its regions as
            generated Triton kernels: on a GPU), onnx (ONNX Runtime), eager, or auto: the fastest of aten
            and onnx that is right, and eager where nothing is faster.
        disable: names of passes to leave out.
        passes: a pipeline in place of the level's.
        check_rewrites: replay each application of a rule on the example inputs and on random ones, and refuse
            those that differ (see `passes.optimize`), also when it folds again: the inputs are kept for that.
        threads: threads of ONNX Runtime; PyTorch's own are `torch.set_num_threads`.
        progress: called with the phase that begins.
        cache: take the optimised graph from the cache on disk, and keep it there (see docs/cache.md); not
            where `verify`, `check_rewrites` or `dump_dir` want to see the passes at work.
        eager: where a graph is given, what it was captured from, on its flat inputs; by default eager is the
            interpreter, which is slower.

    Raises:
        UsageError: unknown backend, level or pass.
        CaptureError: the model cannot be captured, or the backend asked for cannot run it.
    """
    if backend not in BACKENDS:
        raise UsageError(f"there is no backend {backend!r}", hint="one of " + ", ".join(BACKENDS))
    say = progress or (lambda phase: None)
    args = tuple(args)
    start = time.perf_counter()
    say("capture")
    if isinstance(model_or_graph, Graph):
        captured, module = model_or_graph, None
    else:
        captured = capture(model_or_graph, args, kwargs, dynamic_shapes=dynamic_shapes, frontend=frontend)
        module = model_or_graph if isinstance(model_or_graph, torch.nn.Module) else None
    captured_at = time.perf_counter()
    if backend == "triton" and passes is None:
        from codegen.triton import pipeline

        passes = pipeline(level)
    inputs = (args, kwargs or {}) if check_rewrites and (args or kwargs) else None
    recipe = Recipe(level, tuple(disable), passes, title, threads, check_rewrites, inputs)

    def run_passes() -> Graph:
        return recipe.optimize(
            captured, verify=verify, dump_dir=dump_dir, progress=lambda name: say(f"optimize: {name}")
        )

    if cache and not (verify or check_rewrites or dump_dir):
        graph = cached(captured, level, recipe.disable, passes, run_passes)
    else:
        graph = run_passes()
    optimized_at = time.perf_counter()
    say("compile")

    def build(name: str) -> Executable:
        return make_executable(name, graph, captured, module or eager, recipe)

    def wrap(executable: Executable) -> Compiled:
        return Compiled(captured, graph, executable, recipe, module)

    judged_by: Any = None
    if backend == "auto":
        from runtime.choose import choose

        choice = choose(wrap, build, model_or_graph, args, kwargs or {}, say)
        executable, candidates, judged_by = choice.executable, choice.candidates, choice.reference
    else:
        executable, candidates = build(backend), [Candidate(backend)]
    compiled = wrap(executable)
    compiled.candidates, compiled.reference = candidates, judged_by
    compiled.seconds = {
        "capture": captured_at - start,
        "optimize": optimized_at - captured_at,
        "compile": time.perf_counter() - optimized_at,
    }
    return compiled


def make_executable(
    backend: str, graph: Graph, captured: Graph, module: Callable[..., Any] | None, recipe: Recipe
) -> Executable:
    """What runs `graph` on a backend; eager runs the module, or the captured graph where there is none."""
    if backend == "aten":
        return AtenExecutable(graph, recipe.title)
    if backend == "triton":
        from runtime.triton_executable import TritonExecutable

        return TritonExecutable(graph, recipe.title)
    if backend == "onnx":
        return OnnxExecutable(graph, recipe.threads)
    if module is None:
        return InterpretedGraph(captured)
    return EagerExecutable(module, captured.in_spec)


def _is_flat(graph: Graph) -> bool:
    """Whether positional arguments are the flat inputs: no nesting, no keywords."""
    spec = graph.in_spec
    if spec is None:
        return True
    flat = ((0,) * len(graph.inputs), {})
    return bool(pytree.tree_structure(flat) == spec)


def _device_types(graph: Graph) -> list[str]:
    """Where the graph computes, of those that know autocast."""
    values = (*graph.inputs, *graph.constants.values(), *(v for n in graph.nodes for v in n.results))
    found = {v.type.device.type for v in values if isinstance(v.type, TensorType)}
    return sorted(filter(torch.amp.is_autocast_available, found))
