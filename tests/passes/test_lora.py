"""Adapters change nothing at first, learn alone, and merge into what they computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from capture import capture
from capture.errors import UsageError
from models import gpt2, mlp
from passes.lora import adapters, lora, merge_lora
from runtime.finetune import finetune


@pytest.fixture(scope="module")
def example():
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    return capture(mlp.small(), (x,)), x


def trained(graph, x):
    target = torch.tensor([0, 1, 2, 3, 0])
    return finetune(graph, [((x,), target)] * 8, F.cross_entropy, names=adapters(graph), rate=0.05)


def test_a_fresh_adapter_adds_nothing(example):
    graph, x = example
    adapted = lora(graph, rank=4)
    adapted.verify()
    assert adapters(adapted) == [
        f"{name}.weight.lora_{part}" for name in ("hidden.0", "hidden.1", "head") for part in "ab"
    ]
    assert torch.equal(adapted.run(x), graph.run(x))
    assert adapters(graph) == []


def test_only_adapters_learn_and_merging_keeps_what_they_learnt(example):
    graph, x = example
    tuned = trained(lora(graph, rank=4), x)
    for name, constant in graph.constants.items():
        assert torch.equal(tuned.constants[name].tensor, constant.tensor)
    assert (tuned.run(x) - graph.run(x)).abs().max() > 0.05
    merged = merge_lora(tuned)
    merged.verify()
    assert adapters(merged) == []
    assert len(merged.nodes) == len(graph.nodes)
    torch.testing.assert_close(merged.run(x), tuned.run(x))


def test_some_layers_may_be_chosen(example):
    graph, _ = example
    assert adapters(lora(graph, names=["hidden.1"])) == ["hidden.1.weight.lora_a", "hidden.1.weight.lora_b"]


def test_a_tied_weight_has_one_adapter():
    ids = gpt2.example_inputs(1, "small")
    graph = capture(gpt2.small(), ids)
    adapted = lora(graph, rank=2, names=["wte"])
    assert adapters(adapted) == ["wte.weight.lora_a", "wte.weight.lora_b"]
    torch.testing.assert_close(adapted.run(*ids), graph.run(*ids))


def test_a_pair_of_layers_of_the_users_is_no_adapter(example):
    _, x = example
    layers = torch.nn.Linear(16, 4), torch.nn.Linear(16, 2), torch.nn.Linear(2, 4)

    class Beside(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.down, self.up = layers

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    graph = capture(Beside().eval(), (x,))
    assert str(merge_lora(graph)) == str(graph)


@pytest.mark.parametrize(
    ("options", "what"),
    [(dict(rank=0), "rank 0"), (dict(names=["haed"]), "no linear layer has the weight 'haed'")],
)
def test_what_makes_no_sense_is_said(example, options, what):
    with pytest.raises(UsageError, match=what):
        lora(example[0], **options)


def test_a_second_set_is_refused(example):
    with pytest.raises(UsageError, match="adapters already"):
        lora(lora(example[0]))
