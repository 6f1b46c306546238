"""Forward and backward through a model, and whether a compiled one does the same as eager and as fp64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from runtime.backend_records import GraphRecord, records_of
from runtime.compare import judge_results

Step = dict[str, Any]


def compiled(model: Any, **settings: Any) -> Any:
    return torch.compile(model, backend="capture", **settings)


def weighted_sum(y: Tensor) -> Tensor:
    """A scalar whose gradient differs from element to element."""
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum()


def step(call: Callable[..., Tensor], model: nn.Module, *inputs: Any, seed: int = 0) -> Step:
    """One call with its backward pass: the result, the gradients so far, and the buffers."""
    torch.manual_seed(seed)
    y = call(*inputs)
    weighted_sum(y).backward()
    seen: Step = {"result": y.detach().clone()}
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor) and x.requires_grad:
            seen[f"gradient of input {i}"] = copied(x.grad)
    seen |= {f"gradient of {name}": copied(p.grad) for name, p in model.named_parameters()}
    return seen | {name: b.clone() for name, b in model.named_buffers()}


def copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def in_fp64(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def fresh(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return value


def assert_alike(ours: Step, eager: Step, fp64: Step | None = None) -> None:
    """Each tensor is as near to fp64's as eager's is, within the tolerance of its dtype."""
    assert ours.keys() == eager.keys()
    verdict = judge_results(
        list(ours.values()), list(eager.values()), fp64 and list(fp64.values()), names=list(ours)
    )
    assert verdict.ok, verdict.reason


def assert_trains_alike(model: nn.Module, *inputs: Any, steps: int = 2, **settings: Any) -> None:
    """A compiled copy computes eager's results, gradients and buffers, which add up over the steps."""
    ours, eager, fp64 = model, copy.deepcopy(model), copy.deepcopy(model).double()
    given = [[fresh(x) for x in inputs], [fresh(x) for x in inputs], [in_fp64(x) for x in inputs]]
    call = compiled(ours, **settings)
    for seed in range(steps):
        seen = step(call, ours, *given[0], seed=seed)
        expected = step(eager, eager, *given[1], seed=seed)
        assert_alike(seen, expected, step(fp64, fp64, *given[2], seed=seed))
    graphs_of(call)


def graphs_of(call: Any) -> list[GraphRecord]:
    """What the backend did for a compiled model, all of which trains."""
    records = records_of(call)
    assert records
    assert {(r.runs, r.backend, r.fell_back) for r in records} == {("training", "aten", "")}
    return records
