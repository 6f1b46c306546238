"""The model: names, files and external data, state, branches; what is refused, and how."""

from __future__ import annotations

import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_package
import onnxruntime
import pytest
import torch
from torch import nn

from capture import Graph, capture
from capture.errors import CaptureError, UnsupportedOpError, UsageError
from codegen import onnx
from models import resnet, vit


class Net(nn.Module):
    """Two layers in a block, a buffer, an input that a parameter of the same name hides."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(OrderedDict(first=nn.Linear(6, 64), second=nn.Linear(64, 6)))
        self.register_buffer("shift", torch.ones(6))

    def forward(self, image: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.block(image).relu() * scale + self.shift


@pytest.fixture
def graph() -> Graph:
    return capture(Net(), (torch.randn(2, 6), torch.randn(6)))


ARGS = (torch.randn(2, 6), torch.randn(6))

# -- names -------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_model(graph: Graph) -> None:
    made = onnx.export(graph).graph
    assert [i.name for i in made.input] == ["image", "scale"]
    assert [o.name for o in made.output] == ["output"]
    assert [t.name for t in made.initializer] == [
        "block.first.weight",
        "block.first.bias",
        "block.second.weight",
        "block.second.bias",
        "shift",
    ]
    assert [n.name for n in made.node] == ["block.first/Gemm", "block.second/Gemm", "Relu", "Mul", "Add"]


def test_nodes_tell_module_and_line(graph: Graph) -> None:
    props = {p.key: p.value for p in onnx.export(graph).graph.node[0].metadata_props}
    assert props["module"] == "block.first"
    assert "test_export.py:" in props["source"]


def test_names_are_unique_in_deep_models() -> None:
    model = onnx.export(capture(vit.small(), vit.example_inputs(factory="small")))
    names = [n.name for n in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"blocks.0.attn/Attention", "blocks.1.attn/Attention", "blocks.1.mlp/Gelu"} <= set(names)


def test_an_initializer_gives_way_to_an_input_of_its_name() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mask = nn.Parameter(torch.full((3,), 2.0))

        def forward(self, mask: torch.Tensor) -> torch.Tensor:
            return mask * self.mask

    args = (torch.randn(3),)
    graph = capture(Hidden(), args)
    model = onnx.export(graph)
    assert model.graph.initializer[0].name == "mask_1"
    assert onnx.check(model, graph, args) == 0


Pair = namedtuple("Pair", "mean spread")

RETURNED: dict[str, tuple[Callable[[torch.Tensor], Any], list[str]]] = {
    "one": (lambda x: x + 1, ["output"]),
    "several": (lambda x: (x + 1, x * 2, x - 1), ["output", "output_1", "output_2"]),
    "dict": (lambda x: {"logits": x + 1, "hidden": x * 2}, ["logits", "hidden"]),
    "nested": (lambda x: {"out": x + 1, "kv": (x, x * 2)}, ["out", "kv.0", "kv.1"]),
    "named tuple": (lambda x: Pair(x + 1, x * 2), ["mean", "spread"]),
    "with None": (lambda x: (x + 1, None, x * 2), ["output", "output_2"]),
    "input returned": (lambda x: (x, x, x + 1), ["output", "output_1", "output_2"]),
    "number": (lambda x: (x + 1, 3, 2.5), ["output", "output_1", "output_2"]),
    "dict in a tuple": (lambda x: (x + 1, {"a": x * 2}), ["output", "output_1.a"]),
}


@pytest.mark.parametrize("name", RETURNED)
def test_output_names(name: str, trace: Callable[..., Graph]) -> None:
    fn, wanted = RETURNED[name]
    graph = trace(fn, (torch.ones(2),))
    model = onnx.export(graph)
    assert [o.name for o in model.graph.output] == wanted
    assert onnx.check(model, graph, (torch.randn(2),)) == 0


# -- files -------------------------------------------------------------------------------------------------


def test_a_file_holds_the_model(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "net.onnx"
    model = onnx.export(graph, path)
    assert [p.name for p in path.parent.iterdir()] == ["net.onnx"]
    assert onnx_package.load(path) == model
    assert onnx.check(path, graph, ARGS) < 1e-6


def test_external_data(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = onnx.export(graph, path, external_data=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    outside = [
        t.name for t in model.graph.initializer if t.data_location == onnx_package.TensorProto.EXTERNAL
    ]
    assert outside == ["block.first.weight", "block.second.weight"]  # what is small stays inside
    assert (tmp_path / "net.onnx.data").stat().st_size >= 6 * 64 * 4
    assert onnx.check(path, graph, ARGS) < 1e-6


@pytest.mark.parametrize("external_data", [False, True])
def test_bfloat16(external_data: bool, tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(30, 40), nn.GELU(), nn.Softmax(-1)).bfloat16()
    args = (torch.randn(2, 30).bfloat16(),)
    graph = capture(layers, args)
    model = onnx.export(graph, tmp_path / "m.onnx", external_data=external_data)
    assert onnx.check(tmp_path / "m.onnx", graph, args) < 2**-8
    assert {t.data_type for t in model.graph.initializer} == {onnx_package.TensorProto.BFLOAT16}


def test_a_file_is_replaced_by_the_next_export(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.export(graph, path, external_data=True)
    other = capture(Net(), ARGS)
    onnx.export(other, path, external_data=True)
    assert onnx.check(path, other, ARGS) < 1e-6
    assert len(list(tmp_path.iterdir())) == 2


def test_past_two_gigabytes_weights_go_outside(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from codegen.onnx import exporting

    monkeypatch.setattr(exporting, "LIMIT", 1000)
    path = tmp_path / "net.onnx"
    onnx.export(graph, path)
    assert (tmp_path / "net.onnx.data").is_file()
    assert onnx.check(path, graph, ARGS) < 1e-6
    with pytest.raises(UsageError, match="the weights exceed the 2 GB"):
        onnx.export(graph)
    with pytest.raises(UsageError, match="the weights exceed the 2 GB"):
        onnx.export(graph, path, external_data=False)


def test_without_weights(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = onnx.export(graph, path, weights=False)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    outside = {t.name: list(t.dims) for t in model.graph.initializer if t.external_data}
    assert outside == {"block.first.weight": [64, 6], "block.second.weight": [6, 64]}
    options = onnxruntime.SessionOptions()
    weights = [graph.constants[name].tensor.numpy() for name in outside]
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(w) for w in weights]
    options.add_external_initializers(list(outside), values)
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    made = session.run(None, {"image": ARGS[0].numpy(), "scale": ARGS[1].numpy()})[0]
    np.testing.assert_allclose(made, graph.run(*ARGS).detach().numpy(), atol=1e-6)


def test_a_graph_without_weights(graph: Graph) -> None:
    parsed = Graph.parse(str(graph))
    model = onnx.export(parsed, weights=False)
    assert len(model.graph.initializer) == 5
    with pytest.raises(CaptureError, match=r"@block.first.weight has no value"):
        onnx.export(parsed)


def test_nothing_is_left_where_writing_fails(graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(CaptureError, match=r"cannot write .*taken/net\.onnx"):
        onnx.export(graph, tmp_path / "taken" / "net.onnx")
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(CaptureError, match="cannot write"):
        onnx.export(graph, tmp_path / "net.onnx")
    with pytest.raises(CaptureError, match="cannot write"):
        onnx.export(graph, tmp_path / "net.onnx", external_data=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "taken"]


def test_the_same_graph_gives_the_same_bytes(graph: Graph) -> None:
    assert onnx.export(graph).SerializeToString() == onnx.export(graph.clone()).SerializeToString()


@pytest.mark.parametrize("opset", [20, 21, 22, 23, 24])
def test_opsets(opset: int) -> None:
    args = resnet.example_inputs(factory="small")
    graph = capture(resnet.small(), args)
    model = onnx.export(graph, opset=opset)
    assert model.opset_import[0].version == opset
    assert onnx.check(model, graph, args) < 1e-5


def test_wrong_options(graph: Graph) -> None:
    with pytest.raises(UsageError, match="opset 12 is not supported"):
        onnx.export(graph, opset=12)
    with pytest.raises(UsageError, match="external_data is 'yes'"):
        onnx.export(graph, external_data="yes")  # type: ignore[arg-type]


# -- state and branches ------------------------------------------------------------------------------------


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(x.sum())
        return x * self.count


def test_a_buffer_goes_in_and_out() -> None:
    graph = capture(Counter(), (torch.ones(2),))
    model = onnx.export(graph)
    assert [i.name for i in model.graph.input] == ["x", "count"]
    assert [o.name for o in model.graph.output] == ["output", "count.updated"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.ones(2, np.float32)
    first, count = session.run(None, {"x": x})
    second, _ = session.run(None, {"x": x, "count": count})
    assert (first[0], second[0]) == (2, 4)
    assert onnx.check(model, graph, (torch.ones(2),)) == 0
    assert graph.constants["count"].tensor.item() == 0


def test_an_input_that_is_written_to(trace: Callable[..., Graph]) -> None:
    graph = trace(lambda cache, x: cache.add_(x).sum(), (torch.zeros(3), torch.ones(3)))
    model = onnx.export(graph)
    assert [o.name for o in model.graph.output] == ["output", "cache.updated"]
    assert onnx.check(model, graph, (torch.ones(3), torch.ones(3))) == 0


def test_branches() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor, flag: torch.Tensor) -> tuple[torch.Tensor, ...]:
            def then(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return self.layer(x), x + x.shape[0]

            def otherwise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return x.sin(), x * 1

            return torch.cond(flag, then, otherwise, (x,))

    args = (torch.randn(2, 3), torch.tensor(True))
    graph = capture(Branches(), args, dynamic_shapes=({0: torch.export.Dim("n")}, {}))
    model = onnx.export(graph)
    assert [n.op_type for n in model.graph.node if n.op_type == "If"] == ["If"]
    for n in (1, 4):
        for flag in (True, False):
            assert onnx.check(model, graph, (torch.randn(n, 3), torch.tensor(flag))) < 1e-6


# -- what is refused ---------------------------------------------------------------------------------------


def test_an_operator_without_a_lowering(trace: Callable[..., Graph]) -> None:
    class Spectrum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x)

    graph = capture(nn.Sequential(OrderedDict(head=Spectrum())), (torch.eye(3),))
    with pytest.raises(UnsupportedOpError) as caught:
        onnx.export(graph)
    what, where, *rest = str(caught.value).splitlines()
    assert what == "no ONNX lowering for aten.linalg_eigvalsh"
    assert where.startswith("  head  ")
    assert "test_export.py:" in where
    assert rest[-1] == "try: codegen.onnx.register_lowering(op, fn)"


def test_nothing_is_written_where_an_operator_is_refused(tmp_path: Path, trace: Callable[..., Graph]) -> None:
    with pytest.raises(UnsupportedOpError):
        onnx.export(trace(torch.linalg.eigvalsh, (torch.eye(3),)), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_complex_numbers_are_refused(trace: Callable[..., Graph]) -> None:
    with pytest.raises(UnsupportedOpError, match="complex tensors have no ONNX form"):
        onnx.export(trace(lambda x: x.reshape(2, 2), (torch.ones(4, dtype=torch.complex64),)))
    with pytest.raises(UnsupportedOpError, match=r"no ONNX lowering for aten\.fft_fft"):
        onnx.export(trace(lambda x: torch.fft.fft(x).real, (torch.ones(4),)))


def test_training_is_refused() -> None:
    graph = capture(nn.Dropout(0.5).train(), (torch.ones(4),))
    with pytest.raises(UnsupportedOpError, match=r"model\.eval\(\)"):
        onnx.export(graph)


def test_a_result_that_the_lowering_does_not_make() -> None:
    text = """\
graph(%x: f32[2, 3, 4, 4])
  %0: f32[2, 3, 2, 2], %1: i64[2, 3, 2, 2] = aten.adaptive_max_pool2d(%x, [2, 2])     # pool  net.py:7
  return %1
"""
    with pytest.raises(UnsupportedOpError, match=r"does not make its result 1\n  pool  net.py:7"):
        onnx.export(Graph.parse(text))


@pytest.mark.parametrize("package", ["onnx", "onnx_ir"])
def test_a_missing_package(package: str, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CaptureError, match=f"ONNX needs the package {package.replace('_', '-')}"):
        onnx.export(graph)
