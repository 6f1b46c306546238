"""ONNX Runtime on torch tensors: graphs and files, state, dtypes, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from capture import Graph, capture
from capture.errors import CaptureError
from codegen import onnx
from models import gpt2, vit
from runtime.onnx_session import Session


def test_a_graph(tmp_path: Path) -> None:
    args = vit.example_inputs(batch=2, factory="small")
    graph = capture(vit.small(), args)
    session = Session(graph, threads=1)
    assert session.provider == "CPUExecutionProvider"
    (made,) = session(*args)
    torch.testing.assert_close(made, graph.run(*args))
    transposed = args[0].permute(0, 1, 3, 2)  # not contiguous
    torch.testing.assert_close(session(transposed)[0], graph.run(transposed))


@pytest.mark.parametrize("external_data", [False, True])
def test_a_file(external_data: bool, tmp_path: Path) -> None:
    args = vit.example_inputs(factory="small")
    graph = capture(vit.small(), args)
    onnx.export(graph, tmp_path / "vit.onnx", external_data=external_data)
    torch.testing.assert_close(Session(tmp_path / "vit.onnx")(*args)[0], graph.run(*args))


def test_results_outlive_the_session_and_inputs_are_shared() -> None:
    graph = capture(lambda x: (x + 1, x.sum()), (torch.ones(3),))
    x = torch.arange(3.0)
    session = Session(graph)
    first = session(x)
    x += 10
    second = session(x)
    del session
    assert first[0].tolist() == [1, 2, 3]
    assert second[0].tolist() == [11, 12, 13]
    assert second[1].item() == 33


def test_numbers_and_nothing_among_the_results() -> None:
    graph = capture(lambda x, n: (x * n, None, 3, n), (torch.ones(2), 4))
    made = Session(graph)(torch.ones(2), 4)
    assert made[0].tolist() == [4, 4]
    assert made[1:] == [None, 3, 4]


def test_a_size_among_the_results() -> None:
    n = torch.export.Dim("n", max=9)
    graph = capture(lambda x: (x.shape[0] * 2, x + 1), (torch.ones(2),), dynamic_shapes=({0: n},))
    size, y = Session(graph)(torch.ones(5))
    assert size == 10
    assert y.tolist() == [2] * 5


def test_a_graph_updates_its_buffers() -> None:
    model = gpt2.small_with_cache()
    reference = copy.deepcopy(model)
    token, _ = gpt2.example_inputs(factory="small_with_cache")
    session = Session(capture(model, (token, torch.tensor([0]))))
    for position in (torch.tensor([0]), torch.tensor([1]), torch.tensor([2])):
        torch.testing.assert_close(
            session(token, position)[0], reference(token, position), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(model.h[1].attn.cache.k, reference.h[1].attn.cache.k)


def test_a_file_keeps_its_state_from_call_to_call(tmp_path: Path) -> None:
    reference = gpt2.small_with_cache()
    token, _ = gpt2.example_inputs(factory="small_with_cache")
    onnx.export(capture(gpt2.small_with_cache(), (token, torch.tensor([0]))), tmp_path / "gpt2.onnx")
    session = Session(tmp_path / "gpt2.onnx")
    assert session.state == {}
    for position in (torch.tensor([0]), torch.tensor([1])):
        (made,) = session(token, position)
        torch.testing.assert_close(made, reference(token, position), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(session.state["h.0.attn.cache.v"], reference.h[0].attn.cache.v)


def test_an_input_that_is_written_to() -> None:
    graph = capture(lambda cache, x: cache.add_(x).sum(), (torch.zeros(3), torch.ones(3)))
    cache = torch.zeros(3)
    session = Session(graph)
    assert [session(cache, torch.ones(3))[0].item() for _ in range(2)] == [3, 6]
    assert cache.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool], ids=str
)
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    x = (torch.arange(6.0).view(2, 3) - 2).to(dtype)
    graph = capture(lambda x: (x, x.reshape(-1), x[:, 1:] == x[:, :-1], torch.cat([x, x])), (x,))
    onnx.export(graph, tmp_path / "m.onnx")
    for session in (Session(graph), Session(tmp_path / "m.onnx")):
        for made, wanted in zip(session(x), graph.run(x), strict=True):
            assert made.dtype == wanted.dtype
            assert torch.equal(made, wanted)


@pytest.mark.parametrize("external_data", [False, True])
def test_bfloat16_is_rounded_as_torch_rounds(external_data: bool, tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(30, 40), nn.GELU(), nn.LayerNorm(40), nn.Linear(40, 5), nn.Softmax(-1))
    layers = layers.bfloat16().requires_grad_(False)
    x = torch.randn(3, 7, 30).bfloat16()
    graph = capture(layers, (x,))
    model = onnx.export(graph, tmp_path / "m.onnx", external_data=external_data)
    wanted = layers(x)
    for session in (Session(graph), Session(tmp_path / "m.onnx")):
        (made,) = session(x)
        assert made.dtype == torch.bfloat16
        torch.testing.assert_close(made, wanted, rtol=2**-6, atol=2**-8)
    declared = {i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)}
    assert declared == {16}  # the file itself stays bfloat16


def test_what_is_refused(tmp_path: Path) -> None:
    graph = capture(lambda x: x + 1, (torch.ones(3),))
    with pytest.raises(CaptureError, match=r"ONNX Runtime cannot run the model\n.*INVALID_ARGUMENT"):
        Session(graph)(torch.ones(4))
    with pytest.raises(CaptureError, match="ONNX Runtime has no NoSuchProvider"):
        Session(graph, providers=["NoSuchProvider"])
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(CaptureError, match=r"cannot load the model .*broken\.onnx"):
        Session(tmp_path / "broken.onnx")
    with pytest.raises(CaptureError, match=r"cannot load the model .*none\.onnx"):
        Session(tmp_path / "none.onnx")
    text = "graph(%x: f32[2])\n  @w: f32[2]\n  %0: f32[2] = aten.add.Tensor(%x, @w)\n  return %0\n"
    with pytest.raises(CaptureError, match="the constant @w has no value"):
        Session(Graph.parse(text))


def test_a_kernel_that_the_provider_lacks() -> None:
    graph = capture(nn.Conv2d(2, 3, 3).double(), (torch.ones(1, 2, 5, 5, dtype=torch.float64),))
    with pytest.raises(CaptureError, match=r"ONNX Runtime refuses the model\n.*Conv"):
        Session(graph)
