"""--quantize, --calibration and --quant-config: what they do, what they tell, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

MODEL = "models.mlp:small"
NAME = "x"
OPTIONS = ("--quantize", "int8", "--calibration", "data.npz")


@pytest.fixture
def data(folder: Path) -> Callable[..., None]:
    """Write data.npz: random samples, or the arrays given."""

    def write(**arrays: np.ndarray) -> None:
        from models.mlp import example_inputs

        (example,) = example_inputs(1, "small")
        samples = np.random.default_rng(0).standard_normal((5, *example.shape)).astype(np.float32)
        np.savez(folder / "data.npz", **(arrays or {NAME: samples}))

    return write


def test_a_run_tells_the_error_and_says_that_it_is_a_proxy(cli, data, folder: Path) -> None:
    data()
    done = cli(MODEL, *OPTIONS, "--backend", "aten", "--iters", "1", "--emit", "python", "-o", "out")
    assert done.code == 0, done.err
    line = next(line for line in done.out.splitlines() if line.startswith("int8"))
    assert "relative L2 error" in line
    assert "5 samples" in line
    assert "a proxy for the accuracy of the task" in done.out
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["parity"]["ok"]
    assert report["quantization"]["scheme"] == "int8"
    assert 0 < report["quantization"]["relative_l2"] < 0.1
    assert report["quantization"]["proxy"] is True
    assert "qlinear(" in (folder / "out" / "model.py").read_text()


def test_batches_one_after_the_other_are_samples(cli, data, folder: Path) -> None:
    from models.mlp import example_inputs

    (example,) = example_inputs(1, "small")
    data(**{NAME: np.random.default_rng(0).standard_normal((6, *example.shape[1:])).astype(np.float32)})
    done = cli("explain", MODEL, *OPTIONS)
    assert done.code == 0, done.err


def test_a_configuration_keeps_layers_float(cli, data, folder: Path) -> None:
    data()
    (folder / "q.toml").write_text('observer = "mse"\n[layers]\n"*" = "float"\n')
    done = cli("explain", MODEL, *OPTIONS, "--quant-config", "q.toml")
    assert done.code == 0, done.err
    assert "stays float: the configuration says so" in " ".join(done.out.split())


def test_export_writes_qdq(cli, data, folder: Path) -> None:
    import onnx

    data()
    done = cli("export", MODEL, *OPTIONS, "--onnx", "m.onnx")
    assert done.code == 0, done.err
    assert "QuantizeLinear" in {n.op_type for n in onnx.load(folder / "m.onnx").graph.node}


def test_a_module_may_give_the_data(cli, model_file, folder: Path) -> None:
    name = model_file("mine", "return self.layer(x)", init="self.layer = torch.nn.Linear(4, 4)")
    with (folder / f"{name}.py").open("a") as file:
        file.write("\n\ndef calibration_data():\n    return [(torch.randn(8, 4),), torch.randn(8, 4)]\n")
    done = cli("explain", name, "--quantize", "int8")
    assert done.code == 0, done.err


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no data": (("--quantize", "int8"), "--quantize needs calibration data"),
    "no file": (("--quantize", "int8", "--calibration", "none.npz"), "there is no file none.npz"),
    "scheme": (("--quantize", "int3", "--calibration", "data.npz"), "no quantisation scheme 'int3'"),
    "calibration alone": (("--calibration", "data.npz"), "--calibration is of no use without --quantize"),
    "config alone": (("--quant-config", "q.toml"), "--quant-config is of no use without --quantize"),
    "no config": ((*OPTIONS, "--quant-config", "none.toml"), "cannot read none.toml"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_in_one_message(cli, data, case: str) -> None:
    args, message = WRONG[case]
    data()
    done = cli("explain", MODEL, *args)
    assert done.code == 2
    assert message in done.err.splitlines()[0]
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros((2, 3), np.float32)}, "holds y"),
        ({NAME: np.zeros((2, 3), np.float32)}, "is [2, 3], the input"),
        ({NAME: np.zeros((0, 1, 16), np.float32)}, "the calibration data is empty"),
    ],
)
def test_data_that_does_not_fit(cli, data, arrays: dict[str, np.ndarray], message: str) -> None:
    if message.endswith("empty"):
        from models.mlp import example_inputs

        arrays = {NAME: np.zeros((0, *example_inputs(1, "small")[0].shape), np.float32)}
    data(**arrays)
    done = cli("explain", MODEL, *OPTIONS)
    assert done.code == 2
    assert message in done.err.splitlines()[0]
