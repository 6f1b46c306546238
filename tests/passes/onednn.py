"""What tests of lowering share: layers with an epilogue as text, and whether generated code is right."""

from __future__ import annotations

import torch

from capture import Graph
from capture.ir.interpreter import run_flat
from codegen import python
from runtime.executables import bound_constants, load_module
from tests.handmade import inputs_of

EPILOGUES = [
    ("aten.relu(%0)", 'unary="relu"'),
    ("aten.sigmoid(%0)", 'unary="sigmoid"'),
    ("aten.tanh(%0)", 'unary="tanh"'),
    ("aten.silu(%0)", 'unary="swish"'),
    ("aten.hardswish(%0)", 'unary="hardswish"'),
    ("aten.hardsigmoid(%0)", 'unary="hardsigmoid"'),
    ("aten.leaky_relu(%0)", 'unary="leaky_relu", scalars=[0.01]'),
    ("aten.leaky_relu(%0, 0.2)", 'unary="leaky_relu", scalars=[0.2]'),
    ("aten.hardtanh(%0)", 'unary="hardtanh", scalars=[-1.0, 1.0]'),
    ("aten.hardtanh(%0, 0, 6)", 'unary="hardtanh", scalars=[0.0, 6.0]'),
    ("aten.gelu(%0)", 'unary="gelu", algorithm="none"'),
    ('aten.gelu(%0, approximate="tanh")', 'unary="gelu", algorithm="tanh"'),
]
ANCHORS = {
    "conv": ("%x: f32[2, 3, 9, 9]", "f32[4, 3, 3, 3]", "aten.conv2d(%x, @w)", "f32[2, 4, 7, 7]"),
    "linear": ("%x: f32[2, 5, 3]", "f32[4, 3]", "aten.linear(%x, @w)", "f32[2, 5, 4]"),
}


def chain(anchor: str, *steps: str, other: str = "") -> str:
    """A graph: the anchor, then each step on %0, %1, ... in turn; %r is of the anchor's own type."""
    x, weight, call, made = ANCHORS[anchor]
    lines = [f"graph({x}, %r: {other or made})", f"  @w: {weight}", f"  %0: {made} = {call}"]
    lines += [f"  %{i}: {made} = {step}" for i, step in enumerate(steps, start=1)]
    return "\n".join([*lines, f"  return %{len(steps)}", ""])


def generated(graph: Graph, args: list[torch.Tensor]) -> torch.Tensor:
    """What the generated module returns."""
    module = load_module(python.emit(graph), "test")
    module.load(bound_constants(graph))
    with torch.no_grad():
        (result,) = module.forward(*args)
    return result


def assert_right(graph: Graph, after: Graph, args: list[torch.Tensor] | None = None) -> None:
    """The generated code of `after` is as near to `graph` in fp64 as its dtype lets it be; inputs stay."""
    args = inputs_of(graph) if args is None else args
    for constant in after.constants.values():  # one that is written is written once
        constant.tensor = None if constant.tensor is None else constant.tensor.clone()
    before = [a.clone() for a in args]
    got = generated(after, args)
    ((want,), _), ((own,), _) = run_flat(graph, args, dtype=torch.float64), run_flat(graph, args)
    assert (got.dtype, got.shape) == (own.dtype, own.shape)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}.get(got.dtype, 0)
    scale = max(1.0, float(want.double().abs().max())) if want.numel() else 1.0
    assert ((got.double() - want.double()).abs() <= tolerance * scale).all()
    for a, b in zip(args, before, strict=True):
        assert torch.equal(a, b)
