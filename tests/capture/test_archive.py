"""Exported programs from files: what is loaded, and what is refused because loading would run code."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from capture import CaptureError, capture
from capture.errors import UsageError
from capture.loading import load
from tests.capture.cases import check_equal


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("shift", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.layer(x) + self.shift).reshape(x.shape[0] * 2)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "program.pt2"
    program = torch.export.export(
        Model(), (torch.randn(3, 4),), dynamic_shapes=({0: Dim("rows", min=1, max=9)},)
    )
    torch.export.save(program, path)
    return path


def altered(saved: Path, change: Callable[[str, bytes], bytes]) -> str:
    """A copy of the archive in which `change` has had its hands on every file."""
    path = saved.with_name("altered.pt2")
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
        for file in source.infolist():
            target.writestr(file.filename, change(file.filename, source.read(file)))
    return str(path)


def replaced(part: str, old: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
    def change(name: str, data: bytes) -> bytes:
        if part not in name:
            return data
        assert old in data
        return data.replace(old, new, 1)

    return change


def test_a_saved_program(saved: Path) -> None:
    loaded = load(str(saved))
    assert (loaded.name, loaded.factory, loaded.source) == ("program", "", str(saved))
    graph = capture(loaded.module)
    graph.verify()
    assert [(r.lower, r.upper) for r in graph.dims.values()] == [(1, 9)]
    for rows in (1, 5):
        x = torch.randn(rows, 4)
        check_equal(graph.run(x), loaded.module.module()(x))
    assert [row.file for row in graph.captured.values()] == ["tests/capture/test_archive.py"] * 3


def test_other_inputs_than_the_saved_ones(saved: Path) -> None:
    x = torch.randn(7, 4)
    assert load(str(saved), inputs={"x": x}).args[0] is x
    with pytest.raises(UsageError, match="the model has no input 'y'"):
        load(str(saved), inputs={"y": x})
    with pytest.raises(UsageError, match="its own example inputs"):
        load(str(saved), batch=2)
    with pytest.raises(UsageError, match="its own weights"):
        load(str(saved), weights="w.safetensors")


def test_paths_of_another_machine(saved: Path) -> None:
    """The files are not here; the class names tell where the import root was."""
    here = re.escape(str(Path(__file__))).encode()

    def change(name: str, data: bytes) -> bytes:
        if "models/" not in name:
            return data
        data = re.sub(here, b"/home/someone/project/nets/mine.py", data)
        return re.sub(rb"[\w.]*test_archive\.Model", b"nets.mine.Model", data)

    graph = capture(load(altered(saved, change)).module)
    assert {row.file for row in graph.captured.values()} == {"nets/mine.py"}


def pickled(bomb: Bomb) -> bytes:
    buffer = io.BytesIO()
    torch.save((bomb, {}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("inputs", "data/sample_inputs/model.pt holds more than tensors"),
        ("weight", "layer.weight is pickled"),
        ("object", "layer.weight is pickled"),
        ("size", "is not plain arithmetic"),
        ("nested size", "is not plain arithmetic"),
        ("library", "it calls 'torch.ops.load_library', which is not an operator"),
        ("function", "it calls 'torch.hub.load', which is not an operator"),
        ("attribute", "it calls 'torch.ops.aten.__class__', which is not an operator"),
        ("enum", "hold an enum, which would be imported"),
    ],
)
def test_what_would_run_code_is_refused(saved: Path, tmp_path: Path, case: str, why: str) -> None:
    trace = tmp_path / "trace"
    system = f"__import__('os').mkdir('{trace}')".encode()
    symbol, operator = b"Symbol('s", b"torch.ops.aten.linear.default"
    changes: dict[str, Callable[[str, bytes], bytes]] = {
        "inputs": lambda name, data: pickled(Bomb(trace)) if "sample_inputs" in name else data,
        "weight": replaced("weights_config", b'"use_pickle": false', b'"use_pickle": true'),
        "object": replaced("weights_config", b'"path_name": "weight_0"', b'"path_name": "opaque_obj_0"'),
        "size": replaced("models/", symbol, system + b" + " + symbol),
        "nested size": replaced("models/", symbol, b"Max('" + system.replace(b"'", b'\\"') + b"', " + symbol),
        "library": replaced("models/", operator, b"torch.ops.load_library"),
        "function": replaced("models/", operator, b"torch.hub.load"),
        "attribute": replaced("models/", operator, b"torch.ops.aten.__class__"),
        "enum": replaced("models/", b'\\"context\\"', b'\\"__enum__\\"'),
    }
    with pytest.raises(CaptureError) as caught:
        load(altered(saved, changes[case]))
    assert why in str(caught.value)
    assert "--allow-pickle" in str(caught.value)
    assert not trace.exists()


def test_unpickling_is_allowed_where_asked_for(saved: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = altered(saved, lambda name, data: pickled(Bomb(trace)) if "sample_inputs" in name else data)
    with pytest.raises(CaptureError, match="cannot load the program"):  # what is left is no pair of inputs
        load(path, allow_pickle=True)
    assert trace.exists()


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("damage", ["cut", "text", "no graph", "bad json"])
def test_a_damaged_file(
    saved: Path, damage: str, allow_pickle: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved.with_name("damaged.pt2")
    if damage == "cut":
        path.write_bytes(saved.read_bytes()[:3000])
    elif damage == "text":
        path.write_text("this is not an archive")
    elif damage == "bad json":
        path = Path(altered(saved, lambda name, data: data[:100] if "models/" in name else data))
    else:
        path = Path(altered(saved, lambda name, data: b"" if "models/" in name else data))
    with pytest.raises(CaptureError, match="cannot load the program"):
        load(str(path), allow_pickle=allow_pickle)
    assert capfd.readouterr() == ("", "")
