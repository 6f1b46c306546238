"""Train a graph's weights for a while: what a pruned or quantised model gets its accuracy back by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from capture.errors import CaptureError, UsageError
from capture.ir import Constant, Graph, Trait, has
from capture.ir.convert import call_with
from capture.ir.interpreter import flatten_inputs
from passes.base import check_graph
from passes.queries import fixed_tensor, packet_name

Loss = Callable[[Any, Any], torch.Tensor]


def finetune(
    graph: Graph,
    batches: Iterable[tuple[Sequence[Any], Any]],
    loss: Loss,
    *,
    names: Iterable[str] | None = None,
    rate: float = 1e-3,
    keep_zeros: bool = False,
) -> Graph:
    """A copy of the graph whose weights were trained on each batch once, with AdamW and a cosine decay.

    Trained are the floating constants that linear layers, convolutions, norms and embeddings take as weights
    and biases. Statistics of norms, masks of attention and what elementwise operators read stay as they are;
    a constant matrix that a product takes counts as a weight, and `names` leaves it out.

    Args:
        batches: (tuple of positional inputs, target) for each step; read once.
        loss: (what the graph returns, target) to a scalar.
        names: of the constants to train, in place of all those (`passes.adapters(graph)`, say).
        rate: the learning rate at the start.
        keep_zeros: elements that are zero stay zero, so that a sparse weight stays sparse.

    Raises:
        UsageError: a name that no trainable constant has, no batches, or a loss that is no scalar.
        CaptureError: there is nothing to train, or the loss or a weight became NaN or infinite.
    """
    check_graph(graph, "finetune")
    work = graph.clone()
    chosen = _choose(trainable(work), names)
    steps = list(batches)
    if not steps:
        raise UsageError("there are no batches to train on", hint="a list: a generator can be read only once")
    module = work.to_fx()
    leaves = {name: _tensor(work.constants[name]).detach().clone().requires_grad_() for name in chosen}
    masks = {name: leaf != 0 for name, leaf in leaves.items() if keep_zeros}
    optimizer = torch.optim.AdamW(leaves.values(), lr=rate, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, len(steps)))
    with torch.enable_grad():
        for number, (inputs, target) in enumerate(steps):
            optimizer.zero_grad()
            flat = flatten_inputs(work, tuple(inputs), {})
            value = loss(_shaped(work, call_with(module, work, leaves, flat)), target)
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                raise UsageError("the loss has to be a tensor of one element", hint="loss(...).mean()")
            if not bool(torch.isfinite(value)):
                raise CaptureError(f"the loss is {value.item()} at step {number}", hint="a lower rate")
            value.backward()
            optimizer.step()
            decay.step()
            with torch.no_grad():
                for name, mask in masks.items():
                    leaves[name].mul_(mask)
    for name, leaf in leaves.items():
        if bool((torch.isfinite(_tensor(work.constants[name])) & ~torch.isfinite(leaf)).any()):
            raise CaptureError(f"the weight {name} became NaN or infinite", hint="a lower rate")
        work.constants[name].tensor = leaf.detach()
    work.version += 1
    return work


def _choose(known: list[str], names: Iterable[str] | None) -> list[str]:
    if not known:
        raise CaptureError("the graph has no weights to train", hint="graph.bind(state_dict)")
    chosen = known if names is None else list(names)
    for name in chosen:
        if name not in known:
            raise UsageError(f"{name!r} is no weight to train", hint="one of " + ", ".join(known[:20]))
    return chosen


def trainable(graph: Graph) -> list[str]:
    """Names of the constants that are weights or biases of layers, in the graph's order."""
    found: set[str] = set()
    for node in graph.nodes:
        if not (
            has(node.op, Trait.MATMUL | Trait.CONV | Trait.NORM) or packet_name(node.op) == "aten.embedding"
        ):
            continue
        fixed = {id(_arg(node, name)) for name in ("running_mean", "running_var", "attn_mask")}
        for value in node.operand_values:
            tensor = fixed_tensor(graph, value)
            if tensor is not None and tensor.is_floating_point() and id(value) not in fixed:
                found.add(value.name)
    return [name for name in graph.constants if name in found]


def _arg(node: Any, name: str) -> Any:
    return node.arg(name) if any(a.name == name for a in node.op._schema.arguments) else None


def _tensor(constant: Constant) -> torch.Tensor:
    assert constant.tensor is not None  # or it would not be trainable
    return constant.tensor


def _shaped(graph: Graph, results: Sequence[Any]) -> Any:
    """Flat results as the model returns them."""
    if graph.out_spec is None:
        return results[0] if len(results) == 1 else tuple(results)
    return pytree.tree_unflatten(list(results), graph.out_spec)


__all__ = ["finetune", "trainable"]
