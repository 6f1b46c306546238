"""The graphs that compile time is measured on are sound, and the pictures of it are pictures."""

from __future__ import annotations

import xml.dom.minidom
from pathlib import Path

import pytest
import torch

from benchmarks.compile_time import FAMILIES, cells, growth, main, measure
from passes import PIPELINES, optimize
from passes.fuse import is_fusable


@pytest.mark.parametrize("family", FAMILIES)
def test_the_synthetic_graphs_are_sound_and_keep_their_numbers(family: str) -> None:
    graph = FAMILIES[family](100).verify()
    assert 80 <= len(graph.nodes) <= 120
    after = optimize(graph, 2, verify=True)
    (x,) = (torch.randn(v.tensor_type.concrete({})) for v in graph.inputs)
    torch.testing.assert_close(after.run(x), graph.run(x), rtol=1e-4, atol=1e-4)
    assert not any(map(is_fusable, after.nodes))
    assert len(after.nodes) < len(graph.nodes)


def test_each_pass_is_accounted_for() -> None:
    seconds, by_pass = measure(FAMILIES["residual network"](20), 2)
    assert set(by_pass) == set(PIPELINES[2])
    assert 0 < sum(by_pass.values()) <= seconds


def test_growth_is_the_exponent() -> None:
    assert growth([(n, 3.0 * n) for n in (10, 100, 1000)]) == pytest.approx(1)
    assert growth([(n, 0.1 * n**2) for n in (10, 100, 1000)]) == pytest.approx(2)


def test_table_and_plot(tmp_path: Path) -> None:
    main(["--nodes", "20", "40", "--no-models", "--output", str(tmp_path)])
    text = (tmp_path / "compile_time.md").read_text()
    assert text.count("| Transformer encoder | ") == text.count("| residual network | ") == 2
    assert "Transformer encoder: seconds grow as nodes to the power of " in text
    assert "- BERT-base: not asked for" in text
    picture = xml.dom.minidom.parseString((tmp_path / "compile_time.svg").read_text())
    assert len(picture.getElementsByTagName("circle")) == 4
    assert len(picture.getElementsByTagName("polyline")) == 3


def test_a_row_tells_the_slowest_passes() -> None:
    assert cells(("network", 1000, 1.0, {"fuse": 0.25, "memory": 0.5, "cse": 0, "dce": 0, "lower": 0.1})) == (
        "network", "1000", "1.00", "1.00", "memory 0.50, fuse 0.25, lower 0.10, cse 0.00",
    )  # fmt: skip
