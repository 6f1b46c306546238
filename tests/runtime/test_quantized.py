"""Parity and noise of quantised models: held against what their integers mean, the noise told beside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import runtime
from capture import capture
from capture.errors import CaptureError
from passes import PIPELINES, quantize
from passes.quantize import pipeline
from runtime.quantized import noise, quantized_graph
from runtime.worker import prepare


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)).eval()


@pytest.fixture
def samples() -> list[tuple[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 32, generator=generator),) for _ in range(4)]


def compiled(model: nn.Module, samples: list[tuple[torch.Tensor]]) -> runtime.compile.Compiled:
    return runtime.compile(model, samples[0], passes=[*pipeline(samples), *PIPELINES[2]], backend="aten")


def test_a_quantised_model_is_right_though_it_is_not_float(model, samples) -> None:
    f = compiled(model, samples)
    parity = runtime.compare(model, f, samples[0])
    assert parity.ok
    assert parity.error_vs_fp64 > 1e-3
    assert parity.eager_error_vs_fp64 == pytest.approx(parity.error_vs_fp64, rel=0.2)
    assert "quantised graph" in parity.reason


def test_so_is_a_graph_that_was_quantised_before(model, samples) -> None:
    graph = quantize(capture(model, samples[0]), samples)
    f = runtime.compile(graph, samples[0], backend="aten")
    assert quantized_graph(f) is not None
    assert runtime.compare(graph, f, samples[0]).ok


def test_a_wrong_kernel_is_not_excused(model, samples) -> None:
    f = compiled(model, samples)
    right = f.executable
    f.executable = lambda *flat: [v * 1.3 for v in right(*flat)]
    assert not runtime.compare(model, f, samples[0]).ok
    f.executable = lambda *flat: [v * float("nan") for v in right(*flat)]
    assert "NaN" in runtime.compare(model, f, samples[0]).reason


def test_a_float_model_is_judged_as_ever(model, samples) -> None:
    f = runtime.compile(model, samples[0], backend="aten")
    assert quantized_graph(f) is None
    right = f.executable
    f.executable = lambda *flat: [v * 1.005 for v in right(*flat)]
    assert not runtime.compare(model, f, samples[0]).ok


def test_weights_that_change_are_quantised_anew(model, samples) -> None:
    f = compiled(model, samples)
    before = f(*samples[0])
    with torch.no_grad():
        model[2].weight.mul_(2)
        model[2].bias.mul_(2)
    torch.testing.assert_close(f(*samples[0]), 2 * before, rtol=1e-3, atol=1e-3)
    assert f.recompiles == 1


def test_noise() -> None:
    x = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 5.0]])
    found = noise(lambda v: v, lambda v: v + torch.tensor([0.0, 0.0, 4.5]), [(x,)])
    assert found.relative_l2 == pytest.approx((2 * 4.5**2 / 50) ** 0.5)
    assert found.sqnr_db == pytest.approx(-20 * torch.tensor(found.relative_l2).log10().item(), rel=1e-5)
    assert found.top1 == 0.5
    assert found.to_dict()["proxy"] is True


def test_noise_of_what_is_equal_or_not_finite() -> None:
    x = torch.ones(2, 3)
    assert noise(lambda v: v, lambda v: v, [(x,)]).sqnr_db is None
    assert noise(lambda v: v, lambda v: v / 0, [(x,)]).relative_l2 == float("inf")


def test_what_cannot_be_saved_says_so(model, samples, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="the pass quantize cannot be saved"):
        compiled(model, samples).save(tmp_path / "f")
    graph = quantize(capture(model, samples[0]), samples)
    f = runtime.compile(graph, samples[0], backend="aten")
    f.save(tmp_path / "g")
    assert torch.equal(runtime.load(tmp_path / "g")(*samples[0]), f(*samples[0]))


@pytest.mark.parametrize("engine", ["ours", "onnx_runtime"])
def test_engines_of_the_benchmark(engine: str) -> None:
    spec = {"engine": f"benchmarks.quantize:{engine}", "model": "models.mlp:small", "threads": 1}
    call, told = prepare(spec)
    call()
    assert 0 < told["relative_l2"] < 0.1
    assert told["seconds_to_start"] > 0
