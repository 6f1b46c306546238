"""Whatever a module holds: what is rebound, patched, added or written in place is refused or taken up."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import runtime
from capture.errors import GuardError

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Mode(Enum):
    PLUS = 1
    MINUS = -1


@dataclass
class Options:
    scale: float = 2.0


class Config:
    """As the configurations of transformers are: fields, lists and a nested object."""

    def __init__(self) -> None:
        self.scale = 2.0
        self.widths = [4]
        self.inner = Options()


def drop(x: Tensor, owner: nn.Module) -> Tensor:
    return F.dropout(x, 0.5, owner.training)


class Base(nn.Module):
    gain = 1.5

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Model(Base):
    scale = 2.0
    table = {"a": 1.0}

    def __init__(self) -> None:
        super().__init__()
        self.ws = (torch.ones(4), torch.ones(4))
        self.mixed = (2.0, torch.ones(4))
        self.nested = ([2.0],)
        self.many = [1.0] * 65
        self.mode = Mode.PLUS
        self.flags = {"on"}
        self.size = torch.Size([2, 4])
        self.options = Options()
        self.add = partial(torch.add, alpha=2)
        self.layers = [nn.Linear(4, 4)]
        self.cfg: dict[str, float] = {}
        self.terms = [1.0]
        self.sub = nn.Linear(4, 4)
        self.more = nn.ParameterList([nn.Parameter(torch.ones(4))])
        self.several = {nn.Linear(4, 4)}
        self.config = Config()
        self.space = SimpleNamespace(shift=torch.ones(4))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None)

    @cached_property
    def half(self) -> float:
        return 0.5 * self.options.scale

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x) * self.scale * self.ws[0] * self.mixed[0] * self.nested[0][0] * self.half
        x = x * sum(self.many) * self.mode.value * (2.0 if "on" in self.flags else 1.0)
        x = self.add(x, torch.ones(self.size)) * self.options.scale * self.table["a"]
        x = self.layers[0](x) * self.cfg.get("k", 1.0) + sum(self.terms) + self.space.shift
        x = drop(self.sub(x), self.sub) * self.config.scale + self.config.widths[0]
        for part in self.several:
            x = part(x) * sum(self.more)
        return x if self.bias is None else x + self.bias


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return Model().eval()


def compiled(model: nn.Module) -> runtime.Compiled:
    f = runtime.compile(model, (X,), backend="aten")
    torch.testing.assert_close(f(X), model(X).detach(), rtol=1e-4, atol=1e-4)
    return f


def give(name: str, value: Any) -> Callable[[Any], None]:
    return lambda m: setattr(m, name, value)


def zero(*_: Any) -> Tensor:
    return torch.zeros(2, 4)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "tuple of tensors": (give("ws", (torch.zeros(4), torch.ones(4))), "the attribute ws was a tuple"),
    "number in a tuple": (give("mixed", (3.0, torch.ones(4))), "the attribute mixed was a tuple"),
    "list in a tuple": (give("nested", ([3.0],)), "the attribute nested was a tuple"),
    "item of a list in a tuple": (lambda m: m.nested[0].__setitem__(0, 3.0), r"nested.0.0 was 2.0"),
    "class attribute hidden": (give("scale", 3.0), "the attribute scale was added"),
    "class attribute": (lambda m: setattr(Model, "scale", 5.0), "the attribute Model.scale was 2.0"),
    "class attribute of a base": (lambda m: setattr(Base, "gain", 5.0), "Base.gain was 1.5"),
    "class attribute overridden": (
        lambda m: setattr(Model, "gain", 5.0),
        "the class attribute Model.gain was added",
    ),
    "item of a class attribute": (lambda m: m.table.update(a=3.0), "Model.table.a was 1.0"),
    "method": (
        lambda m: setattr(Base, "forward", zero),
        "Base.forward was forward when captured",
    ),
    "long list": (lambda m: m.many.__setitem__(64, 9.0), "many.64 was 1.0"),
    "enum": (give("mode", Mode.MINUS), "mode was Mode.PLUS when captured, it is Mode.MINUS now"),
    "set": (give("flags", {"off"}), "the attribute flags was a set when captured, it is another one"),
    "element of a set": (lambda m: (m.flags.clear(), m.flags.add("off")), "flags has other elements"),
    "size": (give("size", torch.Size([4])), r"size was torch.Size\(\[2, 4\]\)"),
    "partial": (give("add", partial(torch.add, alpha=3)), "the attribute add was a partial"),
    "argument of a partial": (lambda m: m.add.keywords.update(alpha=3), "add.alpha was 2"),
    "dataclass": (give("options", Options(3.0)), "the attribute options was a Options when captured"),
    "field of a dataclass": (lambda m: setattr(m.options, "scale", 3.0), "options.scale was 2.0"),
    "forward": (give("forward", zero), "the attribute forward was added"),
    "forward of a layer": (lambda m: setattr(m.sub, "forward", zero), "the attribute sub.forward was added"),
    "module in a list": (lambda m: m.layers.__setitem__(0, nn.Linear(4, 4)), "submodule layers.0 was repl"),
    "key of a dict": (lambda m: m.cfg.update(k=2.0), "attribute cfg had 0 items when captured, it has 1 now"),
    "item of a list": (lambda m: m.terms.append(1.0), "the attribute terms had 1 items"),
    "training, for a function": (lambda m: m.sub.train(), "the submodule sub is in training mode"),
    "config": (give("config", Config()), "the attribute config was a Config when captured"),
    "field of a config": (lambda m: setattr(m.config, "scale", 3.0), "config.scale was 2.0"),
    "list of a config": (lambda m: m.config.widths.__setitem__(0, 3), "config.widths.0 was 4"),
    "object of a config": (lambda m: setattr(m.config, "inner", Options()), "config.inner was a Options"),
    "missing parameter": (give("bias", nn.Parameter(torch.ones(4))), "the attribute bias was None"),
    "class of a module": (
        lambda m: setattr(m.sub, "__class__", type("Other", (nn.Linear,), {"forward": zero})),
        "the class of sub was Linear when captured",
    ),
    "parameter of a list": (
        lambda m: m.more.append(nn.Parameter(torch.ones(4))),
        "the weight more.1 was added",
    ),
    "hook": (lambda m: m.sub.register_forward_hook(zero), "a forward hook was registered or removed"),
    "hook of a module in a list": (lambda m: m.layers[0].register_forward_pre_hook(zero), "a forward hook"),
}


@pytest.fixture
def classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the class attributes back in the end."""
    for cls, name in ((Model, "scale"), (Base, "gain"), (Base, "forward")):
        monkeypatch.setattr(cls, name, vars(cls)[name])
    monkeypatch.setattr(Model, "gain", 1.5)
    monkeypatch.delattr(Model, "gain")
    monkeypatch.setattr(Model, "table", {"a": 1.0})


