"""Settings of a module that capture bakes in: a changed one is refused, never overlooked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import runtime
from capture.errors import GuardError

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0
        self.flipped = False
        self.mode = "relu"
        self.shift: float | None = None
        self.axes = (0, 1)
        self.act = torch.tanh
        self.factors = [1.0, 3.0]
        self.by_name = {"a": 1.0}
        self.weights = [torch.ones(4), torch.ones(4)]
        self.table = {"bias": torch.zeros(4), "more": (torch.zeros(4),)}
        self.drop = nn.Dropout(0.5)
        self.norm = nn.LayerNorm(4, eps=1e-5)
        self.calls = 0
        self.longest = 1
        self.note = "nothing that forward reads"

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self._see(len(x))
        x = self.norm(self.drop(x)) * self.scale * self.factors[1] * self.by_name["a"]
        x = torch.relu(x) if self.mode == "relu" else x
        for weight in self.weights:
            x = x * weight
        x = x if self.shift is None else x + self.shift
        return self.act(-x if self.flipped else x).transpose(*self.axes) + self._bias()

    def _see(self, n: int) -> None:
        self.longest = max(self.longest, n)

    def _bias(self) -> Tensor:
        return (self.table["bias"] + self.table["more"][0]).sum()


def compiled() -> tuple[nn.Module, runtime.Compiled]:
    model = nn.Sequential(Block(), nn.ReLU()).eval()
    f = runtime.compile(model, (X,), backend="aten")
    torch.testing.assert_close(f(X), model(X))
    return model, f


def setting(path: str, value: Any) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, value)

    return change


CHANGES: list[tuple[Callable[[Any], Any], str]] = [
    (setting("0.scale", 3.0), "the attribute 0.scale was 2.0 when captured, it is 3.0 now"),
    (setting("0.scale", 2), "the attribute 0.scale was 2.0 when captured, it is 2 now"),
    (setting("0.flipped", True), "0.flipped was False when captured, it is True now"),
    (setting("0.mode", "none"), "0.mode was 'relu' when captured, it is 'none' now"),
    (setting("0.shift", 1.0), "0.shift was None when captured, it is 1.0 now"),
    (setting("0.axes", (1, 1)), r"0.axes was \(0, 1\) when captured, it is \(1, 1\) now"),
    (setting("0.act", torch.sin), "0.act was tanh when captured, it is sin now"),
    (setting("0.norm.eps", 0.1), "0.norm.eps was 1e-05 when captured, it is 0.1 now"),
    (setting("0.weights", [torch.zeros(4)] * 2), "the attribute 0.weights was a list when captured"),
    (lambda m: m[0].factors.__setitem__(1, 5.0), "0.factors.1 was 3.0 when captured, it is 5.0 now"),
    (lambda m: m[0].by_name.update(a=2.0), "0.by_name.a was 1.0 when captured, it is 2.0 now"),
    (
        lambda m: m[0].weights.append(torch.zeros(4)),
        "the attribute 0.weights had 2 items when captured, it has 3 now",
    ),
    (
        lambda m: m[0].drop.train(),
        "captured in evaluation mode, the submodule 0.drop is in training mode now",
    ),
    (lambda m: m.train(), "captured in evaluation mode, the model is in training mode now"),
    (lambda m: delattr(m[0], "scale"), "the attribute 0.scale was deleted"),
    (setting("1", nn.Tanh()), "the submodule 1 was replaced"),
    (lambda m: m.append(nn.Tanh()), "the submodule 2 was added"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_changed_setting_is_refused(change: Callable[[nn.Module], None], message: str) -> None:
    model, f = compiled()
    change(model)
    for _ in range(2):
        with pytest.raises(GuardError, match=message) as caught:
            f(X)
        assert "compile" in str(caught.value.hint)


def test_a_setting_put_back_is_right_again() -> None:
    model, f = compiled()
    model[0].scale = 3.0
    with pytest.raises(GuardError):
        f(X)
    model[0].scale = float("2.0")  # an equal one
    torch.testing.assert_close(f(X), model(X))


def test_what_forward_itself_assigns_may_change() -> None:
    model, f = compiled()
    before = model[0].calls
    for n in (2, 7, 3):
        model(torch.randn(n, 4))
    assert model[0].calls == before + 3
    assert model[0].longest == 7
    torch.testing.assert_close(f(X), model(X))
    assert f.recompiles == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].weights[1].mul_(2),
        lambda m: m[0].weights.__setitem__(0, torch.full((4,), 3.0)),
        lambda m: m[0].table["more"][0].add_(1),
        lambda m: m[0].table.update(bias=torch.ones(4)),
    ],
)
def test_weights_in_containers_are_taken_up(change: Callable[[Any], Any]) -> None:
    model, f = compiled()
    before = f(X)
    change(model)
    want = model(X)
    assert not torch.allclose(want, before)
    torch.testing.assert_close(f(X), want)
    torch.testing.assert_close(f(X), want)
    assert f.recompiles == 1


def test_settings_that_torchs_layers_do_not_read_may_change() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    f = runtime.compile(model, (X,), backend="aten")
    model[0].in_features = 5  # for print only
    model[0].eval()
    torch.testing.assert_close(f(X), model(X).detach())


def test_eager_reads_the_settings_itself() -> None:
    model = Block().eval()
    f = runtime.compile(model, (X,), backend="eager")
    model.scale = 3.0
    torch.testing.assert_close(f(X), model(X))
