"""--prune: what is removed, judged by what the pruned graph means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

MODEL = "models.mlp:small"


def test_channels_go_and_the_results_are_those_of_the_pruned_graph(cli) -> None:
    done = cli(
        MODEL, "--prune", "channels:50%", "--backend", "aten", "--iters", "4", "--emit", "svg", "--json"
    )
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["parity"]["ok"]
    assert report["parity"]["error_vs_fp64"] < 1e-5
    whole = json.loads(cli(MODEL, "-O2", "--backend", "aten", "--iters", "4", "--emit", "svg", "--json").out)
    assert report["nodes"]["captured"] == whole["nodes"]["captured"]


def test_it_tells_how_many_weights_are_left(cli) -> None:
    done = cli("explain", MODEL, "--prune", "channels:0.5")
    assert done.code == 0
    assert "channels 50%" in done.out
    assert "->" in next(line for line in done.out.splitlines() if line.startswith("prune"))


def test_zeros_make_nothing_faster_and_it_says_so(cli) -> None:
    done = cli("explain", MODEL, "--prune", "2:4")
    assert "no kernel skips zeros" in " ".join(done.out.split())


def test_the_table_of_a_configuration_counts(cli, folder: Path) -> None:
    (folder / "tuned.toml").write_text('[prune]\nmethod = "channels"\nsparsity = 0.5\n')
    x = np.random.default_rng(0).normal(size=(4, 16)).astype("float32")
    np.savez(folder / "data.npz", x=x)
    more = ["--quantize", "int8", "--quant-config", "tuned.toml", "--calibration", "data.npz"]
    done = cli("explain", MODEL, *more)
    assert done.code == 0, done.err
    assert "channels 50%" in done.out
    assert "quantize" in done.out
    assert "channels 25%" in cli("explain", MODEL, *more, "--prune", "channels:0.25").out


def test_bench_takes_neither(cli) -> None:
    done = cli("bench", MODEL, "--prune", "channels:0.5")
    assert done.code == 2
    assert "bench takes no --prune" in done.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("channels", "--prune channels names no share"),
        ("channels:lots", "names no share"),
        ("channels:1.5", "a sparsity of 1.5 is out of range"),
        ("heads:0.5", "there is no pruning method 'heads'"),
        ("channels:0.001", "finds nothing to remove"),
    ],
)
def test_what_cannot_be_done_is_told(cli, given, said) -> None:
    done = cli("explain", MODEL, "--prune", given)
    assert done.code == 2
    assert said in done.err
