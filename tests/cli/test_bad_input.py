"""Bad input: one message with what, where, why and what to try; the right exit code; nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import runtime.cli.run as run_command

MODEL = "models.mlp:small"


def files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and f.suffix != ".pyc")


def test_an_unknown_module_suggests_others(cli, folder: Path) -> None:
    done = cli("models.resnt", "--optimize")
    assert done.code == 2
    assert done.err.startswith("error: there is no module 'models.resnt'\n")
    assert "try: models.resnet" in done.err
    assert done.out == ""
    assert files(folder) == []
    assert not (folder / "capture-out").exists()


def test_an_unknown_factory_names_the_others(cli) -> None:
    done = cli("models.mlp:smal")
    assert done.code == 2
    assert "smal" in done.err.splitlines()[0]
    assert "small" in done.err.split("try:")[1]


def test_a_factory_that_raises(cli, folder: Path) -> None:
    (folder / "broken.py").write_text("def build():\n    raise KeyError('no such checkpoint')\n")
    done = cli("broken")
    assert done.code == 1
    assert "broken.py:2   raise KeyError('no such checkpoint')" in done.err
    assert "KeyError" in done.err
    assert "Traceback" not in done.err


def test_a_forward_that_raises_shows_the_models_own_error(cli, model_file: Callable[..., str]) -> None:
    model_file("misfit", "return x @ torch.ones(7, 7)")
    done = cli("misfit")
    assert done.code == 1
    assert "misfit.py:10" in done.err
    assert "return x @ torch.ones(7, 7)" in done.err
    assert "mat1 and mat2 shapes cannot be multiplied" in done.err


def test_control_flow_on_data(cli, model_file: Callable[..., str], folder: Path) -> None:
    model_file("router", "if x.sum() > 0:\n    return x\nreturn -x")
    done = cli("router", "--optimize")
    assert done.code == 1
    assert done.err.startswith("error: control flow depends on the data\n")
    assert "router.py:10   if x.sum() > 0:" in done.err
    assert "torch.where" in done.err.split("try:")[1]
    assert files(folder) == ["router.py"]


@pytest.mark.parametrize("text", ["x", "x=3xfish:float32", "x=1x16:float33", "=1x16:float32"])
def test_input_syntax(cli, text: str) -> None:
    done = cli(MODEL, "--input", text)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert text.strip("=") in done.err
    assert "float32" in done.err.split("try:")[1]


@pytest.mark.parametrize("text", ["x=1x17:float32", "x=1x16:int64", "y=1x16:float32"])
def test_inputs_that_the_model_does_not_take(cli, text: str, folder: Path) -> None:
    done = cli(MODEL, "--input", text)
    assert done.code in (1, 2)
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    assert files(folder) == []


def test_an_input_of_another_name_says_the_models_own(cli) -> None:
    done = cli(MODEL, "--input", "input=2x16")
    assert done.err == (
        "error: the model has no input 'input'\n  its inputs are x\ntry: --input x=2x16:float32\n"
    )


def test_an_example_outside_of_its_range(cli, folder: Path) -> None:
    done = cli(MODEL, "--batch", "20", "--dynamic", "x:0=batch[2..8]")
    assert done.code == 2
    assert done.err.startswith("error: the example input lies outside of the range of batch\n")
    assert "has the size 20; batch is to be 2..8" in done.err
    assert files(folder) == []


def test_dynamic_sizes_of_unknown_inputs(cli) -> None:
    done = cli(MODEL, "--dynamic", "y:0=batch")
    assert done.err.startswith(
        "error: the model has no input 'y'\n  its inputs are x\ntry: --dynamic x:0=batch"
    )


def test_input_and_inputs_exclude_each_other(cli, folder: Path) -> None:
    np.savez(folder / "x.npz", x=np.zeros((1, 16), np.float32))
    assert cli(MODEL, "--input", "x=1x16:float32", "--inputs", "x.npz").code == 2
    assert cli(MODEL, "--inputs", "x.npz", "--emit", "", "--iters", "1").code == 0


@pytest.mark.parametrize("option", ["--inputs", "--weights"])
def test_files_that_are_missing_or_corrupt(cli, option: str, folder: Path) -> None:
    name = "x.npz" if option == "--inputs" else "w.safetensors"
    assert cli(MODEL, option, name).code in (1, 2)
    (folder / name).write_bytes(b"PK\x03\x04 not really")
    done = cli(MODEL, option, name)
    assert done.code in (1, 2)
    assert name in done.err
    assert "Traceback" not in done.err


def test_nan_in_the_outputs(cli, model_file: Callable[..., str], folder: Path) -> None:
    model_file("unstable", "y = torch.relu(x)\ny = torch.log(-1 - y)\nreturn y * 2")
    done = cli("unstable", "--optimize", "--iters", "1", "--emit", "")
    assert done.code == 1
    assert done.err.startswith("error: the outputs hold NaN\n  unstable.py:11   y = torch.log(-1 - y)\n")
    assert "aten.log makes the first NaN" in done.err
    assert "eager has it too" in done.err
    assert "NaN in" not in done.out
    assert "try:" in done.err


def test_nan_in_the_inputs_or_weights(cli, model_file: Callable[..., str]) -> None:
    model_file("given", "return x + 1", inputs="torch.full((batch, 4), float('nan'))")
    assert "the input x holds NaN" in cli("given", "--iters", "1", "--emit", "").err
    model_file("weighty", "return x * self.w", init="self.w = torch.nn.Parameter(torch.tensor(float('nan')))")
    assert "the weight w holds NaN" in cli("weighty", "--iters", "1", "--emit", "").err


def test_an_output_folder_that_cannot_be_written_to(
    cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out before anything is loaded."""
    (folder / "taken").write_text("a file")

    def load(*args: object) -> None:
        raise AssertionError("the long work has begun")

    monkeypatch.setattr(run_command, "load_model", load)
    for output in ("taken", "taken/deep/er", "/proc/nothing/here"):
        done = cli(MODEL, "-o", output)
        assert done.code == 2
        assert done.err.startswith(f"error: cannot write to the folder {output}\n")
        assert "-o" in done.err.split("try:")[1]
        assert ("taken is a file, not a folder" in done.err) == output.startswith("taken")
    assert files(folder) == ["taken"]


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.ENOSPC, "is full"), (errno.EROFS, "can only be read"), (errno.EACCES, "you may not write in .")],
)
def test_why_a_folder_takes_no_files(cli, folder: Path, monkeypatch: pytest.MonkeyPatch, number, why) -> None:
    def refuse(*args: object, **settings: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    for args in ((MODEL, "-o", "out"), ("export", MODEL, "--python", "net.py")):
        done = cli(*args)
        assert done.code == 2
        assert why in done.err
        assert "-o" in done.err.split("try:")[1]
    assert list(folder.iterdir()) == []


def test_a_folder_that_was_made_goes_when_nothing_is_written(cli, folder: Path) -> None:
    assert cli("no.such.module", "-o", "a/b/c").code == 2
    assert list(folder.iterdir()) == []
    (folder / "kept").mkdir()
    assert cli("no.such.module", "-o", "kept/new").code == 2
    assert list(folder.iterdir()) == [folder / "kept"]


def test_a_failure_in_the_middle_leaves_no_part_of_a_file(
    cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    done = cli(MODEL, "--iters", "1", "--emit", "")
    assert done.code == 1
    assert "No space left on device" in done.err
    assert files(folder) == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"not a zip", "it is not an archive"),
        (b"PK\x03\x04broken", "its end is missing"),
    ],
)
def test_a_corrupted_pt2(cli, folder: Path, content: bytes, why: str) -> None:
    (folder / "net.pt2").write_bytes(content)
    done = cli("net.pt2")
    assert done.code == 1
    assert done.err.startswith(f"error: cannot load the program net.pt2\n  {why}")
    assert "Traceback" not in done.err


