"""Regions of integers: what is gathered, which kernel does it, and that it computes what it should.

Kernels round what lies in the middle between two integers either way: results may be one step apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passes
import runtime
from capture import Graph, capture
from passes import quantize
from tests.handmade import kinds, parse, run
from tests.passes.quantize.nets import block, images, relative, residual, rows, seeded

Q = "quantized_decomposed.quantize_per_tensor"
D = "quantized_decomposed.dequantize_per_tensor"
W = "quantized_decomposed.dequantize_per_channel"


def check(graph: Graph, args: Sequence[Any], limit: float = 5e-3) -> runtime.compile.Compiled:
    """The generated code gives what the interpreter gives, and neither writes to its arguments."""
    before = [a.clone() for a in args]
    wanted = torch.utils._pytree.tree_leaves(graph.run(*args))
    f = runtime.compile(graph, args, backend="aten")
    for _ in range(2):
        found = torch.utils._pytree.tree_leaves(f(*args))
        for a, b in zip(found, wanted, strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            assert relative(a, b) < limit
    assert all(torch.equal(a, b) for a, b in zip(args, before, strict=True))
    return f


def test_golden() -> None:
    text = f"""
        graph(%x: u8[2, 4], %r: f32[2, 3])
          @w: i8[3, 4]
          @s: f32[3]
          %0: f32[2, 4] = {D}(%x, 0.5, 3, 0, 255, torch.uint8)
          %1: f32[3, 4] = {W}(@w, @s, None, 0, -127, 127, torch.int8)
          %2: f32[2, 3] = aten.linear(%0, %1)
          %3: f32[2, 3] = aten.add.Tensor(%2, %r)
          return %3
        """
    made = run(parse(text), ["fuse-quantized", "lower-int8"])
    assert str(made) == (
        "graph(%x: u8[2, 4], %r: f32[2, 3])\n"
        "  @w: i8[3, 4]\n"
        "  @s: f32[3]\n"
        "  %0: f32[2, 3] = fusion.qlinear(%x, @w, @s, %r)"
        ' via onednn.qlinear(unary="none", binary="add", other=3) {\n'
        "    ^(%a: u8[2, 4], %b: i8[3, 4], %c: f32[3], %d: f32[2, 3])\n"
        f"    %e: f32[2, 4] = {D}(%a, 0.5, 3, 0, 255, torch.uint8)\n"
        f"    %f: f32[3, 4] = {W}(%b, %c, None, 0, -127, 127, torch.int8)\n"
        "    %g: f32[2, 3] = aten.linear(%e, %f)\n"
        "    %h: f32[2, 3] = aten.add.Tensor(%g, %d)\n"
        "    return %h\n"
        "  }\n"
        "  return %0\n"
    )


REFUSED = {
    "weight is computed": ("%w: i8[3, 4]", "%w", "0.5, 3, 0, 255", "None, 0"),
    "range is not the whole": ("%y: i8[3, 4]", "@w", "0.5, 3, 0, 127", "None, 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_does_not_fire(case: str) -> None:
    extra, weight, grid, channel = REFUSED[case]
    constant = "@w: i8[3, 4]\n          " if weight == "@w" else ""
    text = f"""
        graph(%x: u8[2, 4], {extra})
          {constant}@s: f32[3]
          %0: f32[2, 4] = {D}(%x, {grid}, torch.uint8)
          %1: f32[3, 4] = {W}({weight}, @s, {channel}, -127, 127, torch.int8)
          %2: f32[2, 3] = aten.linear(%0, %1)
          return %2
        """
    graph = parse(text)
    made = run(graph, ["fuse-quantized"])
    assert str(made) == str(graph)
    args = [torch.randint(0, 127, (2, 4), dtype=torch.uint8), torch.randint(-127, 127, (3, 4)).to(torch.int8)]
    check(graph, args)


def test_a_round_trip_over_a_move_is_a_move() -> None:
    text = f"""
        graph(%x: u8[2, 4])
          %0: f32[2, 4] = {D}(%x, 0.5, 3, 0, 255, torch.uint8)
          %1: f32[4, 2] = aten.reshape(%0, [4, 2])
          %2: u8[4, 2] = {Q}(%1, 0.5, SPOT, 0, 255, torch.uint8)
          return %2
        """
    same, other = text.replace("SPOT", "3"), text.replace("SPOT", "4")
    assert kinds(run(parse(same), ["fuse-quantized", "eliminate-dead-code"])) == ["reshape"]
    assert len(kinds(run(parse(other), ["fuse-quantized", "eliminate-dead-code"]))) == 3


@pytest.mark.parametrize("zero_point", [0, 3, 255])
def test_lone_quantise_nodes_give_the_very_integers(zero_point: int) -> None:
    graph = parse(f"""
        graph(%x: f32[12, 6])
          %0: u8[12, 6] = {Q}(%x, 0.37, {zero_point}, 0, 255, torch.uint8)
          %1: f32[12, 6] = {D}(%0, 0.37, {zero_point}, 0, 255, torch.uint8)
          return %0, %1
        """)
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)) * 40
    x[0] = torch.tensor([1e30, -1e30, float("inf"), float("-inf"), 0.0, -0.0])
    f = runtime.compile(graph, [x], backend="aten")
    assert "quantized_decomposed" not in f.source
    for given in (x, x.t().contiguous().t(), x[:, ::2].repeat(1, 2)):
        found, back = f(given)
        wanted, wanted_back = graph.run(given)
        assert torch.equal(found, wanted)
        torch.testing.assert_close(back, wanted_back)


class Activated(nn.Module):
    def __init__(self, layer: nn.Module, function: Any) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


EPILOGUES: dict[str, tuple[Any, str]] = {
    "none": (lambda x: x, "none"),
    "relu": (torch.relu, "relu"),
    "gelu": (nn.functional.gelu, "gelu"),
    "gelu tanh": (lambda x: nn.functional.gelu(x, approximate="tanh"), "gelu"),
    "silu": (nn.functional.silu, "swish"),
    "hardswish": (nn.functional.hardswish, "hardswish"),
    "hardtanh": (lambda x: nn.functional.hardtanh(x, 0.0, 2.0), "hardtanh"),
    "sigmoid": (torch.sigmoid, ""),
}
IN_KERNEL = {
    "linear": ("none", "relu", "gelu", "gelu tanh"),
    "conv": ("none", "relu", "silu", "hardswish", "hardtanh"),
}


@pytest.mark.parametrize("kind", IN_KERNEL)
@pytest.mark.parametrize("name", EPILOGUES)
def test_activations(kind: str, name: str) -> None:
    function, unary = EPILOGUES[name]
    torch.manual_seed(0)
    layer: nn.Module = nn.Linear(16, 7) if kind == "linear" else nn.Conv2d(3, 7, 3, padding=1)
    samples = rows(2) if kind == "linear" else images(2)
    made = passes.optimize(quantize(capture(Activated(layer, function), samples[0]), samples), verify=True)
    recipe = next(n.impl for n in made.nodes if n.impl is not None and n.impl.kernel.startswith("onednn.q"))
    assert recipe.options["unary"] == (unary if name in IN_KERNEL[kind] else "none")
    check(made, samples[0])


GEOMETRY = {
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2},
    "grouped": {"groups": 3, "padding": 1},
    "wide": {"stride": (1, 2), "padding": (0, 1)},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize("case", GEOMETRY)
@pytest.mark.parametrize("size", [7, 8])
def test_convolutions(case: str, size: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, **GEOMETRY[case]), nn.ReLU(), nn.Conv2d(6, 4, 1))
    samples = images(2, size=size)
    check(quantize(capture(model, samples[0]), samples), samples[0])


class Shortcut(nn.Module):
    """A sum of a convolution and what it read; then, with `keep`, that again."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.keep = keep
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        y = (self.b(x) + x).relu()
        y = self.c(y)
        return y + x.mean() if self.keep else y


