"""ONNX Runtime on flat torch tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from capture.errors import CaptureError
from capture.ir import Constant, Graph
from capture.ir.types import LiteralType, TensorType
from codegen.onnx.requirements import require

if TYPE_CHECKING:
    import onnxruntime


class Session:
    """A graph, or an .onnx file, in ONNX Runtime. Call it with the flat inputs; it returns the flat results.

    On a CPU, inputs and results share memory with ONNX Runtime. What the graph writes back is written to its
    buffers and inputs, as `Graph.run` does; a file's buffers are kept in `state` from call to call. bfloat16,
    for which ONNX Runtime's CPU provider lacks kernels, is computed in float32 and rounded after each node.

    Args:
        threads: for one operator; by default as many as torch uses.
        providers: ONNX Runtime's execution providers, best first; by default CUDA for a graph on a GPU where
            ONNX Runtime has it, else the CPU.
        profile: where given, the start of the name of the file that `end_profiling` writes.

    Attributes:
        provider: the execution provider in use.
        state: buffers of a file by name, as the last call left them; the first call finds those of the file.

    Raises:
        UnsupportedOpError: an operator has no ONNX form.
        CaptureError: onnx or onnxruntime is missing; ONNX Runtime refuses the model, the message says why.
    """

    def __init__(
        self,
        graph_or_path: Graph | str | os.PathLike[str],
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        profile: str | None = None,
    ) -> None:
        require("onnx", "onnx_ir", "onnxruntime")
        self.state: dict[str, torch.Tensor] = {}
        self._graph = graph_or_path if isinstance(graph_or_path, Graph) else None
        options = _options(threads)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        if isinstance(graph_or_path, Graph):
            self._session, self._buffers = _of_graph(graph_or_path, providers, options)
        else:
            from codegen.onnx.ort import CPU, open_session

            self._session = open_session(graph_or_path, options, providers or [CPU])
        self.provider: str = self._session.get_providers()[0]
        self._inputs = [i.name for i in self._session.get_inputs()]

    def __call__(self, *flat: Any) -> list[Any]:
        """Run on the flat inputs: one for each of the graph's, or of the file's that is no buffer.

        Raises:
            CaptureError: ONNX Runtime refuses the inputs, or fails.
        """
        if self._graph is None:
            return self._run_file(flat)
        return self._run_graph(self._graph, flat)

    def end_profiling(self) -> str:
        """Write what was recorded since the start; returns the file's name."""
        return str(self._session.end_profiling())

    def _run_graph(self, graph: Graph, flat: Sequence[Any]) -> list[Any]:
        from codegen.onnx.naming import output_names

        given = [v for v, i in zip(flat, graph.inputs, strict=True) if not isinstance(i.type, LiteralType)]
        buffers = {name: buffer.tensor for name, buffer in self._buffers.items()}
        made = iter(self._run({**dict(zip(self._inputs, given, strict=True)), **buffers}))
        results = list(graph.results)
        for i in output_names(graph):
            results[i] = _like(next(made), graph.results[i])
        for target, new in zip(graph.writebacks, made, strict=True):
            tensor = target.tensor if isinstance(target, Constant) else flat[graph.inputs.index(target)]
            with torch.no_grad():
                tensor.copy_(new)
        return results

    def _run_file(self, flat: Sequence[Any]) -> list[Any]:
        made = self._run({**dict(zip(self._inputs, flat, strict=True)), **self.state})
        named = dict(zip((o.name for o in self._session.get_outputs()), made, strict=True))
        defaults = [i.name for i in self._session.get_overridable_initializers()]
        self.state = {name: named.pop(_updated(name)) for name in defaults if _updated(name) in named}
        return list(named.values())

    def _run(self, feeds: dict[str, Any]) -> list[torch.Tensor]:
        from codegen.onnx.ort import run

        return run(self._session, feeds)


def _of_graph(
    graph: Graph, providers: Sequence[str] | None, options: onnxruntime.SessionOptions
) -> tuple[onnxruntime.InferenceSession, dict[str, Constant]]:
    """The session, and the buffers that the graph writes to. Weights are handed over in memory."""
    from codegen.onnx.exporting import export_parts, is_outside
    from codegen.onnx.ort import open_session, to_ort

    proto, constants = export_parts(graph)
    unbound = next((c.name for c in constants.values() if c.tensor is None), None)
    if unbound is not None:
        raise CaptureError(f"the constant @{unbound} has no value", hint="graph.bind(state_dict)")
    outside = {t.name: to_ort(constants[t.name].tensor) for t in proto.graph.initializer if is_outside(t)}
    options.add_external_initializers(list(outside), list(outside.values()))
    session = open_session(proto, options, providers or _providers(graph))
    return session, {name: c for name, c in constants.items() if c in graph.writebacks}


def _options(threads: int | None) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or torch.get_num_threads()
    return options


def _providers(graph: Graph) -> list[str]:
    import onnxruntime

    from codegen.onnx.ort import CPU, CUDA

    values = (*graph.inputs, *graph.constants.values())
    on_gpu = any(isinstance(v.type, TensorType) and v.type.device.type == "cuda" for v in values)
    return [CUDA, CPU] if on_gpu and CUDA in onnxruntime.get_available_providers() else [CPU]


def _updated(name: str) -> str:
    return f"{name}.updated"


def _like(made: torch.Tensor, result: Any) -> Any:
    """On the device that the graph's type names; a number where the graph returns one."""
    type_ = getattr(result, "type", None)
    if isinstance(type_, TensorType):
        return made.to(type_.device)
    return made.item()
