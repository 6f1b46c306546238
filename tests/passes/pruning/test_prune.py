"""Pruned models: shapes fit, what is left computes what it did, and what must stay stays."""

from __future__ import annotations

import importlib
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import runtime
from capture import capture
from capture.errors import UsageError
from capture.ir.cost import flops
from passes.pruning.axes import coordinates
from passes.pruning.channels import cut, dependency_groups
from passes.pruning.prune import PruneConfig, prune

MODELS = ["bert", "gpt2", "llama", "mlp", "resnet", "vit"]


def make(name, factory="small", batch=2):
    module = importlib.import_module(f"models.{name}")
    return getattr(module, factory)(), module.example_inputs(batch, factory)


@cache
def small(name):
    """(graph of the small model, example inputs); nothing here may edit the graph."""
    model, args = make(name)
    return capture(model, args), args


def names(graph):
    return [group.name for group in dependency_groups(graph)[1]]


def without(graph, group, gone):
    """The graph with zeros for the weights of these channels, in all that belongs to the group."""
    work = graph.clone()
    axes, groups = dependency_groups(work)
    same = next(g for g in groups if g.name == group)
    for constant, dim in same.members:
        owner = coordinates(axes.of(constant)[dim], same.axis)
        hit = torch.isin(owner, torch.tensor(gone))
        shape = [1] * constant.tensor.dim()
        shape[dim] = -1
        constant.tensor = constant.tensor.detach() * (~hit).view(shape)
    return work


def check_zeros(graph, args, group):
    """Channels that give nothing can be cut without a change; a third of them, in no order."""
    axes, groups = dependency_groups(graph)
    found = next(g for g in groups if g.name == group)
    gone = list(range(0, found.size, 3))
    stay = torch.tensor([i for i in range(found.size) if i not in gone])
    expected = without(graph, group, gone).run(*args, dtype=torch.float64)
    work = graph.clone()
    axes, groups = dependency_groups(work)
    leaf = next(g for g in groups if g.name == group).axis
    cut(work, axes, {leaf: stay})
    work.verify()
    torch.testing.assert_close(work.run(*args, dtype=torch.float64), expected)


# What the models have


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_gets_smaller_and_still_runs(name, ratio):
    graph, args = small(name)
    pruned = prune(graph, method="channels", sparsity=ratio)
    pruned.verify()
    shapes = [tuple(t.shape) for t in torch.utils._pytree.tree_leaves(pruned.run(*args))]
    assert shapes == [tuple(t.shape) for t in torch.utils._pytree.tree_leaves(graph.run(*args))]
    assert sum(map(flops, pruned.nodes)) < sum(map(flops, graph.nodes))
    assert sum(c.tensor.numel() for c in pruned.constants.values()) < sum(
        c.tensor.numel() for c in graph.constants.values()
    )


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_channels_that_give_nothing_can_go(name):
    graph, args = small(name)
    for group in names(graph):
        check_zeros(graph, args, group)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("vit", ["blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight"]),
        ("gpt2", ["h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight"]),
        (
            "bert",
            ["encoder.layer.0.attention.self.value.weight", "encoder.layer.1.intermediate.dense.weight"],
        ),
        ("llama", ["model.layers.0.mlp.gate_proj.weight", "model.layers.1.self_attn.v_proj.weight"]),
    ],
)
def test_heads_and_neurons_that_give_nothing_can_go(name, groups):
    graph, args = small(name)
    assert set(groups) <= set(names(graph))
    for group in groups:
        check_zeros(graph, args, group)


def test_heads_go_whole():
    graph, _ = small("vit")
    pruned = prune(graph, method="channels", sparsity=0.25)
    assert pruned.history[-1].stats["blocks.0.attn.qkv.weight"] == "4 -> 3"
    assert pruned.constants["blocks.0.attn.qkv.weight"].tensor.shape == (3 * 3 * 8, 24)


# Operators


class Net(nn.Module):
    def __init__(self, function, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, *args):
        return self.function(self, *args)


