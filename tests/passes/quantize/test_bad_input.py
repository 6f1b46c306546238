"""What a user can do wrong gives one clear message each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from capture import capture
from capture.errors import CaptureError, UsageError
from passes import QuantConfig, quantize
from tests.passes.quantize.nets import residual

X = torch.randn(2, 3, 8, 8)
BAD_DATA = {
    "empty": ([], "the calibration data is empty"),
    "constant": ([(torch.ones(2, 3, 8, 8),)] * 2, "the calibration data is constant"),
    "NaN": ([(X,), (X * float("nan"),)], "calibration sample 2: the input x holds NaN or an infinity"),
    "infinite": ([(X / 0,)], "calibration sample 1: the input x holds NaN or an infinity"),
    "shape": ([(torch.randn(2, 3, 9, 8),)], r"calibration sample 1: the input x is float32 \[2, 3, 9, 8\]"),
    "rank": ([(torch.randn(3, 8, 8),)], r"calibration sample 1: the input x is float32 \[3, 8, 8\]"),
    "dtype": ([(X.double(),)], "calibration sample 1: the input x is float64"),
    "too many": ([(X, X)], "calibration sample 1 does not fit the model: 1 input is needed, 2 given"),
    "no tensor": ([(3,)], "calibration sample 1: the input x is no tensor"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_calibration_data(case: str) -> None:
    data, message = BAD_DATA[case]
    graph, _ = residual()
    with pytest.raises(UsageError, match=message) as caught:
        quantize(graph, data)
    assert caught.value.hint


def test_a_value_inside_that_is_not_finite() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.log(x))

    args = (torch.tensor([[1.0, 2, -3, 4]]),)
    with pytest.raises(CaptureError, match="calibration made a value that is NaN or infinite") as caught:
        quantize(capture(Model(), args), [args])
    assert "test_bad_input.py" in str(caught.value.where)


BAD_CONFIG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown layer": ({"layers": {"stern": "float"}}, "names an unknown layer 'stern'"),
    "unknown layer scheme": ({"layers": {"stem": "int3"}}, "the scheme of the layer stem is 'int3'"),
    "observer": ({"observer": "median"}, "observer is 'median'"),
    "percentile": ({"percentile": 101}, "percentile is 101"),
    "momentum": ({"momentum": 0}, "momentum is 0"),
    "smooth": ({"smooth": True}, "smooth is True"),
    "bias correction": ({"bias_correction": 1}, "bias_correction is 1"),
    "layers": ({"layers": ["stem"]}, "layers is no table"),
    "setting": ({"observers": "mse"}, "the quantisation configuration cannot be read"),
}


@pytest.mark.parametrize("case", BAD_CONFIG)
def test_configurations(case: str) -> None:
    config, message = BAD_CONFIG[case]
    graph, samples = residual()
    with pytest.raises(UsageError, match=message):
        quantize(graph, samples, config=config)


def test_an_unknown_layer_is_told_the_nearest() -> None:
    graph, samples = residual()
    with pytest.raises(UsageError) as caught:
        quantize(graph, samples, config={"layers": {"stern": "float"}})
    assert "stem" in str(caught.value.hint)


def test_an_unknown_scheme() -> None:
    graph, samples = residual()
    with pytest.raises(UsageError, match="there is no quantisation scheme 'int3'"):
        quantize(graph, samples, scheme="int3")


FILES = {
    "no TOML": ("layers =", "is no TOML"),
    "unknown setting": ('observers = "mse"', "there is no setting 'observers'"),
    "bad value": ('observer = "median"', "observer is 'median'"),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case: str, tmp_path: Path) -> None:
    text, message = FILES[case]
    path = tmp_path / "q.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        QuantConfig.from_toml(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        QuantConfig.from_toml(tmp_path / "none.toml")


def test_a_file_reads_back_what_was_written(tmp_path: Path) -> None:
    config = QuantConfig("percentile", 99.5, 0.2, 0.5, True, {"encoder.*": "float", "encoder.0": "int8"})
    path = tmp_path / "q.toml"
    path.write_text(config.to_toml())
    assert QuantConfig.from_toml(path) == config
    path.write_text(QuantConfig().to_toml())
    assert QuantConfig.from_toml(path) == QuantConfig()
