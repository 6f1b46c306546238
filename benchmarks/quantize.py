"""int8 on this CPU, latency and error: ours, ONNX Runtime's static quantisation, OpenVINO with NNCF.

    python -m benchmarks.quantize                    all models, written to benchmarks/results/quantize.md
    python -m benchmarks.quantize models.resnet      some

All engines are calibrated on the same random samples, and judged on others. Each has a process of its own;
see `benchmarks.tables.timed`. What is not installed is named under "Not run".
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tables import Table, about, timed, timed_parser, times
from capture import Graph, capture
from capture.loading import Loaded
from passes import PIPELINES, optimize
from passes.quantize import pipeline
from runtime.compile import compile
from runtime.processes import ProcessBenchmark
from runtime.quantized import noise

MODELS = ("models.resnet", "models.vit", "models.bert")
CALIBRATION, HELD_OUT = 8, 2  # samples
ENGINES = {
    "eager": {"engine": "eager"},
    "aten": {"engine": "aten"},
    "aten int8": {"engine": "benchmarks.quantize:ours"},
    "ONNX Runtime int8": {"engine": "benchmarks.quantize:onnx_runtime"},
    "OpenVINO + NNCF": {"engine": "benchmarks.quantize:openvino"},
}
Call = Callable[..., Any]
Made = tuple[Call, dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print each row as it is done, write the table."""
    options = timed_parser("quantize", __doc__, MODELS).parse_args(arguments)
    told = (
        f"{about(options, 'call').replace(', fp32', '')}; in brackets the relative L2 error of the outputs."
    )
    table = Table("quantize", "int8 on a CPU", told, ("model", *ENGINES))
    for model in options.models:
        measure(model, options, table)
    table.not_asked(MODELS, options.models)
    table.write(options.output)


def measure(model: str, options: argparse.Namespace, table: Table) -> None:
    """A row of the table."""
    if found := timed(ENGINES, model, options, table):
        table.row(f"{model}, batch {options.batch}", *(cell(found, name) for name in ENGINES))


def cell(found: ProcessBenchmark, name: str) -> str:
    """Times of an engine, and its error where it computes in int8."""
    error = found.engines.get(name, {}).get("relative_l2")
    return times(found, name) + ("" if error is None else f" ({error:.3f})")


def samples(loaded: Loaded) -> list[tuple[Tensor, ...]]:
    """Random inputs like the example: its mean and deviation, or whole numbers in its range."""
    generator = torch.Generator().manual_seed(5)

    def like(example: Tensor) -> Tensor:
        if not example.is_floating_point():
            low, high = int(example.min()), int(example.max())
            return torch.randint(low, high + 1, example.shape, generator=generator, dtype=example.dtype)
        noise_ = torch.randn(example.shape, generator=generator, dtype=example.dtype)
        return noise_ * example.std() + example.mean()

    return [tuple(like(a) for a in loaded.args) for _ in range(CALIBRATION + HELD_OUT)]


def described(loaded: Loaded, call: Call) -> dict[str, Any]:
    """The error on the samples that calibration has not seen."""
    return {"relative_l2": noise(loaded.module, call, samples(loaded)[CALIBRATION:]).relative_l2}


# -- engines: each makes a call, in a process of its own --------------------------------------------


def ours(loaded: Loaded, spec: Mapping[str, Any]) -> Made:
    """Our int8 on oneDNN's kernels."""
    passes = [*pipeline(samples(loaded)[:CALIBRATION]), *PIPELINES[2]]
    f = compile(loaded.module, loaded.args, loaded.kwargs, passes=passes, backend="aten")
    return lambda: f(*loaded.args), described(loaded, f)


def onnx_runtime(loaded: Loaded, spec: Mapping[str, Any]) -> Made:
    """ONNX Runtime's own static quantisation: QDQ, weights by channel."""
    import onnxruntime
    from onnxruntime import quantization as quant

    graph = folded(loaded)
    feeds = [feed(graph, s) for s in samples(loaded)[:CALIBRATION]]

    class Reader(quant.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[dict[str, Any]] = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        path, made = write_onnx(graph, folder), str(Path(folder) / "int8.onnx")
        quant.quantize_static(path, made, Reader(), per_channel=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = spec["threads"]
        session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    own = feed(graph, loaded.args)
    error = described(loaded, lambda *args: tensors(session.run(None, feed(graph, args))))
    return lambda: session.run(None, own), error


def openvino(loaded: Loaded, spec: Mapping[str, Any]) -> Made:
    """NNCF's post-training quantisation, run by OpenVINO in float32 where it is not int8."""
    import nncf
    import openvino as ov

    graph = folded(loaded)
    data = nncf.Dataset([feed(graph, s) for s in samples(loaded)[:CALIBRATION]])
    attends = any("attention" in str(node.op) for node in graph.nodes)
    kind = nncf.ModelType.TRANSFORMER if attends else None
    with tempfile.TemporaryDirectory() as folder:
        model = nncf.quantize(
            ov.Core().read_model(write_onnx(graph, folder)), data, subset_size=CALIBRATION, model_type=kind
        )
        settings = {"INFERENCE_NUM_THREADS": spec["threads"], "INFERENCE_PRECISION_HINT": "f32"}
        compiled = ov.Core().compile_model(model, "CPU", settings)
    request, own = compiled.create_infer_request(), feed(graph, loaded.args)
    error = described(loaded, lambda *args: tensors(request.infer(feed(graph, args)).values()))
    return lambda: request.infer(own, share_inputs=True, share_outputs=True), error


def folded(loaded: Loaded) -> Graph:
    """The float graph at level 1."""
    return optimize(capture(loaded.module, loaded.args, loaded.kwargs), 1)


def write_onnx(graph: Graph, folder: str) -> str:
    """The graph as a file; weights lie as they are read: neither peer sees one behind a Transpose."""
    import onnx_ir
    from onnxscript import optimizer

    from codegen import onnx

    path = str(Path(folder) / "float.onnx")
    onnx.export(graph, path, opset=20)
    model = onnx_ir.load(path)
    optimizer.fold_constants(model, input_size_limit=1 << 31, output_size_limit=1 << 31)
    optimizer.remove_unused_nodes(model)
    onnx_ir.save(model, path)
    return path


def feed(graph: Graph, args: Sequence[Tensor]) -> dict[str, Any]:
    return {value.name: tensor.numpy() for value, tensor in zip(graph.inputs, args, strict=True)}


def tensors(results: Any) -> list[Tensor]:
    return [torch.tensor(result) for result in results]


if __name__ == "__main__":
    main()