def conv(inner, outer, size=3, **options):
    return nn.Conv2d(inner, outer, size, padding=size // 2, **options)


def unet(net, x):
    down = F.relu(net.a(x))
    up = net.b(F.max_pool2d(down, 2))
    up = F.interpolate(up, scale_factor=2.0, mode="nearest")
    return net.c(torch.cat([down, F.silu(up)], 1))


def gated(net, x):
    gate, up = net.a(x).chunk(2, dim=-1)
    return net.b(F.silu(gate) * up)


NETS = {
    "depthwise": (
        lambda: Net(
            lambda net, x: net.c(F.relu(net.b(F.relu(net.a(x))))),
            a=conv(3, 12, 1), b=conv(12, 12, groups=12), c=conv(12, 5, 1),
        ),
        ["a.weight"],
    ),
    "grouped": (
        lambda: Net(
            lambda net, x: net.c(F.relu(net.b(F.relu(net.a(x))))),
            a=conv(3, 12), b=conv(12, 24, groups=3), c=conv(24, 4, 1),
        ),
        ["a.weight", "a.weight#2", "b.weight"],
    ),
    "concatenated": (lambda: Net(unet, a=conv(3, 9), b=conv(9, 6), c=conv(15, 4)), ["a.weight", "b.weight"]),
    "gated": (
        lambda: Net(lambda net, x: gated(net, x.mean((2, 3))), a=nn.Linear(3, 24), b=nn.Linear(12, 4)),
        ["a.weight"],
    ),
    "transposed": (
        lambda: Net(
            lambda net, x: net.b(F.relu(net.a(x))), a=nn.ConvTranspose2d(3, 9, 2, stride=2), b=conv(9, 4)
        ),
        ["a.weight"],
    ),
    "flattened": (
        lambda: Net(
            lambda net, x: net.b(F.relu(net.a(x)).flatten(1)), a=conv(3, 8), b=nn.Linear(8 * 64, 4)
        ),
        ["a.weight"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_what_goes_together(name):
    build, expected = NETS[name]
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    graph = capture(build().eval(), (x,))
    assert names(graph) == expected
    for group in expected:
        check_zeros(graph, (x,), group)


def test_groups_of_a_norm_keep_equal_members():
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.b(F.relu(net.n(net.a(x)))), a=conv(3, 12), n=nn.GroupNorm(3, 12), b=conv(12, 4)
    )
    x = torch.randn(2, 3, 8, 8)
    graph = capture(net.eval(), (x,))
    assert [(g.name, g.size) for g in dependency_groups(graph)[1]] == [("a.weight", 3), ("a.weight#2", 4)]
    pruned = prune(graph, method="channels", sparsity=0.34)
    assert pruned.run(x).shape == (2, 4, 8, 8)
    pruned.verify()


def test_a_dynamic_batch_stays_dynamic():
    torch.manual_seed(0)
    model, args = make("vit")
    graph = capture(model, args, dynamic_shapes=({0: torch.export.Dim("N", min=1, max=16)},))
    pruned = prune(graph, method="channels", sparsity=0.5)
    pruned.verify()
    for batch in (1, 3, 16):
        assert pruned.run(make("vit", batch=batch)[1][0]).shape == (batch, 10)


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: net.a(x),  # a result
        lambda net, x: net.b(net.a(x)[:, 2:10]),  # taken by position
        lambda net, x: net.b(net.a(x).softmax(1)[:, :8]),  # read together
        lambda net, x: net.b(net.a(x).roll(1, 1)[:, :8]),
        lambda net, x: net.b(torch.fft.rfft(net.a(x)).real[:, :8]),  # an operator that nothing is known of
        lambda net, x: net.b(net.a(x)[:, torch.arange(8)]),
    ],
)
def test_what_must_stay_stays(function):
    torch.manual_seed(0)
    net = Net(function, a=nn.Linear(6, 16), b=nn.Linear(8, 3)).eval()
    assert "a.weight" not in names(capture(net, (torch.randn(2, 6),)))


def test_weights_that_are_written_stay_whole():
    net = Net(lambda net, x: net.b(F.relu(net.a(x))), a=nn.Linear(4, 8), b=nn.Linear(8, 3))
    net.register_buffer("seen", torch.zeros(8))

    def forward(net, x):
        hidden = F.relu(net.a(x))
        net.seen.add_(hidden.sum(0))
        return net.b(hidden)

    net.function = forward
    x = torch.randn(2, 4)
    graph = capture(net.eval(), (x,))
    pruned = prune(graph, method="channels", sparsity=0.5)
    pruned.verify()
    assert pruned.run(x).shape == (2, 3)
    assert pruned.constants["seen"].tensor.shape == pruned.constants["a.bias"].tensor.shape


# Choosing


def test_the_least_important_go():
    net = Net(lambda net, x: net.b(F.relu(net.a(x))), a=nn.Linear(4, 6, bias=False), b=nn.Linear(6, 3))
    with torch.no_grad():
        net.a.weight.copy_(torch.tensor([5.0, 0.1, 4, 0.2, 3, 0.3])[:, None].expand(6, 4))
        net.b.weight.fill_(1.0)
    x = torch.rand(2, 4)
    data = [(torch.rand(2, 4),)]
    for importance in ("magnitude", "taylor", "activation"):
        config = PruneConfig(importance=importance, calibration=data)
        pruned = prune(capture(net, (x,)), method="channels", sparsity=0.5, config=config)
        assert pruned.constants["a.weight"].tensor[:, 0].tolist() == [5, 4, 3], importance


def test_some_may_be_left_out_or_get_a_ratio_of_their_own():
    graph, _ = small("mlp")
    config = PruneConfig(exclude=("hidden.0",), ratios={"hidden.1": 0.75})
    pruned = prune(graph, method="channels", sparsity=0.25, config=config)
    assert pruned.constants["hidden.0.weight"].tensor.shape == (32, 16)
    assert pruned.constants["hidden.1.weight"].tensor.shape == (8, 32)
    config = PruneConfig(multiple=16)
    pruned = prune(graph, method="channels", sparsity=0.4, config=config)
    assert pruned.constants["hidden.1.weight"].tensor.shape == (32, 32)


def test_the_model_itself_is_left_alone():
    model, args = make("mlp")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    graph = capture(model, args)
    text = str(graph)
    for method in ("channels", "magnitude", "2:4", "block"):
        prune(graph, method=method, sparsity=0.5)
    assert str(graph) == text
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_it_compiles_and_agrees_with_its_own_graph():
    graph, args = small("resnet")
    pruned = prune(graph, method="channels", sparsity=0.3)
    f = runtime.compile(pruned, args, backend="aten")
    torch.testing.assert_close(f(*args), pruned.run(*args), rtol=1e-4, atol=1e-4)


# Zeros


@pytest.mark.parametrize("method", ["magnitude", "2:4", "block"])
def test_sparse_weights_keep_their_shapes(method):
    graph, _ = small("vit")
    pruned = prune(graph, method=method, sparsity=0.5)
    pruned.verify()
    weight = pruned.constants["blocks.0.mlp.fc1.weight"].tensor
    assert weight.shape == graph.constants["blocks.0.mlp.fc1.weight"].tensor.shape
    assert (weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)
    if method == "2:4":
        assert ((weight.view(64, -1, 4) == 0).sum(-1) == 2).all()
    kept = weight[weight != 0].abs()
    gone = graph.constants["blocks.0.mlp.fc1.weight"].tensor[weight == 0].abs()
    assert gone.mean() < kept.mean()


# Bad input


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (dict(method="chanels"), "no pruning method 'chanels'"),
        (dict(sparsity=1.0), "a sparsity of 1.0 is out of range"),
        (dict(method="magnitude", sparsity=-0.1), "a sparsity of -0.1 is out of range"),
        (dict(config=PruneConfig(exclude=("head2",))), "no prunable weight 'head2'"),
        (dict(config=PruneConfig(importance="gut")), "no importance 'gut'"),
        (dict(config=PruneConfig(importance="taylor")), "needs data"),
        (dict(config=PruneConfig(multiple=0)), "multiple"),
    ],
)
def test_what_makes_no_sense_is_said(options, what):
    with pytest.raises(UsageError, match=what):
        prune(small("mlp")[0], **{"method": "channels", "sparsity": 0.3, **options})