def test_a_pt2_runs(cli, folder: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()).eval()
    torch.export.save(torch.export.export(module, (torch.randn(3, 4),)), folder / "net.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        done = cli("net.pt2", "--optimize", "--iters", "1", "--emit", "python")
    assert (done.code, done.err) == (0, "")
    assert (folder / "capture-out" / "net" / "model.py").is_file()


def test_corrupted_graph_files(cli, folder: Path) -> None:
    (folder / "good.txt").write_text("graph(%x: f32[3])\n  return %x\n")
    (folder / "bad.txt").write_text("graph(%x: f32[3])\n  %0: f32[3] = aten.relu(%y)\n  return %0\n")
    (folder / "bad.safetensors").write_bytes(b"\x00" * 20)
    (folder / "binary.txt").write_bytes(b"\xff\xfe")
    for bad in ("bad.txt", "bad.safetensors", "binary.txt"):
        done = cli("viz", "--diff", "good.txt", bad, "-o", "d.svg")
        assert done.code == 1
        assert bad in done.err
        assert "Traceback" not in done.err
    assert cli("viz", "--diff", "good.txt", "missing.txt").code == 2
    assert not (folder / "d.svg").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--level", "7"], "invalid value for '-O' / '--level'"),
        (["--backend", "tpu"], "invalid value for '--backend'"),
        (["--batch", "0"], "invalid value for '--batch'"),
        (["--emit", "svg,nothing"], "--emit nothing: there is no such thing to write"),
        (["--passes", "fuze"], "there is no pass named 'fuze'"),
        (["--disable-pass", "fuze"], "there is no pass named 'fuze'"),
        (["--device", "quantum"], "invalid value for '--device'"),
        (["--quantise", "int8"], "no such option '--quantise'"),
        (["--optimise"], "no such option '--optimise'"),
        (["--dynamic", "x:0=batch[9..1]"], ""),
        (["--dynamic", "nonsense"], ""),
        (["one", "too", "many"], "got unexpected extra arguments"),
    ],
)
def test_wrong_options_are_usage_errors(cli, args: list[str], message: str, folder: Path) -> None:
    done = cli(MODEL, *args)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}")
    assert "try:" in done.err
    assert done.out == ""
    assert files(folder) == []


