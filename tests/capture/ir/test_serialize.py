"""Saving and loading: what comes back, what is refused, and that nothing of a file is ever run."""

from __future__ import annotations

import json
import os
import pickle
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.ir import CapturedOp, Graph, TensorType
from capture.ir import serialize as module
from capture.ir.serialize import write_aside, written_aside
from tests.capture.ir.test_specs import EVIL

aten = torch.ops.aten

TEXT = """\
graph(%x: f32[N, 4], %mask: bool[N]) where N in [1, 64]
  @w: f32[4, 4]
  @w2: f32[4, 4]
  @tied: f32[4, 4]
  @strided: f32[4, 4] strided
  @image: f32[2, 3, 4, 4] channels_last
  @half: bf16[3]
  @eight: f8e4m3[3]
  @spin: c64[2]
  @flag: bool[]
  @none: f32[0, 3]
  @unbound: f32[4]
  %0: f32[N, 4] = aten.linear(%x, @w)                                                             # f  m:3
  %1: f32[N, 4] = fusion.pointwise(%0) {                                                          # a  m:4
    ^(%a: f32[N, 4])
    @w: f32[4]
    %b: f32[N, 4] = aten.mul.Tensor(%a, @w)                                                       # a  m:4
    return %b
  }
  return %1, %0
  write @w = @w2
"""


def filled() -> Graph:
    graph = Graph.parse(TEXT)
    storage = torch.randn(32)
    constants = graph.constants
    tensors = {
        "w": storage[:16].view(4, 4),
        "w2": storage[16:].view(4, 4),
        "strided": torch.randn(4, 4).t(),
        "image": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "half": torch.tensor([1.0, -0.0, float("nan")], dtype=torch.bfloat16),
        "eight": torch.tensor([1.0, -0.5, 448.0]).to(torch.float8_e4m3fn),
        "spin": torch.randn(2, dtype=torch.complex64).conj(),
        "flag": torch.tensor(True),
        "none": torch.empty(0, 3),
    }
    tensors["tied"] = tensors["w"]
    for name, tensor in tensors.items():
        constants[name].tensor = tensor
    region = graph.nodes[1].region
    assert region is not None
    region.constants["w"].tensor = torch.randn(4)
    graph.name, graph.frontend = "net", "torch.export (non-strict)"
    graph.attempts = [("torch.export (strict)", "no")]
    graph.captured = {3: CapturedOp(3, "aten.linear", "fc", "m.py", 3, "y = self.fc(x)")}
    graph.nodes[0].origin |= type(graph.nodes[0].origin)((3,))
    region.nodes[0].origin |= type(graph.nodes[0].origin)((3, 5))
    _, graph.in_spec = pytree.tree_flatten(((1,), {"mask": 2}))
    _, graph.out_spec = pytree.tree_flatten({"y": 1, "z": (2,)})
    return graph


def held(graph: Graph, name: str) -> torch.Tensor:
    tensor = graph.constants[name].tensor
    assert tensor is not None
    return tensor


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "net.graph"


def test_everything_but_the_passes_marks_comes_back(path: Path) -> None:
    graph = filled()
    graph.save(path)
    loaded = Graph.load(path)
    assert str(loaded) == str(graph)
    assert (loaded.name, loaded.frontend, loaded.attempts) == (graph.name, graph.frontend, graph.attempts)
    assert loaded.captured == graph.captured
    assert loaded.nodes[0].origin == graph.nodes[0].origin
    assert loaded.nodes[1].region is not None
    assert loaded.nodes[1].region.nodes[0].origin.ids == (3, 5)
    assert (loaded.in_spec, loaded.out_spec) == (graph.in_spec, graph.out_spec)
    assert loaded.dims == graph.dims
    for name, constant in graph.constants.items():
        if constant.tensor is None:
            assert loaded.constants[name].tensor is None
            continue
        read = held(loaded, name)
        torch.testing.assert_close(read, constant.tensor, rtol=0, atol=0, equal_nan=True)
        assert read.stride() == constant.tensor.stride()
    assert held(loaded, "half")[1].signbit()
    loaded.constants["unbound"].tensor = graph.constants["unbound"].tensor = torch.ones(4)
    args = (torch.randn(2, 4),)
    mask = torch.tensor([True, False])
    first, second = graph.run(*args, mask=mask), loaded.clone().run(*args, mask=mask)
    assert torch.equal(first["y"], second["y"])


def test_tied_constants_stay_one_tensor_and_others_apart(path: Path) -> None:
    graph = filled()
    graph.save(path)
    loaded = Graph.load(path)
    assert held(loaded, "tied").data_ptr() == held(loaded, "w").data_ptr()
    assert held(loaded, "w2").untyped_storage().data_ptr() != held(loaded, "w").untyped_storage().data_ptr()
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == sorted(
            ["eight", "flag", "half", "image", "none", "spin", "strided", "w", "w.1", "w2"]
        )


def test_loaded_constants_can_be_written_without_touching_the_file(path: Path) -> None:
    graph = filled()
    graph.save(path)
    before = path.read_bytes()
    loaded = Graph.load(path)
    held(loaded, "w").fill_(7)
    assert path.read_bytes() == before
    assert torch.equal(held(Graph.load(path), "w"), held(graph, "w"))


def test_saving_over_a_file_that_is_loaded(path: Path) -> None:
    graph = filled()
    graph.save(path)
    loaded = Graph.load(path)
    loaded.constants["half"].tensor = torch.zeros(3, dtype=torch.bfloat16)
    loaded.save(path)
    assert held(Graph.load(path), "half").tolist() == [0, 0, 0]
    assert os.listdir(path.parent) == [path.name]


