"""`torch.compile(model, backend="capture")`: what Dynamo calls for each graph that it has cut out.

no gradients needed  ->  capture, passes, generated code: the way of `runtime.compile`
gradients needed     ->  runtime/training.py
cannot be taken      ->  eager, for this graph, with a warning
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import TensorifyScalarRestartAnalysis
from torch._dynamo.symbolic_convert import TensorifyState

from capture.errors import CaptureError
from runtime.backend_graph import InferenceGraph
from runtime.backend_options import BackendOptions
from runtime.backend_records import GraphRecord, log, new_record
from runtime.training import compile_training

__all__ = ["capture_backend"]


def capture_backend(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a graph of Dynamo's.

    Args:
        module, example_inputs: as Dynamo hands them over: fake tensors, and SymInts where sizes vary.
        mode: one of torch.compile's; ``max-autotune`` measures the backends, at level 3.
        options: see `runtime.backend_options.BackendOptions`.

    Returns:
        What takes the inputs of the module, and returns its results.

    Raises:
        UsageError: an unknown mode or option, or a value that it cannot have.
    """
    settings = BackendOptions.parse(mode, options)
    training = _needs_gradients(module)
    if not training:
        _specialise_floats(module)
    record = new_record(module)
    try:
        if settings.backend == "eager":
            record.runs = record.backend = "eager"
            made: Callable[..., Any] = module
        else:
            made = (_train if training else _infer)(module, example_inputs, settings, record)
    except CaptureError as error:
        record.falls_back(error.what + (f" ({error.where})" if error.where else ""))
        return module
    log.info("%s", record.summary())
    return made


def _infer(
    module: fx.GraphModule, examples: Sequence[Any], settings: BackendOptions, record: GraphRecord
) -> Callable[..., Any]:
    record.runs = "inference"
    if needs := _needs_aot_autograd(module):
        made = _train(module, examples, settings, record)
        record.runs = "inference"
        record.tell(f"{needs}: the weights are not frozen")
        return made
    graph = InferenceGraph(module, examples, settings, record)
    if graph.backend == "eager":
        record.runs = "eager"
        record.tell("nothing was measured faster than eager")
        return module
    return graph


def _train(
    module: fx.GraphModule, examples: Sequence[Any], settings: BackendOptions, record: GraphRecord
) -> Callable[..., Any]:
    record.runs = "training"
    return compile_training(module, examples, settings, record)


def _needs_gradients(module: fx.GraphModule) -> bool:
    """Whether a result, or an input that is written to, carries a gradient, by Dynamo's run of the graph."""
    results = (v for v in module.graph.output_node().args[0] if isinstance(v, fx.Node))
    if any(_carries_gradient(node) for node in results if node.op != "placeholder"):
        return True
    for node in module.graph.find_nodes(op="placeholder"):
        given = getattr(node.meta.get("grapharg"), "example", None)
        if isinstance(given, torch.Tensor) and _carries_gradient(node) and not given.requires_grad:
            return True
    return False


def _carries_gradient(node: fx.Node) -> bool:
    value = node.meta.get("example_value")
    return isinstance(value, torch.Tensor) and value.requires_grad


def _specialise_floats(module: fx.GraphModule) -> None:
    """Have Dynamo guard the value of each float that it passes as a tensor, as it does with ``dynamic=True``.

    An eps or a scale would else be read out of a tensor in the graph.

    Raises:
        TensorifyScalarRestartAnalysis: which has Dynamo trace again.
    """
    names = set()
    for node in module.graph.find_nodes(op="placeholder"):
        if getattr(node.meta.get("grapharg"), "pass_arg_as_tensor", False):
            number = getattr(node.meta.get("example_value"), "item_memo", None)
            if isinstance(number, torch.SymFloat):
                names.add(number.node._expr.name)
    new = {name for name in names if not TensorifyState.should_specialize(name)}
    for name in new:
        TensorifyState.specialize(name)
    if new:
        raise TensorifyScalarRestartAnalysis


def _needs_aot_autograd(module: fx.GraphModule) -> str:
    """What is in a graph that only AOTAutograd makes operators of: casts of autocast, vmap and its kind."""
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    if any(getattr(target, "__module__", "").startswith("torch._functorch") for target in targets):
        return "it transforms functions with torch.func"
    values = (node.meta.get("example_value") for node in module.graph.nodes)
    devices = {v.device.type for v in values if isinstance(v, torch.Tensor)}
    on = any(torch.is_autocast_enabled(d) for d in devices if torch.amp.is_autocast_available(d))
    return "autocast is on" if on or torch.amp.autocast_mode._enter_autocast in targets else ""
