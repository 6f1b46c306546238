"""What the backend did is told on request, and as it happens where the log is on."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import runtime
from capture._floors import ROOT
from capture.errors import UsageError


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x)
        if x.sum() > 0:
            return x * 2
        return -x


@torch.no_grad()
def test_graphs_breaks_and_recompiles_are_told() -> None:
    model = Router()
    compiled = torch.compile(model, backend="capture")
    x = model.fc.weight.sum(0).expand(2, 4) * 10
    compiled(x)
    compiled(x[:1].expand(3, 4))
    found = runtime.explain(compiled)
    assert found.title == "Router"
    line = next(
        n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "x.sum() > 0" in text
    )
    (cut,) = found.graph_breaks
    assert cut.what == "a Python `if` or `while` on the value of a tensor"
    assert cut.where.endswith(f"test_explain.py:{line}   if x.sum() > 0:")
    assert [g.function for g in found.graphs[:2]] == ["forward", f"forward, from line {line}"]
    assert found.graphs[0].where.endswith(f"test_explain.py:{line - 1}")
    assert "size mismatch at index 0. expected 2, actual 3" in found.recompiles[0].recompiled
    assert found.seconds.keys() == {"capture", "optimize", "compile"}

    text = str(found)
    assert text.startswith("Router: 4 graphs, 1 graph break, 2 recompiles, 0 in eager\n")
    assert "graph break: a Python `if`" in text
    assert "try: torch.where, or torch.cond" in text
    assert "recompiled: tensor 'x' size mismatch" in text
    data = json.loads(found.to_json())
    assert data == found.to_dict()
    assert data["graphs"][0]["ended_by"]["where"] == cut.where


@torch.no_grad()
def test_every_way_to_name_the_compiled_thing() -> None:
    model = Router()
    compiled = torch.compile(model, backend="capture")
    compiled(torch.ones(2, 4))
    count = len(runtime.explain(compiled).graphs)
    assert count
    assert len(runtime.explain(model).graphs) == count
    inplace = Router()
    inplace.compile(backend="capture")
    inplace(torch.ones(2, 4))
    assert len(runtime.explain(inplace).graphs) == count

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice = torch.compile(double, backend="capture")
    twice(torch.ones(2))
    assert len(runtime.explain(twice).graphs) == len(runtime.explain(double).graphs) == 1
    assert len(runtime.explain(compiled).graphs) == count


def test_before_the_first_call_and_after_a_reset_there_is_nothing() -> None:
    compiled = torch.compile(Router(), backend="capture")
    assert str(runtime.explain(compiled)) == "Router: no graphs yet; they are compiled when it is called"
    with torch.no_grad():
        compiled(torch.ones(2, 4))
    assert runtime.explain(compiled).graphs
    torch._dynamo.reset()
    assert not runtime.explain(compiled).graphs


def test_an_explanation_does_not_change_afterwards() -> None:
    model = nn.Linear(4, 4)
    compiled = torch.compile(model, backend="capture")
    with torch.no_grad():
        compiled(torch.ones(2, 4))
        before = runtime.explain(compiled)
        text = str(before)
        model.weight.mul_(2)
        compiled(torch.ones(2, 4))
    assert str(before) == text
    assert runtime.explain(compiled).graphs[0].packed_again == 1
    assert "weights changed, packed again: weight" in str(runtime.explain(compiled))


def test_what_cannot_be_compiled_cannot_be_explained() -> None:
    with pytest.raises(UsageError, match="cannot be explained"):
        runtime.explain(3)


@torch.no_grad()
def test_the_log_is_quiet_by_default_and_tells_when_asked(caplog: pytest.LogCaptureFixture) -> None:
    torch.compile(nn.Linear(4, 4), backend="capture")(torch.ones(2, 4))
    assert not [r for r in caplog.records if r.name == "capture.backend"]
    caplog.set_level(logging.INFO, logger="capture.backend")
    torch.compile(nn.Linear(5, 4), backend="capture")(torch.ones(2, 5))
    (message,) = [r.message for r in caplog.records if r.name == "capture.backend"]
    assert re.match(r"\d/\d Linear: inference, aten, 1 -> 1 nodes, 2 weights frozen, capture", message)


PROGRAM = """
import torch
model = torch.nn.Linear(4, 4)
with torch.no_grad():
    x = torch.ones(2, 4)
    torch.testing.assert_close(torch.compile(model, backend="capture")(x), model(x))
print("right")
"""


def run(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_installation_needs_no_import_and_logs_by_the_environment(tmp_path: Path) -> None:
    """The entry point as an installation would have it, beside the packages."""
    info = tmp_path / "torch_capture-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-capture\nVersion: 0\n")
    project = (ROOT / "pyproject.toml").read_text()
    line = re.search(r"\[project\.entry-points\.torch_dynamo_backends\]\n(.+)\n", project)
    assert line is not None
    (info / "entry_points.txt").write_text(f"[torch_dynamo_backends]\n{line[1].replace(chr(34), '')}\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run(PROGRAM, tmp_path, PYTHONPATH=path, CAPTURE_LOGS="+backend")
    assert done.stdout == "right\n", done.stderr
    assert "[capture.backend] 0/0 Linear: inference, aten, " in done.stderr


def test_in_a_checkout_the_import_of_runtime_is_enough(tmp_path: Path) -> None:
    nothing_installed = (
        "import importlib.metadata as m; found = m.entry_points\n"
        "m.entry_points = lambda **k: m.EntryPoints() if 'group' in k else found(**k)\n"
    )
    done = run(f"{nothing_installed}import torch\nimport runtime\n{PROGRAM}", tmp_path, PYTHONPATH=str(ROOT))
    assert done.stdout == "right\n", done.stderr
    assert done.stderr == ""
