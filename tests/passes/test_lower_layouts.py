"""Recipes for convolutions and linear layers of every geometry, layout, rank and size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from capture import capture
from tests.handmade import inputs_of, kernels, parse, run
from tests.passes.onednn import ANCHORS, assert_right, chain

aten = torch.ops.aten


GEOMETRIES = [
    pytest.param(dict(in_channels=3, out_channels=5, kernel_size=3), id="plain"),
    pytest.param(dict(in_channels=3, out_channels=5, kernel_size=3, bias=False), id="no bias"),
    pytest.param(
        dict(in_channels=6, out_channels=4, kernel_size=(1, 3), stride=(2, 1), groups=2), id="groups"
    ),
    pytest.param(dict(in_channels=4, out_channels=4, kernel_size=3, padding=1, groups=4), id="depthwise"),
    pytest.param(
        dict(in_channels=4, out_channels=8, kernel_size=3, padding=(2, 0), groups=4), id="multiplier"
    ),
    pytest.param(
        dict(in_channels=2, out_channels=3, kernel_size=3, dilation=(2, 1), stride=2), id="dilation"
    ),
    pytest.param(dict(in_channels=17, out_channels=33, kernel_size=1), id="pointwise"),
    pytest.param(dict(in_channels=1, out_channels=1, kernel_size=(7, 9)), id="whole image"),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("n", [0, 1, 3])
def test_convolutions_of_every_geometry(geometry: dict, n: int) -> None:
    model = nn.Sequential(nn.Conv2d(**geometry), nn.LeakyReLU(0.3)).eval()
    x = torch.randn(max(n, 1), geometry["in_channels"], 7, 9)[:n]
    graph = capture(model, (x,))
    for passes in (["fuse", "lower"], ["layout", "fuse", "lower"]):
        after = run(graph, passes)
        assert kernels(after) == ["onednn.conv"]
        assert_right(graph, after, [x])


LAYOUTS = ["contiguous", "channels_last", "transposed", "strided", "offset", "expanded", "batch innermost"]


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The values of `x` (or of its first row, for `expanded`) in another order or spacing."""
    match layout:
        case "channels_last":
            return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()
        case "transposed":
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        case "strided":
            return torch.stack([x, -x], dim=-1)[..., 0]
        case "offset":
            return nn.functional.pad(x, (1, 2, 3, 0))[..., 3:, 1 : 1 + x.shape[-1]]
        case "expanded":
            return x[:1].expand_as(x)
        case "batch innermost":
            return x.transpose(0, -1).contiguous().transpose(0, -1)
    return x.contiguous()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("anchor", ANCHORS)
def test_inputs_and_other_operands_of_every_layout(anchor: str, layout: str) -> None:
    graph = parse(chain(anchor, "aten.add.Tensor(%0, %r)", "aten.relu(%1)"))
    after = run(graph, ["fuse", "lower"])
    x, r = inputs_of(graph)
    assert_right(graph, after, [laid_out(x, layout), r])
    assert_right(graph, after, [x, laid_out(r, layout)])


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (5, 2, 3), (2, 0, 3), (2, 1, 4, 3), (1, 2, 1, 2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_of_every_rank(shape: tuple[int, ...], bias: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 7, bias=bias), nn.GELU()).eval()
    x = torch.randn(shape)
    graph = capture(model, (x,))
    after = run(graph, ["fuse", "lower"])
    assert kernels(after) == ["onednn.linear"]
    assert_right(graph, after, [x])