@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.usefixtures("classes")
def test_a_change_is_refused(model: Any, change: str) -> None:
    f = compiled(model)
    do, message = REFUSED[change]
    do(model)
    for _ in range(2):
        with pytest.raises(GuardError, match=message) as caught:
            f(X)
        assert "compile" in str(caught.value.hint)


def in_place(model: Any) -> None:
    with torch.no_grad():
        model.layers[0].weight.mul_(2)


def in_place_in_a_set(model: Any) -> None:
    for part in model.several:
        with torch.no_grad():
            part.bias.add_(1)


def reassigned(model: Any) -> None:
    model.layers[0].weight = nn.Parameter(torch.ones(4, 4))


@pytest.mark.parametrize(
    "change",
    [
        in_place,
        in_place_in_a_set,
        reassigned,
        lambda m: m.ws[0].mul_(2),
        lambda m: setattr(m.space, "shift", torch.zeros(4)),
    ],
)
def test_weights_are_taken_up(model: Any, change: Callable[[Any], Any]) -> None:
    f = compiled(model)
    before = f(X)
    change(model)
    want = model(X).detach()
    assert not torch.allclose(want, before)
    torch.testing.assert_close(f(X), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(f(X), want, rtol=1e-4, atol=1e-4)
    assert f.recompiles == 1


def test_equal_values_pass(model: Any) -> None:
    f = compiled(model)
    model.ws = (model.ws[0], model.ws[1])
    model.size = torch.Size([2, 4])
    model.many[3] = float("1.0")
    model.config.scale = float("2.0")
    model.sub.in_features = 7  # for print only
    model.sub.note = "of no use to its forward"
    for _ in range(2):
        torch.testing.assert_close(f(X), model(X).detach(), rtol=1e-4, atol=1e-4)
    model.config.scale = 3.0
    with pytest.raises(GuardError, match=r"config\.scale"):
        f(X)


def test_a_removed_hook_is_noticed() -> None:
    layer = nn.Linear(4, 4)
    handle = layer.register_forward_hook(lambda module, args, result: result * 2)
    model = nn.Sequential(layer).eval()
    f = runtime.compile(model, (X,), backend="aten")
    torch.testing.assert_close(f(X), model(X).detach())
    handle.remove()
    with pytest.raises(GuardError, match="a forward hook was registered or removed"):
        f(X)


def test_a_hook_elsewhere_does_not_matter(model: Any) -> None:
    f = compiled(model)
    nn.Linear(1, 1).register_forward_hook(zero)
    torch.testing.assert_close(f(X), model(X).detach(), rtol=1e-4, atol=1e-4)


def test_a_setting_of_a_layer_that_a_users_code_reads() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.layer.in_features

    model = Flat()
    f = compiled(model)
    model.layer.in_features = 7
    with pytest.raises(GuardError, match=r"layer\.in_features was 4 when captured, it is 7 now"):
        f(X)


def test_what_refers_to_itself_and_to_the_model() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items: list[Any] = [1.0]
            self.box = SimpleNamespace(owner=self, items=self.items)
            self.box.box = self.box
            self.bound = functools.partial(self._scaled, by=2.0)

        def _scaled(self, x: Tensor, by: float) -> Tensor:
            return x * by * self.box.items[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.bound(x)

    model = Loop()
    f = compiled(model)
    model.items[0] = 4.0
    with pytest.raises(GuardError, match=r"items\.0 was 1\.0"):
        f(X)
