"""QDQ: quantise and dequantise nodes in ONNX, and their answers in ONNX Runtime."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from capture.errors import UnsupportedOpError
from codegen import onnx
from passes import optimize, quantize
from tests.handmade import parse
from tests.passes.quantize.nets import block, error, relative, residual

D = "quantized_decomposed.dequantize_per_tensor"
Q = "quantized_decomposed.quantize_per_tensor"


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("make", [residual, block])
def test_onnx_runtime_answers_as_the_graph_does(make: object, level: int) -> None:
    graph, samples = make()
    made = optimize(quantize(graph, samples), level)
    off = onnx.check(onnx.export(made), made, samples[0])
    wanted = graph.run(*samples[0])
    noise = float((made.run(*samples[0]) - wanted).abs().max())
    assert off <= max(2 * noise, 1e-5)


def test_weights_stay_integers_by_channel() -> None:
    graph, samples = residual()
    model = onnx.export(quantize(graph, samples))
    kinds = Counter(n.op_type for n in model.graph.node)
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (7, 12)
    weight = next(t for t in model.graph.initializer if t.name == "head.weight.int8")
    reader = next(n for n in model.graph.node if weight.name in n.input)
    assert reader.op_type == "DequantizeLinear"
    assert [a.i for a in reader.attribute if a.name == "axis"] == [0]
    assert reader.input[1] == "head.weight.scale"


def run(text: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import onnxruntime

    graph = parse(text)
    model = onnx.export(graph)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.tensor(session.run(None, {"x": x.numpy()})[0]), graph.run(x)


def test_a_narrow_range_is_clipped() -> None:
    found, wanted = run(
        f"""
        graph(%x: f32[5])
          %0: i8[5] = {Q}(%x, 0.5, 3, -7, 7, torch.int8)
          %1: f32[5] = {D}(%0, 0.5, 3, -7, 7, torch.int8)
          return %1
        """,
        torch.tensor([-100.0, -1.3, 0, 1.6, 100]),
    )
    assert torch.equal(found, wanted)


def test_channels_with_zero_points() -> None:
    found, wanted = run(
        """
        graph(%x: f32[2, 3])
          @s: f32[3]
          @z: i64[3]
          %0: i8[2, 3] = quantized_decomposed.quantize_per_channel(%x, @s, @z, 1, -128, 127, torch.int8)
          %1: f32[2, 3] = quantized_decomposed.dequantize_per_channel(%0, @s, @z, 1, -128, 127, torch.int8)
          return %1
        """,
        torch.randn(2, 3),
    )
    assert relative(found, wanted) < 1e-6


def test_other_integers_have_no_form() -> None:
    graph = parse(f"""
        graph(%x: f32[5])
          %0: i32[5] = {Q}(%x, 0.5, 3, -7, 7, torch.int32)
          return %0
        """)
    with pytest.raises(UnsupportedOpError, match="no ONNX lowering"):
        onnx.export(graph)


def test_the_error_is_that_of_quantising() -> None:
    graph, samples = block()
    assert error(graph, quantize(graph, samples), samples) > 1e-4