def test_errors_are_json_with_json(cli) -> None:
    done = cli("models.resnt", "--json")
    data = json.loads(done.out)
    assert data["exit_code"] == done.code == 2
    assert data["error"]["what"] == "there is no module 'models.resnt'"
    assert set(data["error"]) == {"what", "where", "why", "hint"}


def test_the_trace_shows_with_v_only(cli, folder: Path) -> None:
    (folder / "broken.py").write_text("def build():\n    raise KeyError('no such checkpoint')\n")
    assert "Traceback" not in cli("broken").err
    done = cli("broken", "-v")
    assert "Traceback" in done.err
    assert "KeyError: 'no such checkpoint'" in done.err


def test_a_fault_of_ours_is_owned(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(run_command, "load_model", load)
    done = cli(MODEL)
    assert done.code == 1
    assert done.err.startswith("error: torch-capture failed\n")
    assert "ZeroDivisionError: oops" in done.err
    assert "Traceback" not in done.err


def test_a_misspelled_command(cli) -> None:
    done = cli("exprot", MODEL)
    assert done.code == 2
    assert "there is no command or module 'exprot'" in done.err
    assert "python -m capture export" in done.err


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("much", "'much' is no size; write 65536, 64kB, 1.5MB or 2GiB"),
        ("0", "'0' is no memory at all"),
    ],
)
def test_memory_that_is_no_size(cli, size: str, message: str) -> None:
    done = cli("models.bert:small", "--max-memory", size, "--dry-run")
    assert done.code == 2
    assert message in done.err
    assert done.out == ""


def test_memory_that_is_too_little(cli, folder: Path) -> None:
    done = cli("models.bert:small", "--max-memory", "1kB", "--dry-run")
    assert done.code == 1
    assert "the plan cannot fit 1.0 kB: one operator needs" in done.err
    assert "try: a higher --max-memory, or a smaller batch" in done.err
    assert files(folder) == []
