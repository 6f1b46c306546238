"""Training: AOTAutograd's forward and backward graphs, each the way of every other graph.

    Dynamo's graph -> AOTAutograd -> min-cut partition -> forward graph  -> capture, passes, generated code
                                                       -> backward graph -> capture, passes, generated code

Nothing is frozen: parameters change with every step, so they stay inputs. What is kept for the backward graph
is a result of the forward graph. Generated code lets go of an input after its last use, and has no arena: a
step takes no more memory than in eager, and less where activations are computed again.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx
from torch._functorch._aot_autograd.descriptors import InputMutationAOTOutput
from torch.utils.checkpoint import CheckpointPolicy

from capture import capture
from capture.errors import CaptureError
from capture.ir import Graph
from codegen import python
from passes import PIPELINES, optimize
from runtime.backend_graph import alone, packing
from runtime.backend_options import BackendOptions
from runtime.backend_records import GraphRecord, warn_once
from runtime.cache_graphs import cached
from runtime.executables import bound_constants, load_module

__all__ = ["TrainingGraph", "compile_training"]

# Passes for inference. Inputs of a training graph die in it, which orders and regions for inference do not
# mind; channels-last would convert each activation that is kept; and an arena outlives the call.
LEFT_OUT = ("layout", "fuse", "schedule", "memory")
LEAST = 1e-6  # of the activations; at 0 the partitioner would not even keep what must not be computed twice


class TrainingGraph:
    """AOTAutograd's forward or backward graph, compiled. Takes its inputs in a list, which it empties.

    Args:
        role: forward, backward, or inference where AOTAutograd finds that no gradients flow.
        module, examples: what AOTAutograd gives to a compiler.

    Attributes:
        captured, graph: as captured, and as optimised.
        source: the generated module.
        seconds: time spent per stage.

    Raises:
        CaptureError: the graph cannot be captured or printed.
    """

    def __init__(
        self, role: str, module: fx.GraphModule, examples: Sequence[Any], options: BackendOptions
    ) -> None:
        self.role = role
        self._boxed_call = True  # so AOTAutograd knows what takes a list; its wrappers copy attributes
        start = time.perf_counter()
        with packing, torch.inference_mode(False), torch.no_grad():
            self.captured = capture(module, examples)
            self.captured.name = role
            captured_at = time.perf_counter()
            with alone():
                self.graph = _optimize(self.captured, options)
                optimized_at = time.perf_counter()
                self.source = python.emit(self.graph, boxed=True)
                made = load_module(self.source, role)
                made.load(bound_constants(self.graph))
        self._forward: Callable[[list[Any]], list[Any]] = made.forward
        self.seconds = {
            "capture": captured_at - start,
            "optimize": optimized_at - captured_at,
            "compile": time.perf_counter() - optimized_at,
        }

    def __call__(self, inputs: list[Any]) -> list[Any]:
        return self._forward(inputs)


def compile_training(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    options: BackendOptions,
    record: GraphRecord | None = None,
) -> Callable[..., Any]:
    """Compile a graph of Dynamo's, and the one that computes its gradients.

    A graph that cannot be captured runs as AOTAutograd made it, with a warning; the other one is compiled.
    Random numbers are drawn by PyTorch's own operators, in eager's order: with the same seed the masks of
    dropout are eager's.

    Args:
        gm, example_inputs: what Dynamo gave to the backend.
        options: `activation_memory_budget` says how much of the activations may be kept.
        record: told what is done.

    Returns:
        What takes the inputs of `gm`, and returns its results, with gradients.
    """
    from torch._dynamo.backends.common import aot_autograd

    record = record or GraphRecord("")
    if options.backend == "onnx":
        message = "ONNX Runtime computes no gradients: graphs for training run as generated Python"
        record.tell(message)
        warn_once(message, key=message)

    def compiler(role: str) -> Callable[[fx.GraphModule, Sequence[Any]], Any]:
        return partial(_compile, role, options, record)

    backend = aot_autograd(
        fw_compiler=compiler("forward"),
        bw_compiler=compiler("backward"),
        inference_compiler=compiler("inference"),
        partition_fn=partial(_partition, options.activation_memory_budget),
    )
    made: Callable[..., Any] = backend(gm, list(example_inputs))
    return made


def _compile(
    role: str, options: BackendOptions, record: GraphRecord, module: fx.GraphModule, examples: Sequence[Any]
) -> Callable[[list[Any]], Sequence[Any]]:
    try:
        made = TrainingGraph(role, module, examples, options)
    except CaptureError as error:
        record.falls_back(f"the {role} graph: {error.what}" + (f" ({error.where})" if error.where else ""))
        return _as_it_came(module, examples)
    record.backend = "aten"
    record.nodes += len(made.captured.nodes)
    record.optimized_nodes += len(made.graph.nodes)
    record.add_seconds(made.seconds)
    record.tell(f"{role} graph: {len(made.captured.nodes)} -> {len(made.graph.nodes)} nodes")
    return made


def _as_it_came(module: fx.GraphModule, examples: Sequence[Any]) -> Callable[[list[Any]], Sequence[Any]]:
    from torch._dynamo.backends.debugging import boxed_nop

    run: Callable[[list[Any]], Sequence[Any]] = boxed_nop(module, list(examples))
    return run


def _optimize(captured: Graph, options: BackendOptions) -> Graph:
    passes = options.passes
    if passes is None:
        passes = tuple(name for name in PIPELINES[options.level] if name not in LEFT_OUT)

    def run_passes() -> Graph:
        return optimize(captured, options.level, options.disable, passes=passes)

    return cached(captured, options.level, options.disable, passes, run_passes)


def _partition(budget: float | None, joint: fx.GraphModule, inputs: Any, **more: Any) -> Any:
    """Choose what is kept for the backward graph, and what it computes again: the smallest cut between them.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016), describe the trade.
    """
    from torch._functorch import config
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    _compute_once(joint)
    share = config.activation_memory_budget if budget is None else budget
    with config.patch(activation_memory_budget=max(share, LEAST)):
        return min_cut_rematerialization_partition(joint, inputs, **more)


def _compute_once(joint: fx.GraphModule) -> None:
    """Have nothing computed again that reads an input which is written to: it would read the new content.

    BatchNorm's statistics are such inputs. Views are looked through.
    """
    told = joint.graph.output_node().meta.get("desc") or ()
    written = {each.mutated_input for each in told if isinstance(each, InputMutationAOTOutput)}
    memory = [n for n in joint.graph.find_nodes(op="placeholder") if n.meta.get("desc") in written]
    for node in memory:  # grows by views
        for user in node.users:
            if user.op == "call_function" and _is_view(user.target):
                memory.append(user)
            elif user.op == "call_function":
                for result in (user, *(u for u in user.users if u.target is operator.getitem)):
                    result.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def _is_view(op: Any) -> bool:
    return isinstance(op, torch._ops.OpOverload) and any(r.alias_info for r in op._schema.returns)
