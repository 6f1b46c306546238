"""How much each channel of a group matters: by weights, by what they give, or by what the loss would lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from capture.ir import Constant, Graph, Node, Trait, has
from capture.ir.convert import call_with
from capture.ir.interpreter import flatten_inputs, run_flat
from passes.pruning.axes import Axes, coordinates
from passes.pruning.channels import Group

Loss = Callable[[list[torch.Tensor]], torch.Tensor]


def magnitude(axes: Axes, groups: Sequence[Group]) -> list[torch.Tensor]:
    """Squared L2 norms of the weights of each channel, per group fp64 [size].

    Each tensor counts by its own mean, so that a large one does not drown the others.
    """
    return [
        _total(
            group,
            [_along(c.tensor.detach().double().square(), axes, c, d, group) for c, d in _weights(group)],
        )
        for group in groups
    ]


def taylor(
    graph: Graph, axes: Axes, groups: Sequence[Group], batches: Sequence[Any], loss: Loss
) -> list[torch.Tensor]:
    """The squared first-order change of the loss without each channel, averaged over batches.

    Molchanov et al., "Importance Estimation for Neural Network Pruning" (2019).

    Args:
        batches: tuples of positional inputs.
        loss: the flat results to a scalar.
    """
    totals = [torch.zeros(group.size, dtype=torch.float64) for group in groups]
    module = graph.to_fx()
    wanted = {c.name for group in groups for c, _ in _weights(group)}
    for batch in batches:
        gradients = _gradients(module, graph, wanted, batch, loss)
        for total, group in zip(totals, groups, strict=True):
            change = torch.zeros_like(total)
            for constant, dim in _weights(group):
                if (gradient := gradients.get(constant.name)) is not None:
                    change += _along(
                        gradient.double() * constant.tensor.detach().double(), axes, constant, dim, group
                    )
            total += change.square() / len(batches)
    return totals


def activation(
    graph: Graph, axes: Axes, groups: Sequence[Group], batches: Sequence[Any]
) -> list[torch.Tensor]:
    """Mean magnitudes of what convolutions and linear layers give for each channel, averaged over batches."""
    totals = [torch.zeros(group.size, dtype=torch.float64) for group in groups]

    def observe(node: Node, args: Any, results: Sequence[Any]) -> None:
        if not has(node.op, Trait.MATMUL | Trait.CONV):
            return
        for total, group in zip(totals, groups, strict=True):
            for dim, axis in enumerate(axes.of(node.results[0])):
                if group.axis in axis.leaves:
                    sums = results[0].detach().double().abs().movedim(dim, 0).flatten(1).mean(1)
                    owner = coordinates(axis, group.axis)
                    total += _normal(_summed(sums, owner, group.size)) / len(batches)

    for batch in batches:
        run_flat(graph, flatten_inputs(graph, batch, {}), observe=observe)
    return totals


def _gradients(
    module: torch.fx.GraphModule, graph: Graph, wanted: set[str], batch: Any, loss: Loss
) -> dict[str, torch.Tensor]:
    """The loss's gradient by each of the constants wanted that it depends on, by the constant's name."""
    leaves = {name: graph.constants[name].tensor.detach().clone().requires_grad_() for name in sorted(wanted)}
    with torch.enable_grad():
        results = call_with(module, graph, leaves, flatten_inputs(graph, batch, {}))
        found = torch.autograd.grad(loss(results), list(leaves.values()), allow_unused=True)
    return {name: g for name, g in zip(leaves, found, strict=True) if g is not None}


def _weights(group: Group) -> list[tuple[Constant, int]]:
    return [(c, dim) for c, dim in group.members if c.tensor_type.rank > 1]


def _along(tensor: torch.Tensor, axes: Axes, constant: Constant, dim: int, group: Group) -> torch.Tensor:
    """Sums over all that one index of the group holds in one dimension of a constant."""
    return _summed(
        tensor.movedim(dim, 0).flatten(1).sum(1), coordinates(axes.of(constant)[dim], group.axis), group.size
    )


def _summed(sums: torch.Tensor, owner: torch.Tensor, size: int) -> torch.Tensor:
    own = owner >= 0
    return torch.zeros(size, dtype=sums.dtype).index_add(0, owner[own], sums.cpu()[own])


def _total(group: Group, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return sum((_normal(part) for part in parts), torch.zeros(group.size, dtype=torch.float64))


def _normal(scores: torch.Tensor) -> torch.Tensor:
    """Scores of mean 1; zeros stay zeros."""
    mean = scores.mean()
    return scores / mean if mean > 0 else scores


__all__ = ["Loss", "activation", "magnitude", "taylor"]
