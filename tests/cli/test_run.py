"""`run`: the account, the output folder, and the report."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from capture import Graph
from runtime.cli import main
from runtime.report import REQUIRED, Report

MODEL = "models.mlp:small"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """One whole run, with everything that is written of itself; its output, and the folder it ran in."""
    place = tmp_path_factory.mktemp("whole")
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(place),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setenv("COLUMNS", "100")
        code = main([MODEL, "--optimize", "--iters", "1"])
    return Outcome(code, out.getvalue(), err.getvalue()), place


@pytest.fixture
def done(whole: tuple[Outcome, Path]) -> Outcome:
    return whole[0]


def test_the_account(done) -> None:
    assert done.code == 0
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0] == "models.mlp:small    MLP    1.7 k parameters    float32    input x [1, 16]"
    labels = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert labels[1:] == ["capture", "optimize", "memory", "parity", "latency", "capture-out/mlp-small/"]
    assert re.search(r"^capture +torch\.export \(non-strict\) +7 nodes +[\d.]+ m?s$", done.out, re.M)
    assert re.search(r"^  simplify +7 -> 5 +[\d.]+ ms  ", done.out, re.M)
    assert re.search(r"^parity +error vs fp64: ours \d\.\de-\d\d, eager \d\.\de-\d\d +ok$", done.out, re.M)
    assert re.search(r"^latency +eager [\d.]+ (ms|µs)", done.out, re.M)


def test_the_output_folder(done: Outcome, whole: tuple[Outcome, Path]) -> None:
    written = whole[1] / "capture-out" / "mlp-small"
    names = {file.name for file in written.iterdir()}
    assert names == {
        "graph.txt", "optimized.txt", "graph.svg", "optimized.svg", "memory.svg", "model.py", "model.onnx",
        "trace.json", "report.html", "report.json",
    }  # fmt: skip
    assert all(name in done.out for name in names)
    Graph.parse((written / "graph.txt").read_text()).verify()
    Graph.parse((written / "optimized.txt").read_text()).verify()
    report = Report.load(written / "report.json")
    assert set(report["files"]) == names
    assert report["model"] == MODEL


def test_generated_python_runs_by_itself(whole: tuple[Outcome, Path]) -> None:
    source = (whole[1] / "capture-out" / "mlp-small" / "model.py").read_text()
    assert "import capture" not in source
    assert "from capture" not in source
    compile(source, "model.py", "exec")


def test_capture_alone(cli, folder: Path) -> None:
    done = cli("run", MODEL, "--emit", "", "--iters", "1")
    assert done.code == 0
    assert "O0: the graph as captured" in done.out
    names = {file.name for file in (folder / "capture-out" / "mlp-small").iterdir()}
    assert names == {"graph.txt", "trace.json", "report.json"}


def test_json_is_all_there_is(cli) -> None:
    done = cli(MODEL, "-O1", "--json", "--emit", "", "--iters", "1")
    data = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert set(REQUIRED) <= set(data)
    assert data["parity"]["ok"] is True
    assert data["level"] == 1


def test_quiet_prints_nothing(cli, folder: Path) -> None:
    done = cli(MODEL, "-q", "--emit", "", "--iters", "1")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (folder / "capture-out" / "mlp-small" / "report.json").is_file()


def test_dry_run_writes_nothing(cli, folder: Path) -> None:
    done = cli(MODEL, "--optimize", "--dry-run")
    assert done.code == 0
    assert "dry run" in done.out
    assert "latency" not in done.out
    assert list(folder.iterdir()) == []
    assert json.loads(cli(MODEL, "--dry-run", "--json").out)["nodes"]["captured"] == 7


@pytest.mark.parametrize("backend", ["aten", "onnx", "eager"])
def test_backends(cli, backend: str) -> None:
    done = cli(MODEL, "--optimize", "--backend", backend, "--json", "--emit", "", "--iters", "1")
    data = json.loads(done.out)
    assert (done.code, data["backend"]) == (0, backend)
    assert data["parity"]["ok"] is True
    assert {row["side"] for row in data["ops"]} == {"eager", "optimized"}
    assert (data["memory"]["measured_peak_bytes"] is None) == (backend == "onnx")


def test_passes_by_name_and_dumps(cli, folder: Path) -> None:
    done = cli(
        MODEL, "--passes", "simplify,eliminate-dead-code", "--disable-pass", "simplify", "--verify",
        "--dump-dir", "dumps", "--emit", "", "--iters", "1", "-o", "here",
    )  # fmt: skip
    assert done.code == 0
    assert "own passes" in done.out
    assert sorted(f.name for f in (folder / "dumps").iterdir()) == [
        "00-captured.txt",
        "01-eliminate-dead-code.txt",
    ]
    assert (folder / "here" / "report.json").is_file()


def test_inputs_of_ones_own(cli) -> None:
    done = cli(MODEL, "--input", "x=5x16:float32", "--json", "--emit", "", "--iters", "1")
    assert json.loads(done.out)["inputs"] == ["x [5, 16]"]
    done = cli(MODEL, "--batch", "3", "--json", "--emit", "", "--iters", "1")
    assert json.loads(done.out)["inputs"] == ["x [3, 16]"]


def test_a_dimension_that_varies(cli) -> None:
    done = cli(MODEL, "--dynamic", "x:0=batch[1..64]", "--batch", "2", "--json", "--emit", "", "--iters", "1")
    assert json.loads(done.out)["inputs"] == ["x [batch, 16]"]


def test_tolerances_decide(cli, model_file: Callable[..., str]) -> None:
    model_file("shaky", "return x + (1e-3 if torch.compiler.is_exporting() else 0.0)")
    args = ("shaky", "--backend", "aten", "--emit", "", "--iters", "1")
    done = cli(*args)
    assert done.code == 1
    assert "FAILED" in done.out
    assert done.err.startswith("error: the results are not right\n  out: error vs fp64")
    assert "--disable-pass" not in done.err  # nothing was optimised
    assert cli(*args, "--atol", "0.01").code == 0


def test_a_wrong_result_is_json_too(cli, model_file: Callable[..., str], folder: Path) -> None:
    model_file("shaky", "return x + (1e-3 if torch.compiler.is_exporting() else 0.0)")
    done = cli("shaky", "--backend", "aten", "--json", "--emit", "", "--iters", "1")
    assert done.code == 1
    assert json.loads(done.out)["parity"]["ok"] is False
    assert Report.load(folder / "capture-out" / "shaky" / "report.json")["parity"]["ok"] is False


def test_auto_keeps_eager_where_the_graph_is_wrong(cli, model_file: Callable[..., str]) -> None:
    model_file("shaky", "return x + (1e-3 if torch.compiler.is_exporting() else 0.0)")
    done = cli("shaky", "--emit", "", "--iters", "1")
    assert done.code == 0
    assert "eager is kept" in done.out
    assert "aten, onnx left out: not right: " in done.out
    assert "not right" not in done.err


def test_code_that_is_not_right_is_marked(cli, model_file: Callable[..., str], folder: Path) -> None:
    """Where eager is kept, too: the generated code is not what ran."""
    model_file("shaky", "return x + (1e-3 if torch.compiler.is_exporting() else 0.0)")
    for options, code in (((), 0), (("--backend", "aten"), 1)):
        done = cli("shaky", *options, "--optimize", "--iters", "1", "--emit", "python,onnx", "-o", "out")
        assert done.code == code
        assert "model.py is marked as not right" in done.out
        first = (folder / "out" / "model.py").read_text().splitlines()[0]
        assert first.startswith("# WARNING: its results are not right: out: error vs fp64")
        model = onnx.load(folder / "out" / "model.onnx")
        assert model.doc_string.startswith("WARNING: its results are not right")
        onnx.checker.check_model(model, full_check=True)


def test_code_that_is_right_is_not_marked(whole: tuple[Outcome, Path]) -> None:
    written = whole[1] / "capture-out" / "mlp-small"
    assert "WARNING" not in (written / "model.py").read_text()
    assert "WARNING" not in onnx.load(written / "model.onnx").doc_string


def test_iterations_are_calls_in_all(cli) -> None:
    done = cli(MODEL, "-O1", "--backend", "aten", "--json", "--emit", "", "--iters", "8")
    assert len(json.loads(done.out)["latency_ms"]["optimized"]["samples"]) == 8


def test_passes_without_work_are_one_line(cli, done: Outcome) -> None:
    assert re.search(r"^  \d+ more passes found nothing to do \(-v shows them\)$", done.out, re.M)
    assert not re.search(r"^  fold-batch-norm", done.out, re.M)
    verbose = cli(MODEL, "--optimize", "--dry-run", "-v")
    assert re.search(r"^  fold-batch-norm +5 -> 5", verbose.out, re.M)
    assert "more passes" not in verbose.out


def test_the_peak_is_held_by_a_module(cli) -> None:
    done = cli("models.resnet:small", "--optimize", "--dry-run")
    assert re.search(r"^ +peak held by conv1 \(models/resnet.py:\d+\)", done.out, re.M)


def test_a_small_terminal(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    done = cli(MODEL, "--optimize", "--iters", "1", "--emit", "svg")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 60


def test_no_colour_and_no_progress_in_a_pipe(done) -> None:
    assert "\x1b" not in done.out + done.err
    assert all(line == line.rstrip() for line in done.out.splitlines())


TWO_INPUTS = """import torch
from torch import nn


