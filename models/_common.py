"""What all model modules share: weights that are random, repeatable and fit for comparing numbers."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
ModuleT = TypeVar("ModuleT", bound=nn.Module)
T = TypeVar("T")


def seeded(factory: Callable[P, ModuleT]) -> Callable[P, ModuleT]:
    """Decorate a model factory: same weights at every call, norms away from the identity, eval mode."""

    @wraps(factory)
    def build(*args: P.args, **kwargs: P.kwargs) -> ModuleT:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(0)  # torch.manual_seed would touch the GPU's generator too
            model = factory(*args, **kwargs)
            for module in model.modules():
                randomize_norm(module)
        return model.eval()

    return build


def randomize_norm(module: nn.Module) -> None:
    """Perturb a norm, which is what has a one-dimensional weight, in place; leave other modules alone.

    A fresh norm multiplies by one and adds zero, so a wrong folding of it would go unnoticed.
    """
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 1:
        return
    weight.mul_(torch.empty_like(weight).uniform_(0.75, 1.25))
    if getattr(module, "bias", None) is not None:
        module.bias.normal_(std=0.1)
    if isinstance(module, nn.BatchNorm2d):
        module.running_mean.normal_(std=0.1)
        module.running_var.uniform_(0.75, 1.25)


def lookup(table: Mapping[str, T], factory: str) -> T:
    """What a module keeps per factory: `table[factory]`, or a ValueError that lists the factories."""
    if factory not in table:
        raise ValueError(f"no factory {factory!r}; there are {', '.join(table)}")
    return table[factory]
