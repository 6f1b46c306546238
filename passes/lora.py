"""Attach low-rank adapters to linear layers, and merge them back.

    %0 = linear(%x, @w, @b)    ==>    %0 = linear(%x, @w, @b)
                                      %1 = linear(%x, @w.lora_a)          [rank, in]
                                      %2 = linear(%1, @w.lora_b)          [out, rank], zeros at first
                                      %3 = add(%0, %2, alpha=scale)

The base stays as it is while the adapters are trained: `runtime.finetune(graph, ..., names=adapters(graph))`.
`merge_lora` adds scale * B @ A to the weight, in fp64, and takes the adapters out again. Hu et al., "LoRA:
Low-Rank Adaptation of Large Language Models" (2021).

Does not fire on weights that the graph computes, writes or has not bound, or that are no matrices.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from capture.errors import UsageError
from capture.ir import Constant, Graph, Node
from passes.base import check_graph
from passes.queries import fixed_tensor

aten = torch.ops.aten
_A, _B = ".lora_a", ".lora_b"


def lora(
    graph: Graph, *, rank: int = 8, alpha: float = 16.0, names: Iterable[str] | None = None, seed: int = 0
) -> Graph:
    """A copy of the graph with an adapter beside each linear layer; it computes what it did.

    Args:
        rank: of each adapter.
        alpha: adapters are scaled by alpha / rank.
        names: weights to adapt, or prefixes of their names; all, where not given.
        seed: of the random A's, which are Kaiming-uniform; B's are zeros.

    Raises:
        UsageError: the rank is not positive, a name fits no linear layer, or there are adapters already.
    """
    check_graph(graph, "lora")
    if rank < 1:
        raise UsageError(f"an adapter of rank {rank}", hint="rank=8")
    if adapters(graph):
        raise UsageError("the graph has adapters already", hint="passes.merge_lora(graph) first")
    work = graph.clone()
    layers = [n for n in work.find(aten.linear.default) if _is_matrix(work, n)]
    wanted = None if names is None else tuple(names)
    for name in wanted or ():
        if not any(_fits(n.operands[1].name, (name,)) for n in layers):
            known = ", ".join(dict.fromkeys(n.operands[1].name for n in layers))
            raise UsageError(f"no linear layer has the weight {name!r}", hint=f"one of {known}")
    generator = torch.Generator().manual_seed(seed)
    made: dict[Constant, tuple[Constant, Constant]] = {}
    for node in layers:
        weight = node.operands[1]
        if wanted is None or _fits(weight.name, wanted):
            if weight not in made:
                made[weight] = _constants(work, weight, rank, generator)
            _attach(work, node, *made[weight], alpha / rank)
    return work


def adapters(graph: Graph) -> list[str]:
    """Names of the adapters' constants, in the graph's order."""
    return [name for name in graph.constants if name.endswith((_A, _B))]


def merge_lora(graph: Graph) -> Graph:
    """A copy of the graph with its adapters added to the weights, and none left.

    A weight that several layers share is merged once.
    """
    work = graph.clone()
    done: set[Constant] = set()
    for node in list(work.find(aten.add.Tensor)):
        found = _adapter(node)
        if found is None:
            continue
        base, down, up = found
        weight, scale = base.operands[1], float(node.arg("alpha"))
        if weight not in done:
            done.add(weight)
            change = up.operands[1].tensor.detach().double() @ down.operands[1].tensor.detach().double()
            tensor = weight.tensor.detach()
            weight.tensor = (tensor.double() + scale * change).to(tensor.dtype)
        work.replace_node(node, [base.result])
        for dead in (up, down):
            work.erase(dead)
    for name in adapters(work):
        if not work.constants[name].num_uses:
            work.erase_constant(name)
    work.version += 1
    return work


def _adapter(node: Node) -> tuple[Node, Node, Node] | None:
    """(base, A, B) of a sum that `lora` has made."""
    producers = [getattr(v, "producer", None) for v in node.operands[:2]]
    if any(p is None or not p.is_op(aten.linear.default) for p in producers):
        return None
    base, up = producers
    down = up.operands[0].producer
    if not isinstance(up.operands[1], Constant) or not up.operands[1].name.endswith(_B) or down is None:
        return None
    return base, down, up


def _constants(
    graph: Graph, weight: Constant, rank: int, generator: torch.Generator
) -> tuple[Constant, Constant]:
    assert weight.tensor is not None
    out, inner = weight.tensor.shape
    like = {"dtype": weight.tensor.dtype, "device": weight.tensor.device}
    bound = (3.0 / inner) ** 0.5  # Kaiming: variance 1 / in
    down = (torch.rand(rank, inner, generator=generator) * 2 - 1) * bound
    return graph.add_constant(weight.name + _A, down.to(**like)), graph.add_constant(
        weight.name + _B, torch.zeros(out, rank, **like)
    )


def _attach(graph: Graph, node: Node, a: Constant, b: Constant, scale: float) -> None:
    down = graph.add_node(aten.linear.default, [node.operands[0], a], origin=node.origin, after=node)
    up = graph.add_node(aten.linear.default, [down.result, b], origin=node.origin, after=down)
    total = graph.add_node(
        aten.add.Tensor, [node.result, up.result], {"alpha": scale}, origin=node.origin, after=up
    )
    graph.replace_uses(node.result, total.result)
    total.set_operands([node.result, up.result], {"alpha": scale})


def _is_matrix(graph: Graph, node: Node) -> bool:
    tensor = fixed_tensor(graph, node.operands[1])
    return tensor is not None and tensor.dim() == 2 and tensor.is_floating_point()


def _fits(weight: str, names: Iterable[str]) -> bool:
    return any(weight == name or weight.startswith(name + ".") for name in names)


__all__ = ["adapters", "lora", "merge_lora"]