class Two(nn.Module):
    def forward(self, x, y, z=None):
        return x + y.shape[-1]


def build():
    return Two()


def example_inputs(batch=1):
    return torch.ones(batch, 4), torch.ones(batch, 4)
"""


def test_what_is_to_be_noted_of_a_model(cli, folder: Path) -> None:
    (folder / "two_inputs.py").write_text(TWO_INPUTS)
    done = cli("two_inputs", "--dry-run")
    assert "it was in training mode: switched to eval" in done.out
    assert "the result does not depend on y" in done.out
    plain = cli(MODEL, "--dry-run").out
    assert "training mode" not in plain
    assert "does not depend" not in plain


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (("x=2x4",), "the input 'y' is not given\n  the model's inputs are x, y"),
        (("x=2x4", "x=3x4"), "--input names x twice"),
    ],
)
def test_inputs_that_do_not_fit(cli, folder: Path, inputs: tuple[str, ...], said: str) -> None:
    (folder / "two_inputs.py").write_text(TWO_INPUTS)
    done = cli("two_inputs", *(word for text in inputs for word in ("--input", text)), "--dry-run")
    assert done.code == 2
    assert said in done.err


def test_higher_order_ops_are_measured(cli, model_file: Callable[..., str], folder: Path) -> None:
    model_file("branches", "return torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))")
    done = cli("branches", "--emit", "", "--iters", "1")
    assert done.code == 0, done.err
    assert "no per-op times" not in done.out
    assert {row["side"] for row in Report.load(folder / "capture-out/branches/report.json")["ops"]} == {
        "eager",
        "optimized",
    }
