"""explain, export, viz, bench, doctor, and the help."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import runtime.cli.doctor as doctor

MODEL = "models.mlp:small"


def test_explain_tells_the_fate_of_every_op(cli) -> None:
    done = cli("explain", MODEL)
    assert done.code == 0
    assert "fates      7 ops" in done.out
    assert "models/mlp.py:26" in done.out
    assert "fused" in done.out
    assert "removed" in done.out
    rows = [line for line in done.out.splitlines() if "models/mlp.py:" in line]
    assert len(rows) == 7


def test_explain_as_json(cli) -> None:
    data = json.loads(cli("explain", MODEL, "--json").out)
    assert len(data["captured_ops"]) == 7
    assert {"id", "op", "module", "file", "line", "fate"} <= set(data["captured_ops"][0])


def test_explain_at_level_0_keeps_everything(cli) -> None:
    data = json.loads(cli("explain", MODEL, "-O0", "--json").out)
    assert {row["fate"] for row in data["captured_ops"]} == {"kept"}


def test_explain_fits_small_terminals(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    done = cli("explain", "models.bert:small")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 60


def test_export_python(cli, folder: Path) -> None:
    done = cli("export", MODEL, "--optimize", "--python", "deep/net.py")
    assert done.code == 0
    source = (folder / "deep" / "net.py").read_text()
    namespace: dict[str, object] = {}
    exec(compile(source, "net.py", "exec"), namespace)
    assert callable(namespace["forward"])
    assert callable(namespace["load"])


def test_export_onnx(cli, folder: Path) -> None:
    import onnx

    done = cli("export", MODEL, "--onnx", "net.onnx", "--json")
    assert json.loads(done.out)["files"] == ["net.onnx"]
    onnx.checker.check_model(onnx.load(folder / "net.onnx"), full_check=True)


def test_export_needs_a_file_that_can_be_written(cli, folder: Path) -> None:
    done = cli("export", MODEL)
    assert done.code == 2
    assert "--onnx [FILE], --python [FILE] or --triton [DIR]" in done.err
    unknown = cli("export", MODEL, "-o", "net.txt").err
    assert "-o net.txt does not say what to write" in unknown
    assert "-o FILE.onnx or FILE.py" in unknown
    (folder / "taken").write_text("a file")
    assert cli("export", MODEL, "--python", "taken/net.py").code == 2
    assert cli("export", MODEL, "--python", str(folder)).code == 2


def test_viz_draws_the_graph_and_its_memory(cli, folder: Path) -> None:
    assert cli("viz", MODEL).out == "capture-out/mlp-small/graph.svg\n"
    assert cli("viz", MODEL, "--svg", "--optimize", "-o", "o.svg").code == 0
    assert cli("viz", MODEL, "--memory", "-o", "m.svg").code == 0
    for name in ("capture-out/mlp-small/graph.svg", "o.svg", "m.svg"):
        assert (folder / name).read_text().lstrip().startswith(("<svg", "<?xml"))


@pytest.mark.parametrize(
    ("args", "file"),
    [
        ((MODEL, "--svg", "a.svg"), "a.svg"),
        (("--svg", "a.svg", MODEL), "a.svg"),
        (("--svg", MODEL), "capture-out/mlp-small/graph.svg"),
        ((MODEL, "--svg", "-o", "a.svg"), "a.svg"),
        ((MODEL, "-o", "a.svg"), "a.svg"),
        ((MODEL, "-o", "pictures"), "pictures/graph.svg"),
        ((MODEL, "--memory", "m.svg"), "m.svg"),
        ((MODEL, "--memory", "-o", "pictures/"), "pictures/memory.svg"),
    ],
)
def test_where_viz_draws(cli, folder: Path, args: tuple[str, ...], file: str) -> None:
    assert cli("viz", *args).out == f"{file}\n"
    assert (folder / file).read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("args", "files"),
    [
        ((MODEL, "--python"), ["capture-out/mlp-small/model.py"]),
        (("--python", MODEL), ["capture-out/mlp-small/model.py"]),
        ((MODEL, "-o", "net.py"), ["net.py"]),
        ((MODEL, "--python", "-o", "net.py"), ["net.py"]),
        ((MODEL, "--python", "--onnx", "n.onnx", "-o", "there"), ["n.onnx", "there/model.py"]),
    ],
)
def test_where_export_writes(cli, folder: Path, args: tuple[str, ...], files: list[str]) -> None:
    done = cli("export", *args, "--json")
    assert json.loads(done.out)["files"] == files
    assert all((folder / name).is_file() for name in files)


def test_export_refuses_one_file_for_two_and_no_model(cli) -> None:
    assert cli("export", MODEL, "--python", "--onnx", "-o", "net.py").code == 2
    assert "MODEL" in cli("export", "--onnx", "net.onnx").err


def test_viz_draws_saved_graphs_and_their_difference(cli, folder: Path) -> None:
    assert cli(MODEL, "--optimize", "--emit", "", "--iters", "1").code == 0
    before, after = (f"capture-out/mlp-small/{name}.txt" for name in ("graph", "optimized"))
    assert cli("viz", "--diff", before, after).out == "diff.svg\n"
    assert "<svg" in (folder / "diff.svg").read_text()
    assert cli("viz", before, "-o", "g.svg").code == 0
    assert cli("viz", before, "--memory", "-o", "m.svg").code == 0


@pytest.mark.parametrize("args", [[], [MODEL, "--svg", "--memory"], [MODEL, "--diff", "a", "b"]])
def test_viz_refuses_what_does_not_go_together(cli, args: list[str]) -> None:
    assert cli("viz", *args).code == 2


def test_bench_runs_each_engine_by_itself(cli) -> None:
    args = (
        "bench",
        MODEL,
        "--backend",
        "aten",
        "--iters",
        "1",
        "--rounds",
        "2",
        "--repeats",
        "1",
        "--threads",
        "1",
    )
    done = cli(*args, "--json")
    data = json.loads(done.out)
    assert done.code == 0
    assert set(data["engines"]) == {"eager", "aten"}
    assert len(data["engines"]["aten"]["latency_ms"]["samples"]) == 4
    assert data["engines"]["aten"]["ok"] is True
    assert data["engines"]["eager"]["speedup"] is None


def test_bench_knows_its_backends(cli) -> None:
    done = cli("bench", MODEL, "--backend", "tpu")
    assert done.code == 2
    assert "there is no backend 'tpu'" in done.err


def test_doctor(cli) -> None:
    done = cli("doctor")
    assert done.code == 0
    assert "torch" in done.out
    assert "cores" in done.out
    facts = json.loads(cli("doctor", "--json").out)
    assert facts["packages"]["torch"]["ok"] is True
    assert facts["devices"]["threads"] >= 1


def test_doctor_says_what_is_missing_and_how_to_install_it(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.NEEDED, "not-a-package", ("not_a_package", "tests"))
    done = cli("doctor")
    assert done.code == 1
    assert "pip install not-a-package" in done.out
    assert re.search(r"^not-a-package +missing +not installed; it serves tests$", done.out, re.M)


def test_help_names_every_command(cli) -> None:
    done = cli("--help")
    assert done.code == 0
    for name in ("run", "explain", "export", "viz", "bench", "cache", "doctor"):
        assert f"\n  {name} " in done.out
    assert cli().out == done.out
    assert "--optimize" in cli("run", "--help").out
    assert cli("--version").out.startswith("torch-capture")