def rewritten(path: Path, **changes: str | None) -> None:
    """The saved file with header entries changed, or taken out where None."""
    with safe_open(path, framework="pt") as file:
        header = {**file.metadata(), **changes}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    save_file(tensors, path, metadata={k: v for k, v in header.items() if v is not None})


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "torch-capture graph 0"},
        {"format": None},
        {"text": None},
        {"text": "graph("},
        {"text": TEXT.replace("f32[4, 4]\n  @w2", "f32[4, 5]\n  @w2")},
        {"text": TEXT.replace("  @unbound: f32[4]\n", "")},
        {"constants": "[]"},
        {"constants": "{}"},
        {"constants": json.dumps(["absent"] * 13)},
        {"constants": json.dumps([["w"]] * 13)},
        {"orders": '{"strided": [0, 0]}'},
        {"orders": '{"strided": [0, 1, 2]}'},
        {"orders": '{"strided": "ab"}'},
        {"orders": "[1]"},
        {"captured": "not json"},
        {"captured": "[1]"},
        {"captured": '[{"id": 1}]'},
        {"captured": '[{"id": "1", "op": "x"}]'},
        {"captured": '[{"id": 1, "op": "x", "code": 3}]'},
        {"captured": "[" * 100_000},
        {"origins": "[]"},
        {"origins": '[["a"], [], []]'},
        {"origins": "[1, 2, 3]"},
        {"attempts": "[1]"},
        {"in_spec": json.dumps(EVIL[0])},
        {"in_spec": '[1, {"type": null, "context": null, "children_spec": []}]'},
        {"out_spec": "[[]]"},
        {"name": None},
    ],
)
def test_headers_that_are_not_ours_are_refused(changes: dict[str, str | None], path: Path) -> None:
    filled().save(path)
    rewritten(path, **changes)
    with pytest.raises(CaptureError, match=f"cannot load the graph {path}") as caught:
        Graph.load(path)
    assert caught.value.why


def test_each_truncation_and_flipped_byte_is_refused_or_harmless(path: Path) -> None:
    graph = Graph.parse(
        "graph(%x: f32[2])\n  @w: f32[2]\n  %0: f32[2] = aten.mul.Tensor(%x, @w)\n  return %0\n"
    )
    graph.bind({"w": torch.ones(2)}).save(path)
    data = path.read_bytes()
    refused = 0
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(CaptureError, match="cannot load"):
            Graph.load(path)
    for at in range(0, len(data), 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :])
        try:
            Graph.load(path)
        except CaptureError:
            refused += 1
    assert refused > 20


class Payload:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(Path.cwd() / "executed"),)


def test_foreign_files_are_refused_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Payload()}, tmp_path / "a.pt")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(Payload()))
    (tmp_path / "c.txt").write_text("graph()\n  return\n")
    (tmp_path / "d").write_bytes(b"")
    (tmp_path / "e").mkdir()
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.writestr("x", "y")
    save_file({"w": torch.ones(2)}, tmp_path / "g.safetensors")
    for name in ("a.pt", "b.pkl", "c.txt", "d", "e", "f.zip", "g.safetensors", "absent"):
        with pytest.raises(CaptureError, match=f"cannot load the graph {tmp_path / name}"):
            Graph.load(tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.ones(2, device="meta"), "meta"),
        (lambda: torch.eye(2).to_sparse(), "sparse_coo"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.ones(2).to_mkldnn(), "_mkldnn"),
        (lambda: FakeTensorMode().from_tensor(torch.ones(2)), "a FakeTensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_without_plain_memory_cannot_be_saved(
    make: Callable[[], torch.Tensor], why: str, path: Path
) -> None:
    graph, tensor = Graph(), make()
    graph.add_constant("w", TensorType(tensor.dtype, tuple(tensor.shape))).tensor = tensor
    with pytest.raises(CaptureError, match=f"cannot save the constant @w\n.*{why}"):
        graph.save(path)
    assert not path.exists()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "graph", tmp_path / "folder"):
        with pytest.raises(CaptureError, match=f"cannot write {place}"):
            filled().save(place)
        with pytest.raises(CaptureError, match=f"cannot write {place}"):
            write_aside(place, "text")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full"), RuntimeError])
def test_no_half_written_file_is_left(error: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = filled()
    graph.save(path)
    before = path.read_bytes()

    def interrupted(tensors: Any, filename: Path, metadata: Any) -> None:
        Path(filename).write_bytes(b"half")
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    with pytest.raises((KeyboardInterrupt, CaptureError, RuntimeError)):
        graph.save(path)
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before


def test_files_get_the_modes_of_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_aside(tmp_path / "a", b"bytes")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert (tmp_path / "a").read_bytes() == b"bytes"
    write_aside(tmp_path / "new" / "b", "täxt")
    assert (tmp_path / "new" / "b").read_text(encoding="utf-8") == "täxt"


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    place = tmp_path / "a"
    place.write_text("old")
    with written_aside(place) as aside:
        aside.write_text("new")
        assert place.read_text() == "old"
    assert place.read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]


def test_weights_stay_on_the_cpu_where_their_device_is_missing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph.parse("graph()\n  @w: f32[2] @meta\n  return\n")
    graph.constants["w"].tensor = torch.ones(2)
    graph.save(path)
    assert held(Graph.load(path), "w").is_meta

    def refused(*args: Any) -> torch.Tensor:
        raise AssertionError("Torch not compiled with this device")

    monkeypatch.setattr(torch.Tensor, "to", refused)
    assert held(Graph.load(path), "w").device.type == "cpu"
    assert module.FORMAT in path.read_bytes().decode(errors="replace")
