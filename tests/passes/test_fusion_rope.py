"""Rotary positions in their common spellings are one region on a GPU; look-alikes are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import passes
import viz
from capture import Graph, capture
from capture.ir import Fusion
from codegen import onnx, python
from models import llama
from passes.fuse import Fuse
from runtime.executables import bound_constants, load_module
from tests.handmade import kinds
from tests.passes.rulebook.found import Spelled

Function = Callable[..., Any]
GPU = Fuse(target="gpu")
B, H, T, D = 2, 3, 5, 8


def rotated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def sliced(x: Tensor) -> Tensor:
    middle = x.shape[-1] // 2
    return torch.cat((-x[..., middle:], x[..., :middle]), dim=-1)


def pairs(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def by_complex(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    numbers = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    angles = torch.complex(cos[:, : D // 2].float(), sin[:, : D // 2].float())
    return torch.view_as_real(numbers * angles).flatten(3).type_as(x)


def in_two_parts(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, : D // 2], sin[:, : D // 2]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def in_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, ::2], sin[:, ::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(3)


def partial(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = torch.cat([x, x], -1)
    turned, rest = x[..., :D], x[..., D:]
    return torch.cat([turned * cos + sliced(turned) * sin, rest], -1)


SPELLINGS: dict[str, Function] = {
    "halves": lambda x, cos, sin: x * cos + rotated(x) * sin,
    "halves by slices, tables broadcast": lambda x, cos, sin: x * cos[None] + sliced(x) * sin[None],
    "the other way round": lambda x, cos, sin: sin * rotated(x) + cos * x,
    "pairs": lambda x, cos, sin: x * cos + pairs(x) * sin,
    "complex": by_complex,
    "two halves": in_two_parts,
    "two of each pair": in_pairs,
    "widened": lambda x, cos, sin: (x.float() * cos + rotated(x.float()) * sin).to(x.dtype),
    "a part of the features": partial,
}  # fmt: skip


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Heads [B, H, T, D] as a projection gives them: transposed; and tables [T, D]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, T, H, D, generator=generator).transpose(1, 2)
    angles = torch.randn(T, D // 2, generator=generator).repeat(1, 2)
    return x.to(dtype), angles.cos().to(dtype), angles.sin().to(dtype)


def fused(function: Function, *args: Tensor, fuse: Fuse = GPU, **options: Any) -> Graph:
    graph = capture(Spelled(function), args, **options)
    return passes.optimize(graph, passes=[*passes.PIPELINES[1], fuse, "memory"], verify=True)


def ropes(graph: Graph) -> int:
    return sum(node.op == Fusion("rope") for node in graph.nodes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_is_one_region(name: str, dtype: torch.dtype) -> None:
    args = operands(dtype)
    after = fused(SPELLINGS[name], *args)
    assert ropes(after) == 1
    outside = {"slice", "unsqueeze", "complex", "cat", "_to_copy", "permute"}  # what makes tables and operand
    assert {k for k in kinds(after) if "fusion" not in k} <= outside
    want = SPELLINGS[name](*args)
    torch.testing.assert_close(after.run(*args), want, rtol=0, atol=0)
    assert str(Graph.parse(str(after))) == str(after)
    code = load_module(python.emit(after), "test")
    code.load(bound_constants(after))
    before = [t.clone() for t in args]
    torch.testing.assert_close(code.forward(*args)[0], want, rtol=0, atol=0)
    torch.testing.assert_close(list(args), before, rtol=0, atol=0)


def other_sign(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([second, -first], -1)


def in_order(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-first, second], -1)


def doubled(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, : D // 2], sin[:, : D // 2]
    return torch.cat((a * cos - b * sin, b * sin + a * cos), -1)


LOOK_ALIKES: dict[str, Function] = {
    "the other half is negative": lambda x, cos, sin: x * cos + other_sign(x) * sin,
    "halves in their order": lambda x, cos, sin: x * cos + in_order(x) * sin,
    "parts that differ in size": lambda x, cos, sin: x * cos + torch.cat([-x[..., 2:], x[..., :2]], -1) * sin,
    "of two tensors": lambda x, cos, sin: x * cos + rotated(x + 1) * sin,
    "subtracted": lambda x, cos, sin: x * cos - rotated(x) * sin,
    "each table for one half": doubled,
    "halves between each other": lambda x, cos, sin: (
        x * cos + torch.stack((-x[..., D // 2 :], x[..., : D // 2]), -1).flatten(-2) * sin
    ),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_a_look_alike_is_not(name: str) -> None:
    args = operands()
    after = fused(LOOK_ALIKES[name], *args)
    assert ropes(after) == 0
    torch.testing.assert_close(after.run(*args), LOOK_ALIKES[name](*args), rtol=0, atol=0)


def test_what_is_used_elsewhere_stays_out() -> None:
    def function(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        turned = rotated(x)
        return x * cos + turned * sin, turned

    assert ropes(fused(function, *operands())) == 0


def test_on_a_cpu_none_is_formed() -> None:
    """Its temporaries would be the same, but no longer in the arena."""
    assert ropes(fused(SPELLINGS["halves"], *operands(), fuse=Fuse(target="cpu"))) == 0


def test_a_region_is_bounded() -> None:
    assert ropes(fused(SPELLINGS["halves"], *operands(), fuse=Fuse(target="gpu", max_ops=5))) == 0


def test_any_number_of_tokens() -> None:
    args = operands()
    tokens = torch.export.Dim("tokens", min=1, max=64)
    sizes = ({2: tokens}, {0: tokens}, {0: tokens})
    after = fused(SPELLINGS["halves"], *args, dynamic_shapes=(sizes,))
    assert ropes(after) == 1
    for count in (1, 2, 7):
        x, cos, sin = torch.randn(B, H, count, D), torch.randn(count, D), torch.randn(count, D)
        torch.testing.assert_close(after.run(x, cos, sin), SPELLINGS["halves"](x, cos, sin))


def decoder() -> Graph:
    """A Llama with fewer heads of keys than of queries, fused for a GPU."""
    graph = capture(llama.small().eval(), llama.example_inputs(factory="small"))
    return passes.optimize(graph, passes=[*passes.PIPELINES[1], "merge-linear", GPU, "schedule", "memory"])


def test_queries_and_keys_of_a_decoder_are_found() -> None:
    after = decoder()
    heads = [node.result.tensor_type.shape[1] for node in after.nodes if node.op == Fusion("rope")]
    assert heads == [4, 2, 4, 2]
    assert after.history[-3].stats["rope"] == 4
    told = {row.reason for row in passes.ledger(after) if "fusion.rope" in row.reason}
    assert any(reason.startswith("into fusion.rope, which saves ") for reason in told)
    (ids,) = llama.example_inputs(factory="small")
    want = llama.small().eval()(ids)
    torch.testing.assert_close(after.run(ids), want, rtol=1e-4, atol=1e-4)


def test_a_decoder_with_them_is_drawn_and_exported(tmp_path: Path) -> None:
    import onnxruntime

    after = decoder()
    assert "rope" in viz.svg(after)
    onnx.export(after, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (ids,) = llama.example_inputs(factory="small")
    (got,) = session.run(None, {"input_ids": ids.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), after.run(ids), rtol=1e-4, atol=1e-4)
