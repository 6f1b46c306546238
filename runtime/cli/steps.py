"""The steps that commands share: load, capture, optimise, compile."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from capture import Graph, capture
from capture.errors import UsageError
from capture.loading import Loaded, load, parse_dynamic, parse_input
from passes import PIPELINES, load_rules, make_pass, optimize
from passes.base import Pass
from passes.recompute import within
from runtime.benchmark import num_threads
from runtime.cli import quantizing
from runtime.cli.pruning import plan, pruned
from runtime.cli.terminal import Terminal
from runtime.compile import Compiled, compile
from runtime.reference import reference

__all__ = [
    "Optimized",
    "chosen_level",
    "compile_model",
    "load_model",
    "machine_settings",
    "named_passes",
    "optimize_model",
    "title_of",
]


DOING = {"capture": "capturing", "optimize": "optimizing", "compile": "compiling"}
PHASE = re.compile("^(" + "|".join(DOING) + r")\b")


@contextlib.contextmanager
def machine_settings(options: SimpleNamespace) -> Iterator[None]:
    """--seed and --threads, for as long as a command runs."""
    with num_threads(options.threads), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(options.seed)
        yield


def load_model(terminal: Terminal, options: SimpleNamespace) -> Loaded:
    """The model and its example inputs, as the options say."""
    check_options(options)
    if options.inputs and options.inputs_file:
        raise UsageError("--input and --inputs exclude each other", hint="one of them")
    inputs: Any = options.inputs_file
    if options.inputs:
        inputs = {}
        for name, tensor in map(parse_input, options.inputs):
            if name in inputs:
                raise UsageError(f"--input names {name} twice", hint=f"--input {name}=... once")
            inputs[name] = tensor
    terminal.say(f"loading {options.model}")
    return load(
        options.model,
        batch=options.batch,
        weights=options.weights,
        inputs=inputs,
        allow_pickle=options.allow_pickle,
    )


def check_options(options: SimpleNamespace) -> None:
    """Find out what is wrong with the options before anything long is done."""
    dynamic_shapes(options)
    if not hasattr(options, "passes"):  # a command that optimises as it sees fit
        return
    for path in options.rules:
        load_rules(path)
    for name in (*(options.passes or ()), *disabled(options)):
        make_pass(name)


def chosen_level(options: SimpleNamespace, default: int = 0) -> int:
    """-O where given; 2 with --optimize, Triton kernels, or an option that says how to optimise."""
    if options.level is not None:
        return int(options.level)
    names = ("optimize", "passes", "disable", "rules", "check_rewrites", "max_memory", "quantize", "prune")
    asked = any(getattr(options, name) for name in names)
    return 2 if asked or takes_triton(options) else default


def takes_triton(options: SimpleNamespace) -> bool:
    """Whether regions are to run as Triton kernels."""
    return getattr(options, "backend", None) == "triton"


def disabled(options: SimpleNamespace) -> list[str]:
    """--disable-pass may be repeated, and takes lists."""
    return [name for names in options.disable for name in names]


def named_passes(options: SimpleNamespace, level: int) -> list[str] | None:
    """--passes where given; with --max-memory, the pipeline that keeps within it; None: the level's own."""
    chosen: list[str] | None = options.passes or None
    if chosen is None and takes_triton(options):
        from codegen.triton import pipeline

        chosen = pipeline(level)
    return within(chosen or PIPELINES[level], options.max_memory) if options.max_memory else chosen


def optimization(options: SimpleNamespace, loaded: Loaded, level: int) -> dict[str, Any]:
    """What `passes.optimize` and `runtime.compile` are told alike."""
    passes: Sequence[str | Pass] | None = named_passes(options, level)
    if before := quantizing.prefix(options, loaded):
        passes = [*before, *(PIPELINES[level] if passes is None else passes)]
    return {
        "level": level,
        "disable": disabled(options),
        "passes": passes,
        "verify": options.verify,
        "check_rewrites": options.check_rewrites,
        "dump_dir": options.dump_dir,
    }


def dynamic_shapes(options: SimpleNamespace) -> Any:
    return parse_dynamic(options.dynamic) if options.dynamic else None


@dataclass(frozen=True)
class Optimized:
    """A graph before and after its passes, and the seconds of both steps."""

    captured: Graph
    graph: Graph
    seconds: dict[str, float]


def captured_model(terminal: Terminal, options: SimpleNamespace, loaded: Loaded) -> Graph:
    """The graph that all else starts from: as captured, without what --prune removes."""
    terminal.say("capturing")
    captured = capture(
        loaded.module,
        loaded.args,
        loaded.kwargs,
        dynamic_shapes=dynamic_shapes(options),
        frontend=options.frontend,
    )
    return pruned(terminal, options, captured)


def optimize_model(terminal: Terminal, options: SimpleNamespace, loaded: Loaded, level: int) -> Optimized:
    """Capture and run the passes; nothing is executed."""
    start = time.perf_counter()
    captured = captured_model(terminal, options, loaded)
    middle = time.perf_counter()
    graph = optimize(
        captured,
        **optimization(options, loaded, level),
        args=loaded.args,
        kwargs=loaded.kwargs,
        progress=lambda name: terminal.say(f"optimizing: {name}"),
    )
    return Optimized(captured, graph, {"capture": middle - start, "optimize": time.perf_counter() - middle})


def compile_model(terminal: Terminal, options: SimpleNamespace, loaded: Loaded, level: int) -> Compiled:
    """Capture, optimise and compile for the backend asked for."""
    start, model = time.perf_counter(), loaded.module
    is_pruned = plan(options) is not None
    if is_pruned:
        model = captured_model(terminal, options, loaded)
    captured_at = time.perf_counter()
    compiled = compile(
        model,
        loaded.args,
        loaded.kwargs,
        **optimization(options, loaded, level),
        backend=options.backend,
        dynamic_shapes=dynamic_shapes(options),
        frontend=options.frontend,
        threads=options.threads,
        cache=False,  # whoever asks for an account of the passes is to see them at work
        title=title_of(loaded, options.model),
        progress=lambda phase: terminal.say(PHASE.sub(lambda m: DOING[m[0]], phase)),
    )
    if is_pruned:  # right is what the pruned graph means; what it lost is told apart
        compiled.reference = compiled.reference or reference(model, loaded.args, loaded.kwargs)
        compiled.seconds["capture"] = captured_at - start
    return compiled


def title_of(loaded: Loaded, model: str) -> str:
    """What the model is called: ``ResNet-50`` from a factory's docstring "ResNet-50: ...", else its class."""
    module = sys.modules.get(model.partition(":")[0])
    factory = getattr(module, loaded.factory or "", None)
    name, colon, _ = (getattr(factory, "__doc__", None) or "").strip().partition(":")
    if colon and len(name.split()) <= 2:
        return name
    return Path(model).stem if model.endswith(".pt2") else type(loaded.module).__name__
