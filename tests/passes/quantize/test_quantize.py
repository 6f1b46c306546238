"""passes.quantize: where integers stand, what stays float and why, and how far the answers are off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import passes
from capture import Graph, capture
from capture.errors import UsageError
from capture.ir import op_name
from passes import QuantConfig, quantize
from tests.handmade import parse
from tests.passes.quantize.nets import block, error, images, relative, residual, rows, seeded


def ops(graph: Graph) -> list[str]:
    """Each node's op, without overload and namespace."""
    return [op_name(n.op).split(".")[1] for n in graph.nodes]


def test_golden() -> None:
    graph = parse("""
        graph(%x: f32[2, 4])
          @w: f32[3, 4]
          @b: f32[3]
          %0: f32[2, 3] = aten.linear(%x, @w, @b)
          return %0
        """)
    graph.bind({"w": torch.tensor([[1.0, -2, 0.5, 0], [0, 0, 0, 0], [127, 1, 2, 3]]), "b": torch.zeros(3)})
    made = quantize(graph, [(torch.tensor([[-1.0, 0, 0, 0], [4.1, 0, 0, 0]]),)])
    assert str(made) == (
        "graph(%x: f32[2, 4])\n"
        "  @b: f32[3]\n"
        "  @w.int8: i8[3, 4]\n"
        "  @w.scale: f32[3]\n"
        "  %0: u8[2, 4] = quantized_decomposed.quantize_per_tensor"
        "(%x, 0.01999999962601007, 50, 0, 255, torch.uint8)\n"
        "  %1: f32[2, 4] = quantized_decomposed.dequantize_per_tensor"
        "(%0, 0.01999999962601007, 50, 0, 255, torch.uint8)\n"
        "  %2: f32[3, 4] = quantized_decomposed.dequantize_per_channel"
        "(@w.int8, @w.scale, None, 0, -127, 127, torch.int8)\n"
        "  %3: f32[2, 3] = aten.linear(%1, %2, @b)\n"
        "  return %3\n"
    )
    integers = made.constants["w.int8"].tensor
    assert integers is not None
    assert integers.tolist() == [[64, -127, 32, 0], [0, 0, 0, 0], [127, 1, 2, 3]]
    assert made.constants["w.scale"].tensor.tolist() == pytest.approx([2 / 127, 1.0, 1.0])


def test_integers_between_the_layers_of_a_residual_network() -> None:
    graph, samples = residual()
    made = quantize(graph, samples)
    assert made.verify().nodes
    optimized = passes.optimize(made, verify=True)
    kernels = [n.impl.kernel for n in optimized.nodes if n.impl is not None]
    assert kernels == [
        "aten.quantize", "onednn.qconv", "quantized.max_pool2d", "onednn.qconv", "onednn.qconv",
        "onednn.qconv", "aten.dequantize", "aten.quantize", "onednn.qlinear",
    ]  # fmt: skip
    assert error(graph, made, images(2, seed=7)) < 0.03


def test_a_transformer_block_keeps_its_residual_in_float() -> None:
    graph, samples = block()
    made = quantize(graph, samples)
    optimized = passes.optimize(made, verify=True)
    recipes = [str(n.impl) for n in optimized.nodes if n.impl is not None]
    assert [n.impl.kernel for n in optimized.nodes if n.impl is not None] == [
        "aten.quantize", "onednn.qlinear", "onednn.qlinear",
    ]  # fmt: skip
    assert "gelu" in recipes[1]
    assert "'add'" in recipes[2]
    assert error(graph, made, rows(2, seed=7)) < 0.01


def test_same_arguments_give_the_same_graph() -> None:
    graph, samples = residual()
    before = str(graph)
    first, second = quantize(graph, samples), quantize(graph, iter(samples))
    assert str(first) == str(second)
    assert str(graph) == before
    for name, constant in first.constants.items():
        assert torch.equal(constant.tensor, second.constants[name].tensor)


def test_text_round_trips() -> None:
    graph, samples = residual()
    made = quantize(graph, samples)
    assert str(Graph.parse(str(made))) == str(made)


def test_an_fp64_run_judges_the_arithmetic_between_the_integers() -> None:
    graph, samples = block()
    made = quantize(graph, samples)
    wide = made.run(*samples[0], dtype=torch.float64)
    assert wide.dtype == torch.float64
    assert relative(made.run(*samples[0]), wide) < 1e-6


def test_batch_norm_is_folded_before() -> None:
    graph, samples = residual()
    assert "stem.weight.folded.int8" in quantize(graph, samples).constants


def test_a_pool_has_one_scale_before_and_after() -> None:
    graph, samples = residual()
    made = quantize(graph, samples)
    pool = next(n for n in made.nodes if op_name(n.op) == "aten.max_pool2d")
    before, after = pool.operands[0].producer, pool.results[0].users[0]
    assert before.operands[1:3] == after.operands[1:3]