@pytest.mark.parametrize("keep", [False, True])
def test_a_sum_with_the_layers_own_input_works_on_a_copy(keep: bool) -> None:
    samples = images(2)
    f = check(quantize(capture(seeded(Shortcut, keep), samples[0]), samples), samples[0])
    assert re.search(r"v\d+\.clone\(", f.source)


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c((self.a(x) + self.b(x)).relu())


def test_a_sum_with_what_lies_in_another_format() -> None:
    torch.manual_seed(0)
    samples = [(torch.randn(2, 1, 8, 8),) for _ in range(2)]
    graph = capture(GreyShortcut().eval(), samples[0])
    check(quantize(graph, samples), samples[0])


class GreyShortcut(Shortcut):
    """One channel: contiguous and channels-last are the same to its first layer."""

    def __init__(self) -> None:
        super().__init__(keep=True)
        self.a = nn.Conv2d(1, 6, 1)


def test_a_sum_with_a_value_that_dies_is_done_in_place() -> None:
    samples = images(2)
    f = check(quantize(capture(seeded(Projected), samples[0]), samples), samples[0])
    assert "qconv_add(" in f.source
    assert not re.search(r"v\d+\.clone\(", f.source)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_levels(level: int) -> None:
    graph, samples = residual()
    made = passes.optimize(quantize(graph, samples), level)
    check(made, samples[0])


def test_no_float_copy_of_integers_is_left_inside() -> None:
    graph, samples = residual()
    source = runtime.compile(quantize(graph, samples), samples[0], backend="aten").source
    assert source.count("dequantize(v") == 1  # before the mean
    assert "quantized_decomposed" not in source


def test_non_contiguous_inputs() -> None:
    graph, samples = residual()
    made = quantize(graph, samples)
    f = runtime.compile(made, samples[0], backend="aten")
    x = samples[0][0]
    assert relative(f(x.transpose(2, 3).contiguous().transpose(2, 3)), made.run(x)) < 5e-3
    assert relative(f(x.to(memory_format=torch.channels_last)), made.run(x)) < 5e-3


def test_dynamic_batch() -> None:
    graph, _ = residual()
    batch = torch.export.Dim("batch", min=1, max=64)
    samples = images(3)
    from tests.passes.quantize.nets import Residual

    graph = capture(seeded(Residual), samples[0], dynamic_shapes=({0: batch},))
    made = quantize(graph, samples)
    f = runtime.compile(made, samples[0], backend="aten")
    for size in (1, 3, 64):
        (x,) = images(1, seed=size, batch=size)[0]
        assert relative(f(x), made.run(x)) < 5e-3


def test_against_fp64() -> None:
    graph, samples = block()
    f = runtime.compile(quantize(graph, samples), samples[0], backend="aten")
    assert relative(f(*samples[0]), graph.run(*samples[0], dtype=torch.float64)) < 0.01


def test_a_saved_graph_runs_the_same(tmp_path: Any) -> None:
    graph, samples = residual()
    made = passes.optimize(quantize(graph, samples))
    made.save(tmp_path / "q")
    loaded = Graph.load(tmp_path / "q")
    assert str(loaded) == str(made)
    check(loaded, samples[0])
