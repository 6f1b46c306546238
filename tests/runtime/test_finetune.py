"""Fine-tuning lowers the loss, trains what it should, and leaves the given graph alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from capture import capture
from capture.errors import CaptureError, UsageError
from models import mlp, resnet
from passes.pruning.prune import prune
from runtime.finetune import finetune, trainable


def batches(count, x, classes):
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(classes, (len(x),), generator=generator)
    return [((x,), target)] * count


def example():
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    return capture(mlp.small(), (x,)), x


def test_the_loss_goes_down_and_the_graph_given_stays():
    graph, x = example()
    before = {name: c.tensor.clone() for name, c in graph.constants.items()}
    steps = batches(30, x, 4)
    tuned = finetune(graph, steps, F.cross_entropy, rate=1e-2)
    target = steps[0][1]
    assert F.cross_entropy(tuned.run(x), target) < 0.5 * F.cross_entropy(graph.run(x), target)
    for name, constant in graph.constants.items():
        assert torch.equal(constant.tensor, before[name])
        assert not tuned.constants[name].tensor.requires_grad


def test_statistics_of_norms_are_no_weights():
    x = resnet.example_inputs(2, "small")[0]
    graph = capture(resnet.small(), (x,))
    names = trainable(graph)
    assert not [name for name in names if "running" in name or "num_batches" in name]
    assert {"conv1.weight", "bn1.weight", "bn1.bias", "fc.bias"} <= set(names)


def test_the_mask_of_attention_is_no_weight():
    class Causal(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lift = torch.nn.Linear(8, 8)
            self.register_buffer("mask", torch.full((5, 5), float("-inf")).triu(1))

        def forward(self, x):
            y = self.lift(x)[:, None]
            return F.scaled_dot_product_attention(y, y, y, attn_mask=self.mask)

    graph = capture(Causal().eval(), (torch.randn(2, 5, 8),))
    assert "mask" in graph.constants
    assert trainable(graph) == ["lift.weight", "lift.bias"]


def test_zeros_stay_where_asked():
    graph, x = example()
    sparse = prune(graph, method="magnitude", sparsity=0.5)
    for keep in (False, True):
        tuned = finetune(sparse, batches(2, x, 4), F.cross_entropy, rate=1e-2, keep_zeros=keep)
        weight, before = tuned.constants["head.weight"].tensor, sparse.constants["head.weight"].tensor
        assert bool((weight[before == 0] == 0).all()) is keep
        assert not torch.equal(weight, before)


def test_a_loss_that_is_not_finite_ends_it():
    graph, x = example()
    with pytest.raises(CaptureError, match="the loss is nan at step 0"):
        finetune(graph, batches(1, x, 4), lambda y, target: y.sum() * float("nan"))


def test_a_last_step_that_breaks_the_weights_is_no_success():
    graph, x = example()
    root = lambda out, target: (out - out.detach()).sum().abs().sqrt() + (out - target).sum()  # noqa: E731
    with pytest.raises(CaptureError, match="became NaN or infinite"):
        finetune(graph, [((x,), 0.0)], root)


def test_no_batches_are_told():
    graph, x = example()
    spent = iter(batches(2, x, 4))
    list(spent)
    with pytest.raises(UsageError, match="no batches"):
        finetune(graph, spent, F.cross_entropy)


def test_an_unknown_name_is_told():
    graph, x = example()
    with pytest.raises(UsageError, match="'haed' is no weight to train"):
        finetune(graph, batches(1, x, 4), F.cross_entropy, names=["haed"])


@pytest.mark.parametrize("loss", [lambda y, target: 1.0, lambda y, target: y])
def test_a_loss_is_a_scalar(loss):
    graph, x = example()
    with pytest.raises(UsageError, match="a tensor of one element"):
        finetune(graph, batches(1, x, 4), loss)
