"""Whole models by `torch.compile(model, backend="capture")`, as users call it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import runtime
from models import bert, gpt2, resnet
from runtime.compare import compare


def explained(compiled: Any) -> runtime.Explanation:
    """Everything was taken."""
    found = runtime.explain(compiled)
    assert found.graphs
    assert not found.fallbacks, str(found)
    return found


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_resnet(guard: Any) -> None:
    model = resnet.small().eval()
    compiled = torch.compile(model, backend="capture", fullgraph=True)
    (x,) = resnet.example_inputs(2, "small")
    with guard():
        result = compiled(x)
        assert result.is_inference() == (guard is torch.inference_mode)
        torch.testing.assert_close(result, model(x))
        assert result.stride() == model(x).stride()
    (graph,) = explained(compiled).graphs
    assert (graph.runs, graph.backend) == ("inference", "aten")
    assert graph.optimized_nodes < graph.nodes / 2
    assert graph.frozen == len([t for t in model.state_dict().values() if t.is_floating_point()])
    assert graph.seconds.keys() == {"capture", "optimize", "compile"}
    assert compare(model, compiled, (x,)).ok


@torch.no_grad()
def test_bert() -> None:
    model = bert.small().eval()
    compiled = torch.compile(model, backend="capture", fullgraph=True)
    (ids,) = bert.example_inputs(2, "small")
    for found, expected in zip(compiled(ids), model(ids), strict=True):
        torch.testing.assert_close(found, expected)
    explained(compiled)


@torch.no_grad()
def test_gpt2_decodes_with_its_cache() -> None:
    model, twin = gpt2.small_with_cache().eval(), gpt2.small_with_cache().eval()
    twin.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend="capture", fullgraph=True)
    tokens = torch.randint(0, 50, (1, 8))
    for step in range(8):
        at = (tokens[:, step : step + 1], torch.tensor([step]))
        torch.testing.assert_close(compiled(*at), twin(*at))
    for (name, found), (_, expected) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)
    (graph,) = explained(compiled).graphs
    assert graph.packed_again == 0


def test_a_cache_may_be_reset_by_assignment() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("total", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total.add_(self.fc(x).sum(0))
            return self.total * 2

    model = Counter().requires_grad_(False)
    compiled = torch.compile(model, backend="capture")
    x = torch.randn(3, 4)
    for _ in range(3):
        model.total = torch.zeros(4)
        once, twice = compiled(x), compiled(x)
        torch.testing.assert_close(once, model.fc(x).sum(0) * 2)
        torch.testing.assert_close(twice, once * 2)
    assert all(graph.packed_again == 0 for graph in explained(compiled).graphs)


@torch.no_grad()
def test_batch_norm_in_training_mode_updates_its_statistics() -> None:
    model, twin = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    compiled = torch.compile(model, backend="capture")
    for _ in range(3):
        x = torch.randn(6, 4) + 2
        torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    explained(compiled)


@torch.no_grad()
def test_a_bert_of_transformers() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = BertModel(config).eval()
    compiled = torch.compile(model, backend="capture")
    ids = torch.randint(0, 50, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    found, expected = compiled(ids, attention_mask=mask), model(ids, attention_mask=mask)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output)
    explained(compiled)


class Router(nn.Module):
    """A graph break by an `if` on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if x.sum() > 0:
            return self.second(x)
        return -x


@torch.no_grad()
def test_graph_breaks_and_an_if_on_the_data() -> None:
    model = Router()
    compiled = torch.compile(model, backend="capture")
    for sign in (1, -1, 1, -1):
        x = sign * model.first.weight.sum(0).expand(2, 4)
        torch.testing.assert_close(compiled(x), model(x))
    found = explained(compiled)
    assert len(found.graph_breaks) == 1
    assert any("if x.sum() > 0" in each.where for each in found.graph_breaks)
    assert any("on the value of a tensor" in each.what for each in found.graph_breaks)


@torch.no_grad()
def test_fullgraph_refuses_a_graph_break_as_with_any_backend() -> None:
    compiled = torch.compile(Router(), backend="capture", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(torch.randn(2, 4))


@torch.no_grad()
def test_a_batch_that_varies_is_compiled_twice() -> None:
    model = resnet.small().eval()
    compiled = torch.compile(model, backend="capture")
    for batch in (1, 2, 3, 5, 4, 1, 2):
        x = torch.randn(batch, 3, 64, 64)
        torch.testing.assert_close(compiled(x), model(x))
    found = explained(compiled)
    assert len(found.graphs) == 2
    assert "size mismatch at index 0. expected 1, actual 2" in found.recompiles[0].recompiled


@torch.no_grad()
def test_dynamic_true_compiles_once() -> None:
    model = bert.small().eval()
    compiled = torch.compile(model, backend="capture", dynamic=True)
    for batch, length in ((2, 7), (3, 5), (4, 9)):
        ids = torch.randint(0, 50, (batch, length))
        for found, expected in zip(compiled(ids), model(ids), strict=True):
            torch.testing.assert_close(found, expected)
    assert len(explained(compiled).graphs) == 1


@torch.no_grad()
def test_dynamic_false_compiles_for_each_shape() -> None:
    model = nn.Linear(4, 4)
    compiled = torch.compile(model, backend="capture", dynamic=False)
    for batch in (2, 3, 5):
        x = torch.randn(batch, 4)
        torch.testing.assert_close(compiled(x), model(x))
    assert len(explained(compiled).graphs) == 3


@pytest.mark.slow
@pytest.mark.parametrize("model_of", [resnet, bert], ids=["resnet50", "bert-base"])
@torch.no_grad()
def test_full_size(model_of: Any) -> None:
    model = model_of.build().eval()
    compiled = torch.compile(model, backend="capture", fullgraph=True)
    args = model_of.example_inputs(1)
    assert compare(model, compiled, args).ok
    explained(compiled)
