"""`tune`: what it says, what it writes, how it ends. Times are by a table."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest

import runtime.cli.tune as command
from passes.quantize import QuantConfig
from runtime.tuned import Configuration
from tests.runtime.clocks import Clock

CALIBRATION = """

def calibration_data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 8, generator=generator),) for _ in range(2)]
"""
STRICT = """

def evaluate(fn):
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    return float(torch.allclose(fn(x), build().eval()(x), atol=1e-6))
"""


@pytest.fixture
def net(model_file, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a model of two layers, with more text after it."""
    monkeypatch.setattr(command, "tune", functools.partial(command.tune, timer=Clock()))

    def write(more: str = CALIBRATION) -> str:
        init = "torch.manual_seed(0); self.a = torch.nn.Linear(8, 16); self.b = torch.nn.Linear(16, 4)"
        name = model_file("net", "return self.b(self.a(x).relu())", "torch.randn(batch, 8)", init)
        path = folder / f"{name}.py"
        path.write_text(path.read_text() + more)
        return name

    return write


def test_it_tells_what_was_chosen_and_writes_the_configuration(cli, net, folder: Path) -> None:
    done = cli("tune", net(), "--batch", "4", "--max-drop", "90%", "--ratios", "50%")
    assert done.code == 0
    assert "channels 50% + int8, 2 of 2 layers" in done.out
    assert "a proxy: the module has no evaluate(fn) -> float" in done.out
    assert "top-1 agreement with the float model 1.0000 -> " in done.out
    text = (folder / "capture-out/net/tuned.toml").read_text()
    assert text.startswith(
        "# channels 50% + int8, 2 of 2 layers; to do it again: python -m capture net --quantize"
    )
    assert " --prune channels:0.5\n" in text
    made = Configuration.from_toml(folder / "capture-out/net/tuned.toml")
    assert made.prune.sparsity == 0.5
    assert dict(made.quantize.layers) == {"a": "int8", "b": "int8"}
    assert (folder / "capture-out/net/tune.svg").read_text().startswith("<svg")
    assert json.loads((folder / "capture-out/net/tune.json").read_text())["met"] is True


def test_json_is_one_document(cli, net) -> None:
    data = json.loads(cli("tune", net(), "--ratios", "none", "--json").out)
    assert data["chosen"] == "int8, 2 of 2 layers"
    assert [row["layer"] for row in data["layers"]] == ["a", "b"]
    assert data["files"] == ["tuned.toml", "tune.svg", "tune.json"]


def test_a_budget_that_nothing_keeps_ends_with_1_and_the_closest(cli, net, folder: Path) -> None:
    done = cli("tune", net(CALIBRATION + STRICT), "--ratios", "none", "--max-drop", "0.5")
    assert done.code == 1
    told = " ".join(done.out.split())
    assert "nothing loses at most 50.00%: the float model is kept" in told
    assert "the closest, int8, 2 of 2 layers loses 100.00%" in told
    assert "metric 1.0000 -> 1.0000" in told
    assert "float model was kept" in (folder / "capture-out/net/tuned.toml").read_text()


def test_layers_of_a_configuration_stay_float(cli, net, folder: Path) -> None:
    (folder / "mine.toml").write_text(QuantConfig(layers={"b": "float"}).to_toml())
    np.savez(folder / "data.npz", x=np.random.default_rng(0).normal(size=(6, 8)).astype("float32"))
    done = cli(
        "tune", net(""), "--calibration", "data.npz", "--quant-config", "mine.toml", "--ratios", "none",
        "--max-drop", "1",
    )  # fmt: skip
    assert done.code == 0
    assert "int8, 1 of 2 layers" in done.out
    assert "stays float: the configuration says so" in done.out


def test_without_calibration_data_it_says_where_from(cli, net) -> None:
    done = cli("tune", net(""))
    assert done.code == 2
    assert "tune needs calibration data" in done.err
    assert "--calibration FILE.npz" in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-drop", "much"], "'much' is no share; write 1% or 0.01"),
        (["--ratios", "150%"], "a sparsity of 1.5 is out of range"),
        (["--quant-config", "none.toml"], "cannot read none.toml"),
        (["--calibration", "bad.npz"], "holds NaN"),
        (["--calibration", "flat.npz"], "the calibration data is constant"),
    ],
)
def test_bad_input_is_one_message(cli, net, folder: Path, options, said) -> None:
    np.savez(folder / "bad.npz", x=np.full((2, 8), np.nan, "float32"))
    np.savez(folder / "flat.npz", x=np.zeros((2, 8), "float32"))
    done = cli("tune", net(), *options)
    assert done.code == 2
    assert said in done.err
    assert done.out == ""
    assert not (folder / "capture-out").exists()
