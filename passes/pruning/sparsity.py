"""Zeros in weights: which elements, runs of four, or blocks go. Shapes stay as they are."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from capture.ir import Constant, Graph, Trait, has
from passes.queries import fixed_tensor


def prunable_weights(graph: Graph) -> Iterator[Constant]:
    """The bound floating weights, of two dimensions or more, of linear layers and convolutions; each once."""
    found: dict[Constant, None] = {}
    for node in graph.nodes:
        if has(node.op, Trait.MATMUL | Trait.CONV):
            for value in node.operand_values:
                tensor = fixed_tensor(graph, value)
                if tensor is not None and tensor.dim() > 1 and tensor.is_floating_point():
                    found[value] = None
    return iter(found)


def unstructured(weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    """What stays when the smallest elements go: a mask, bool, of the weight's shape."""
    count = round(weight.numel() * sparsity)
    order = weight.abs().flatten().argsort(stable=True)
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[order[:count].cpu()] = False
    return mask.view(weight.shape).to(weight.device)


def two_of_four(weight: torch.Tensor) -> torch.Tensor | None:
    """A mask with the two largest of each four neighbours in a row [out, in * ...].

    None where rows do not divide by four.
    """
    rows = weight.flatten(1)
    if rows.shape[1] % 4:
        return None
    fours = rows.abs().unflatten(1, (-1, 4))
    best = fours.argsort(dim=-1, descending=True, stable=True)[..., :2]
    return torch.zeros_like(fours, dtype=torch.bool).scatter(-1, best, True).view(weight.shape)


def blocks(weight: torch.Tensor, sparsity: float, size: int) -> torch.Tensor | None:
    """A mask without the blocks [size, size] of the matrix [out, in * ...] that have the smallest norms.

    None where blocks do not divide it.
    """
    rows = weight.flatten(1)
    if rows.shape[0] % size or rows.shape[1] % size:
        return None
    tiles = rows.double().unflatten(1, (-1, size)).unflatten(0, (-1, size)).square().sum((1, 3))
    mask = unstructured(tiles, sparsity)
    return mask.repeat_interleave(size, 0).repeat_interleave(size, 1).view(weight.shape)


__all__ = ["blocks", "prunable_weights", "two_of_four", "unstructured"]
