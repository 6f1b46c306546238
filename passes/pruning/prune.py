"""Take weights out of a graph: whole channels, heads and neurons, or single elements.

    %0 = linear(%x, @up[3072, 768])           %0 = linear(%x, @up[2150, 768])
    %1 = gelu(%0)                      ==>    %1 = gelu(%0)                          (channels, 0.3)
    %2 = linear(%1, @down[768, 3072])         %2 = linear(%1, @down[768, 2150])

`channels` removes them physically. What must go together is found by following each axis through the graph:
residuals, concatenations, grouped convolutions, norms, attention heads. So shapes fit afterwards, and every
type is inferred anew. The other methods put zeros where weights were and leave shapes as they are:
`magnitude` single elements, `2:4` two of each four neighbours, `block` square blocks. No CPU kernel that
this project calls skips zeros, so these three make nothing faster there.

Does not touch inputs and results of the graph, what an operator reads by position, axes of dynamic size, or
weights that are written or not bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from capture.errors import UsageError
from capture.ir import Graph
from passes.base import Pass, PassResult, check_graph
from passes.manager import run_pass
from passes.pruning import scores
from passes.pruning import sparsity as zeros
from passes.pruning.axes import Axes
from passes.pruning.channels import Group, cut, dependency_groups

METHODS = ("channels", "magnitude", "2:4", "block")
IMPORTANCE = ("magnitude", "taylor", "activation")


def _square(results: Sequence[Any]) -> torch.Tensor:
    return sum((r.float().square().mean() for r in results if r.is_floating_point()), torch.zeros(()))


@dataclass(frozen=True)
class PruneConfig:
    """How to prune.

    Attributes:
        exclude: names of weights (or of their modules, as prefixes) that stay.
        ratios: another sparsity for some, by the same names.
        importance: of channels: magnitude, taylor or activation; the latter two need `calibration`.
        calibration: tuples of positional inputs.
        loss: for taylor: the flat results to a scalar; without one, the mean of their squares.
        multiple: channels are left in multiples of this, rounded up.
        block: the size of a block.
    """

    exclude: tuple[str, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    importance: str = "magnitude"
    calibration: Sequence[Sequence[Any]] = ()
    loss: scores.Loss = _square
    multiple: int = 1
    block: int = 16


def prune(graph: Graph, *, method: str, sparsity: float, config: PruneConfig | None = None) -> Graph:
    """A copy of the graph without the least important of its weights.

    Args:
        method: channels, magnitude, 2:4 or block.
        sparsity: the share that goes, 0 to below 1; for 2:4 always a half.

    Returns:
        A new graph; its `history` tells what went.

    Raises:
        UsageError: an unknown method or importance, a sparsity out of range, a name in the configuration that
            no weight has, or no calibration data where they are needed.
    """
    check_graph(graph, "prune")
    work = graph.clone()
    run_pass(work, Prune(method, sparsity, config or PruneConfig()))
    return work


@dataclass(frozen=True)
class Prune(Pass):
    name = "prune"
    method: str = "channels"
    sparsity: float = 0.3
    config: PruneConfig = field(default_factory=PruneConfig)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(
                f"there is no pruning method {self.method!r}", hint="one of " + ", ".join(METHODS)
            )
        for share in (self.sparsity, *self.config.ratios.values()):
            if not isinstance(share, (int, float)) or not 0 <= share < 1:
                raise UsageError(f"a sparsity of {share!r} is out of range", hint="0.3 removes 30%")
        for option in ("multiple", "block"):
            if getattr(self.config, option) < 1:
                raise UsageError(f"{option} is {getattr(self.config, option)}", hint="at least 1")
        if self.config.importance not in IMPORTANCE:
            hint = "one of " + ", ".join(IMPORTANCE)
            raise UsageError(f"there is no importance {self.config.importance!r}", hint=hint)

    def run(self, graph: Graph) -> PassResult:
        before = _numel(graph)
        if self.method == "channels":
            stats = self._channels(graph)
        else:
            stats = self._zeros(graph)
        return PassResult(bool(stats), {**stats, "weights": f"{before:,} -> {_numel(graph):,}"})

    # -- channels -----------------------------------------------------------------------------------------

    def _channels(self, graph: Graph) -> dict[str, Any]:
        axes, groups = dependency_groups(graph)
        self._check_names([c.name for g in groups for c, _ in g.members])
        chosen = self._choose(groups)
        kept = {}
        for group, importance in zip(chosen, self._importance(graph, axes, chosen), strict=True):
            best = importance.argsort(descending=True, stable=True)[: self._left(group)]
            kept[group.axis] = best.sort().values
        cut(graph, axes, kept)
        return {g.name: f"{g.size} -> {len(kept[g.axis])}" for g in chosen}

    def _choose(self, groups: Sequence[Group]) -> list[Group]:
        """Those that lose channels: each dimension of a weight once, by heads rather than inside of them."""
        chosen, taken = [], set()
        for group in groups:
            names = [c.name for c, _ in group.members]
            if any(self._names(name, self.config.exclude) for name in names):
                continue
            if self._left(group) < group.size and taken.isdisjoint(group.members):
                chosen.append(group)
                taken.update(group.members)
        return chosen

    def _importance(self, graph: Graph, axes: Axes, groups: Sequence[Group]) -> list[torch.Tensor]:
        config = self.config
        if config.importance == "magnitude":
            return scores.magnitude(axes, groups)
        if not config.calibration:
            raise UsageError(
                f"importance by {config.importance} needs data", hint="PruneConfig(calibration=[(x,), ...])"
            )
        if config.importance == "taylor":
            return scores.taylor(graph, axes, groups, config.calibration, config.loss)
        return scores.activation(graph, axes, groups, config.calibration)

    def _left(self, group: Group) -> int:
        """How many channels stay: what the share leaves, rounded up, and to a multiple where asked."""
        names = [c.name for c, _ in group.members]
        ratios = [r for given, r in self.config.ratios.items() if any(self._names(n, [given]) for n in names)]
        left = group.size - math.floor(group.size * (ratios[0] if ratios else self.sparsity) + 1e-9)
        return min(group.size, -(-left // self.config.multiple) * self.config.multiple)

    # -- zeros --------------------------------------------------------------------------------------------

    def _zeros(self, graph: Graph) -> dict[str, Any]:
        weights = list(zeros.prunable_weights(graph))
        self._check_names([c.name for c in weights])
        made, odd = 0, 0
        for constant in weights:
            if self._names(constant.name, self.config.exclude):
                continue
            weight = constant.tensor.detach()
            named = [r for name, r in self.config.ratios.items() if self._names(constant.name, [name])]
            mask = self._mask(weight, named[0] if named else self.sparsity)
            if mask is None:
                odd += 1
                continue
            constant.tensor = torch.where(mask, weight, torch.zeros_like(weight))
            made += int((~mask).sum())
        graph.version += 1
        return {"zeros": made, **({"weights of another size": odd} if odd else {})} if made else {}

    def _mask(self, weight: torch.Tensor, share: float) -> torch.Tensor | None:
        if self.method == "2:4":
            return zeros.two_of_four(weight)
        if self.method == "block":
            return zeros.blocks(weight, share, self.config.block)
        return zeros.unstructured(weight, share)

    # -- names --------------------------------------------------------------------------------------------

    def _check_names(self, known: Sequence[str]) -> None:
        for name in (*self.config.exclude, *self.config.ratios):
            if not any(self._names(weight, [name]) for weight in known):
                raise UsageError(
                    f"there is no prunable weight {name!r}", hint="one of " + ", ".join(known[:20])
                )

    @staticmethod
    def _names(weight: str, given: Sequence[str]) -> bool:
        return any(weight == name or weight.startswith(name + ".") for name in given)


def _numel(graph: Graph) -> int:
    used = {v for node in graph.nodes for v in node.operand_values if v.is_constant}
    return sum(int(v.tensor_type.numel) for v in used)


__all__ = ["METHODS", "Prune", "PruneConfig", "prune"]
