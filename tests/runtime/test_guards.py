"""Guards: what does not fit is refused with one clear message; what changed is noticed, never used stale."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import runtime
from capture import Graph, capture
from capture.errors import GuardError
from runtime.guards import InputGuards

# -- inputs -----------------------------------------------------------------------------------------------


def guards(text: str) -> InputGuards:
    return InputGuards(Graph.parse(text + "\n  return %x\n"))


def refused(text: str, *given: Any) -> str:
    with pytest.raises(GuardError) as caught:
        guards(text).check(given)
    return str(caught.value)


STATIC = "graph(%x: f32[2, 3], %y: i64[4])"


def test_fitting_inputs_pass() -> None:
    guards(STATIC).check([torch.ones(2, 3), torch.ones(4, dtype=torch.int64)])
    guards(STATIC).check([torch.ones(3, 2).t(), torch.ones(8, dtype=torch.int64)[::2]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [torch.ones(2, 3)],
            "2 inputs are needed, 1 given\n  captured: x, y",
        ),
        (
            [torch.ones(2, 3, dtype=torch.float64), torch.ones(4).long()],
            "the input x has the wrong dtype: torch.float64, not torch.float32\n"
            "  captured f32[2, 3], given f64[2, 3] on cpu\n"
            "try: x.to(torch.float32)",
        ),
        (
            [torch.ones(2, 3, device="meta"), torch.ones(4).long()],
            "the input x has the wrong device: meta, not cpu\n"
            "  captured f32[2, 3], given f32[2, 3] on meta\n"
            'try: x.to("cpu")',
        ),
        (
            [torch.ones(2, 3), torch.ones(1, 4).long()],
            "the input y has the wrong number of dimensions: 2, not 1\n"
            "  captured i64[4], given i64[1, 4] on cpu",
        ),
        (
            [torch.ones(2, 5), torch.ones(4).long()],
            "the input x has size 5 in dimension 1, 3 is needed\n"
            "  captured f32[2, 3], given [2, 5]\n"
            "try: capture with dynamic_shapes for a size that varies",
        ),
        (
            [torch.ones(2, 3).to_sparse(), torch.ones(4).long()],
            "the input x has the wrong layout: torch.sparse_coo, not torch.strided\n"
            "  captured f32[2, 3], given f32[2, 3] on cpu\n"
            "try: x.to_dense()",
        ),
        ([[1.0], torch.ones(4).long()], "the input x must be a tensor f32[2, 3], not list"),
        ([None, torch.ones(4).long()], "the input x must be a tensor f32[2, 3], not NoneType"),
    ],
)
def test_messages(given: list[Any], message: str) -> None:
    assert refused(STATIC, *given) == message


DYNAMIC = "graph(%x: f32[N, 2*M], %y: f32[N + 1]) where N in [2, 8], M in [1, inf]"


@pytest.mark.parametrize("n", [2, 5, 8])
@pytest.mark.parametrize("m", [1, 7, 1000])
def test_sizes_in_range_pass(n: int, m: int) -> None:
    guards(DYNAMIC).check([torch.ones(n, 2 * m), torch.ones(n + 1)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [torch.ones(9, 4), torch.ones(10)],
            "the size N is 9, outside of its range [2, 8]\ntry: capture with a wider range in dynamic_shapes",
        ),
        ([torch.ones(1, 4), torch.ones(2)], "the size N is 1, outside of its range [2, 8]"),
        (
            [torch.ones(3, 4), torch.ones(3)],
            "the input y has size 3 in dimension 0, N + 1 = 4 is needed\n  captured f32[N + 1], given [3]",
        ),
        ([torch.ones(3, 5), torch.ones(4)], "the input x has size 5 in dimension 1, 2*M is needed"),
        ([torch.ones(3, 0), torch.ones(4)], "the size M is 0, outside of its range [1, inf]"),
    ],
)
def test_sizes_out_of_range_or_at_odds(given: list[torch.Tensor], message: str) -> None:
    assert refused(DYNAMIC, *given).startswith(message)


def test_literals_hold_for_their_value_only() -> None:
    text = 'graph(%x: ="mean", %y: =2, %z: =None, %b: =True)'
    guards(text).check(["mean", 2, None, True])
    assert refused(text, "sum", 2, None, True) == (
        "the input x was 'mean' when captured, it is 'sum' now\n"
        "  capture bakes in arguments that are no tensors\n"
        "try: compile once for each value"
    )
    for given in (["mean", 2.0, None, True], ["mean", True, None, True], ["mean", 2, 0, True]):
        refused(text, *given)
    refused(text, "mean", 2, None, 1)


def test_numbers() -> None:
    text = "graph(%x: int(N), %y: f32[N]) where N in [1, 8]"
    guards(text).check([3, torch.ones(3)])
    assert refused(text, 2.0, torch.ones(2)) == "the input x must be of type int, it is 2.0"
    assert "must be of type int, it is True" in refused(text, True, torch.ones(1))
    assert "N = 3 is needed" in refused(text, 3, torch.ones(2))
    assert "outside of its range [1, 8]" in refused(text, 9, torch.ones(9))


# -- weights ----------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A convolution and its norm (folded), linear layers (packed, one twice), a table and a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.block[0].weight
        self.scale = torch.full((8,), 2.0)
        nn.init.uniform_(self.bn.running_mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn(self.conv(x))).mean((2, 3))
        return self.tied(self.block(y)) * self.scale


@pytest.fixture
def net() -> Net:
    return Net().eval()


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def compiled(model: nn.Module) -> runtime.Compiled:
    f = runtime.compile(model, (X,), backend="aten")
    torch.testing.assert_close(f(X), model(X))
    return f


def new_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v + 0.1 if v.is_floating_point() else v for k, v in model.state_dict().items()}


def scaled(p: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(p.detach() * 0.5)


def swap(name: str) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        owner, _, key = name.rpartition(".")
        module = net.get_submodule(owner)
        old = getattr(module, key)
        setattr(module, key, scaled(old) if isinstance(old, nn.Parameter) else old * 0.5)

    return change


def in_place(name: str) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        owner, _, key = name.rpartition(".")
        with torch.no_grad():
            getattr(net.get_submodule(owner), key).mul_(0.5)

    return change


def new_memory(net: Net) -> None:
    net.conv.weight.data = net.conv.weight.data * 0.5


def optimizer_step(net: Net) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    net(X).sum().backward()
    optimizer.step()


CHANGES = {
    "load_state_dict": lambda net: net.load_state_dict(new_state(net)),
    "load_state_dict(assign)": lambda net: net.load_state_dict(new_state(net), assign=True),
    "optimizer": optimizer_step,
    "new memory": new_memory,
    "conv.weight =": swap("conv.weight"),
    "bn.running_var =": swap("bn.running_var"),
    "bn.weight *=": in_place("bn.weight"),
    "bn.running_mean *=": in_place("bn.running_mean"),
    "block.2.bias *=": in_place("block.2.bias"),
    "tied.weight *=": in_place("tied.weight"),
    "scale =": swap("scale"),
    "scale *=": in_place("scale"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_taken_up(net: Net, change: str) -> None:
    f = compiled(net)
    before = f(X)
    CHANGES[change](net)
    if change == "load_state_dict(assign)":
        with pytest.raises(GuardError, match=r"block\.0\.weight and tied\.weight were one tensor"):
            f(X)
        return
    want = net(X)
    assert not torch.allclose(want, before, atol=1e-4)
    torch.testing.assert_close(f(X), want)
    torch.testing.assert_close(f(X), want)
    assert f.recompiles == 1


def test_untouched_weights_are_not_packed_again(net: Net) -> None:
    f = compiled(net)
    for _ in range(3):
        f(X)
    net.train()
    net.eval()
    f(X)
    assert f.recompiles == 0


def untie(net: Net) -> None:
    net.tied.weight = scaled(net.tied.weight)


def delete(net: Net) -> None:
    del net.conv.weight


def no_bias(net: Net) -> None:
    net.block[2].bias = None


def replace_module(net: Net) -> None:
    net.block[2] = nn.Linear(8, 8)


def delete_module(net: Net) -> None:
    del net.block


def grow(net: Net) -> None:
    net.block[2] = net.block[2]
    net.block[2].weight = nn.Parameter(torch.randn(9, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (untie, "the weights block.0.weight and tied.weight were one tensor when captured, they are two now"),
        (delete, "the weight conv.weight was deleted"),
        (no_bias, "the weight block.2.bias was deleted"),
        (replace_module, "the submodule block.2 was replaced"),
        (delete_module, "the submodule block was deleted"),
        (grow, "the weight block.2.weight is f32[9, 8] now, it was f32[8, 8]"),
        (lambda net: net.double(), r"the weight conv.weight is f64[8, 3, 3, 3] now, it was f32[8, 3, 3, 3]"),
        (lambda net: net.bfloat16(), "is bf16"),
    ],
)
def test_what_cannot_be_taken_up_is_refused(net: Net, change: Callable[[Net], None], message: str) -> None:
    f = compiled(net)
    change(net)
    for _ in range(2):  # again and again
        with pytest.raises(GuardError, match=re.escape(message)) as caught:
            f(X)
        assert caught.value.hint == "compile the module again"
    assert f.recompiles == 0


def test_a_change_put_back_is_right_again(net: Net) -> None:
    f = compiled(net)
    old = net.conv.weight
    del net.conv.weight
    with pytest.raises(GuardError):
        f(X)
    net.conv.weight = old
    torch.testing.assert_close(f(X), net(X))


def test_a_shared_module_is_watched_in_both_places() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)))

    model, x = Shared().eval(), torch.randn(2, 4)
    f = runtime.compile(model, (x,), backend="aten")
    torch.testing.assert_close(f(x), model(x))
    model.b = nn.Linear(4, 4)
    with pytest.raises(GuardError, match="the submodule b was replaced"):
        f(x)


def test_buffers_that_the_model_writes_may_change_but_not_be_lost() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += x
            return self.count * 2

    model, x = Counter(), torch.ones(2)
    f = runtime.compile(model, (x,), backend="aten")
    assert [float(f(x)[0]) for _ in range(3)] == [2.0, 4.0, 6.0]
    assert model.count.tolist() == [3.0, 3.0]
    assert f.recompiles == 0
    model.count.zero_()
    assert float(f(x)[0]) == 2.0
    model.count = torch.full((2,), 10.0)  # another tensor
    assert float(f(x)[0]) == 22.0
    assert model.count.tolist() == [11.0, 11.0]


def test_a_graphs_own_tensors_are_watched() -> None:
    graph = capture(nn.Linear(3, 4), (torch.ones(2, 3),))
    x = torch.randn(2, 3)
    f = runtime.compile(graph, backend="aten")
    torch.testing.assert_close(f(x), graph.run(x))
    graph.constants["weight"].tensor.mul_(2)
    torch.testing.assert_close(f(x), graph.run(x))
    graph.bind({"weight": torch.randn(4, 3), "bias": torch.randn(4)})
    torch.testing.assert_close(f(x), graph.run(x))
    assert f.recompiles == 2


def test_a_tensor_that_has_no_place_in_the_module_is_watched() -> None:
    table = [torch.ones(3)]

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = table

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.table[0]

    model, x = Listed(), torch.randn(2, 3)
    f = runtime.compile(model, (x,), backend="aten")
    torch.testing.assert_close(f(x), x)
    table[0].mul_(3)
    torch.testing.assert_close(f(x), x * 3)


def test_inference_tensors_as_weights() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()
    x = torch.randn(2, 3)
    f = runtime.compile(model, (x,), backend="aten")
    torch.testing.assert_close(f(x), model(x).clone())
    model[0].weight = nn.Parameter(torch.randn(4, 3))
    torch.testing.assert_close(f(x), model(x).detach())


def test_a_module_that_holds_sparse_and_unused_tensors() -> None:
    model = nn.Linear(3, 4)
    model.register_buffer("mask", torch.eye(3).to_sparse())
    model.register_buffer("lazy", torch.empty(3, device="meta"))
    x = torch.randn(2, 3)
    f = runtime.compile(model, (x,), backend="aten")
    torch.testing.assert_close(f(x), model(x).detach())
