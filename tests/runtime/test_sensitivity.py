"""Error and gain of each layer alone."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from capture import capture
from passes.quantize import QuantConfig, quantize
from runtime.sensitivity import sensitivity, table
from tests.passes.quantize.nets import relative, residual
from tests.runtime.clocks import Clock

LAYERS = ["stem", "left", "right", "last", "head"]


def test_each_row_is_the_error_of_one_layer_alone():
    graph, samples = residual()
    found = sensitivity(graph, samples, timer=Clock())
    assert [row.layer for row in found.rows] == LAYERS
    assert found.layers == LAYERS
    others = {name: "float" for name in LAYERS if name != "left"}
    alone = quantize(graph, samples, config={"layers": others})
    wanted = relative(
        torch.stack([alone.run(*s) for s in samples]), torch.stack([graph.run(*s) for s in samples])
    )
    assert next(r for r in found.rows if r.layer == "left").error == pytest.approx(wanted)
    assert all(0 < row.error < 0.05 for row in found.rows)


def test_gains_are_measured_and_ranked():
    graph, samples = residual()
    rows = {row.layer: row for row in sensitivity(graph, samples, timer=Clock(rate=0.5, head=4.0)).rows}
    assert all(row.measured == "layer" for row in rows.values())
    assert rows["left"].int8_ms == rows["left"].float_ms / 2
    assert rows["left"].gain_ms == rows["left"].int8_ms
    assert rows["head"].gain_ms == -3 * rows["head"].float_ms
    assert min(rows.values(), key=lambda row: row.gain_per_error).layer == "head"


def test_a_layer_too_short_to_time_gets_its_share_of_the_whole():
    graph, samples = residual()

    def blurred(engines, args):
        times = Clock(rate=0.5)(engines, args)
        return {n: type(t)(t.ms, {k: v * 1e-5 for k, v in t.modules.items()}) for n, t in times.items()}

    row = sensitivity(graph, samples, timer=blurred).rows[0]
    assert row.measured == "whole"
    assert 0 < row.int8_ms == row.float_ms * 0.5


def test_layers_that_stay_float_say_why():
    model = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Flatten(), nn.Linear(12, 3), nn.Linear(3, 2)).eval()
    x = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    config = QuantConfig(layers={"2": "float"})
    rows = sensitivity(capture(model, (x,)), [(x,)], config=config, timer=Clock()).rows
    assert [(row.layer, row.reason) for row in rows] == [
        ("0", "there is no int8 kernel for aten.conv1d"),
        ("2", "the configuration says so"),
        ("3", ""),
    ]


def test_the_table_names_every_layer_the_worst_first():
    graph, samples = residual()
    rows = sensitivity(graph, samples, timer=Clock()).rows
    out = io.StringIO()
    Console(file=out, width=100).print(table(rows))
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["layer", "error", "float", "int8", "gain"]
    ranked = sorted(rows, key=lambda row: -row.error)
    assert [line.split()[0] for line in lines[1:]] == [row.layer for row in ranked]