class Joined(nn.Module):
    """Two convolutions' results, concatenated for a third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x).relu(), self.b(x).relu()], 1))


def test_concats_join_integers() -> None:
    samples = images(2)
    graph = capture(seeded(Joined), samples[0])
    optimized = passes.optimize(quantize(graph, samples), verify=True)
    cat = next(n for n in optimized.nodes if op_name(n.op) == "aten.cat")
    assert cat.results[0].tensor_type.dtype == torch.uint8


LEFT_FLOAT = {
    "no kernel": ("bmm", "there is no int8 kernel for aten.bmm"),
    "computed weight": ("linear", "its weight is not constant, or empty"),
}


@pytest.mark.parametrize("case", LEFT_FLOAT)
def test_what_stays_float_and_why(case: str) -> None:
    call, why = LEFT_FLOAT[case]

    class Model(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return torch.bmm(x, x) + w.sum() if call == "bmm" else nn.functional.linear(x, w)

    args = (torch.randn(2, 3, 3), torch.randn(5, 3))
    made = quantize(capture(Model(), args), [args])
    assert "int8" not in str(made)
    assert [row.reason for row in passes.ledger(made) if "float" in row.reason] == [f"stays float: {why}"]


def test_other_dtypes_stay_float() -> None:
    model = seeded(nn.Linear, 4, 4).to(torch.bfloat16)
    args = (torch.randn(2, 4).to(torch.bfloat16),)
    made = quantize(capture(model, args), [args])
    assert "stays float: the int8 kernels take the place of float32 ones only" in [
        row.reason for row in passes.ledger(made)
    ]


def test_a_configuration_keeps_layers_float() -> None:
    graph, samples = residual()
    made = quantize(graph, samples, config=QuantConfig(layers={"*": "float", "l*": "int8"}))
    reasons = {row.module: row.reason for row in passes.ledger(made)}
    assert reasons["stem"] == reasons["head"] == "stays float: the configuration says so"
    assert [n for n in made.constants if n.endswith("int8")] == ["left.weight.int8", "last.weight.int8"]


def test_a_layer_that_is_given_nothing_stays_float() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x[x[:, 0] > 1])

    sample = (torch.tensor([[0.0, 1, 2, 3], [-1, 1, 2, 3]]),)
    graph = capture(seeded(Model), sample)
    made = quantize(graph, [sample])
    reasons = {row.module: row.reason for row in passes.ledger(made)}
    assert reasons["b"] == "stays float: calibration never reached it"
    assert "a.weight.int8" in made.constants
    with pytest.raises(UsageError, match="calibration never reaches the layer b"):
        quantize(graph, [sample], config={"layers": {"b": "int8"}})


def test_dynamic_sizes() -> None:
    model = seeded(nn.Sequential, nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    batch = torch.export.Dim("batch", min=1, max=64)
    graph = capture(model, (torch.randn(3, 16),), dynamic_shapes=({0: batch},))
    made = passes.optimize(quantize(graph, [(torch.randn(63, 16),)]), verify=True)
    for size in (1, 5, 64):
        x = torch.randn(size, 16)
        assert relative(made.run(x), graph.run(x)) < 0.05


def test_a_value_that_the_graph_returns_too() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x).relu()
            return y, self.b(y)

    samples = images(2)
    graph = capture(seeded(Model), samples[0])
    made = passes.optimize(quantize(graph, samples), verify=True)
    for found, wanted in zip(made.run(*samples[0]), graph.run(*samples[0]), strict=True):
        assert relative(found, wanted) < 0.03


def test_outliers_are_smoothed_away() -> None:
    graph, samples = block(outlier=60.0)
    plain, smooth = quantize(graph, samples), quantize(graph, samples, config={"smooth": 0.5})
    assert error(graph, smooth, samples) < 0.5 * error(graph, plain, samples)


def test_smoothing_alone_changes_nothing() -> None:
    graph, samples = block(outlier=60.0)
    made = quantize(graph, samples, config={"smooth": 0.5, "layers": {"down": "float"}})
    assert "norm.weight.smoothed" in made.constants
    assert error(graph, made, samples) < 0.02


def test_bias_correction_takes_away_the_mean_of_the_error() -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 32)
    samples = [(torch.randn(50, 64) + 3,) for _ in range(2)]
    graph = capture(model, samples[0])

    def bias(config: QuantConfig) -> float:
        made = quantize(graph, samples, config=config)
        return float((made.run(*samples[0]) - graph.run(*samples[0])).mean(0).abs().max())

    assert bias(QuantConfig(bias_correction=True)) < 0.5 * bias(QuantConfig())


def test_bias_correction_of_convolutions() -> None:
    graph, samples = residual()
    made = quantize(graph, samples, config={"bias_correction": True})
    assert "stem.weight.folded.corrected_bias" in made.constants
    assert error(graph, made, samples) < 0.03


@pytest.mark.parametrize("observer", ["minmax", "moving-average", "percentile", "mse", "kl"])
def test_every_observer_gives_a_usable_graph(observer: str) -> None:
    graph, samples = residual()
    assert error(graph, quantize(graph, samples, config={"observer": observer}), samples) < 0.1
