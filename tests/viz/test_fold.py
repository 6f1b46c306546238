"""Which blocks are drawn once, and which must not be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import viz
from capture import Graph, capture
from tests.handmade import parse
from tests.viz.svgs import Picture, node_names, texts_of, tooltip


def picture(module: nn.Module, *args: Tensor) -> Picture:
    graph = capture(module.eval(), args)
    found = Picture(viz.svg(graph))
    inputs = {f"%{v.name}" for v in graph.inputs}
    assert sorted(set(found.names) - inputs) == sorted(node_names(graph))
    return found


class Block(nn.Module):
    def __init__(self, width: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.act = activation()
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(x)))


def test_numbered_blocks_are_drawn_once() -> None:
    found = picture(nn.Sequential(nn.Linear(3, 8), *(Block(8) for _ in range(5))), torch.ones(2, 3))
    assert found.badges == ["× 5"]
    assert found.headings == ["1–5"]
    assert sorted(found.titles) == sorted(["input", "linear", "linear", "relu", "linear", "add", "result"])
    up = next(box for box in found.boxes if texts_of(box)[:2] == ["linear", "up"])
    assert "× 5: 1.up, 2.up, 3.up, 4.up, 5.up" in tooltip(up)


def test_links_into_and_out_of_a_folded_block() -> None:
    found = picture(nn.Sequential(nn.Linear(3, 8), *(Block(8) for _ in range(4))), torch.ones(2, 3))
    key = {" ".join(texts_of(box)[:2]): box.get("data-k") for box in found.boxes}
    ends = {(link.get("data-f"), link.get("data-t")) for link in found.links}
    first, up, add = key["linear 0"], key["linear up"], key["add"]
    assert {(first, up), (first, add), (add, key["result"])} <= ends
    assert (add, up) not in ends  # from one round to the next


@pytest.mark.parametrize(
    "blocks",
    [
        [Block(8), Block(8, nn.GELU), Block(8, nn.Tanh)],
        [nn.Sequential(Block(4 * 2), nn.Linear(8, 12)), Block(12)],
    ],
)
def test_unlike_blocks_are_not_folded(blocks: list[nn.Module]) -> None:
    assert picture(nn.Sequential(*blocks), torch.ones(2, 8)).badges == []


def test_blocks_that_take_turns_are_folded_in_pairs() -> None:
    blocks = [Block(8, nn.ReLU if i % 2 else nn.GELU) for i in range(6)]
    found = picture(nn.Sequential(*blocks), torch.ones(2, 8))
    assert found.badges == ["× 3"]
    assert found.headings[0] == "0–5"
    assert {"gelu", "relu"} <= set(found.titles)


def test_a_module_that_is_called_again_is_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Block(8)
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(4):
                x = self.norm(self.layer(x))
            return x

    found = picture(Shared(), torch.ones(2, 8))
    assert found.badges == ["× 4"]
    assert found.titles.count("layer_norm") == 1


def test_equal_branches_stay_apart() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (Block(8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) * self.k(x) * self.v(x)

    found = picture(Branches(), torch.ones(2, 8))
    assert found.badges == []
    assert found.titles.count("relu") == 3


def test_experts_side_by_side_are_said_to_be() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(Block(8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([expert(x) for expert in self.experts])

    assert picture(Experts(), torch.ones(2, 8)).badges == ["× 4 in parallel"]


def test_a_repeat_inside_a_repeat() -> None:
    stages = [nn.Sequential(Block(8), Block(8), Block(8), nn.LayerNorm(8)) for _ in range(3)]
    found = picture(nn.Sequential(*stages), torch.ones(2, 8))
    assert sorted(found.badges) == ["× 3", "× 3"]
    assert found.titles.count("relu") == 1


def test_chained_nodes_without_modules_are_folded() -> None:
    lines = ["graph(%x: f32[4, 4])"]
    for i in range(6):
        source = "%x" if i == 0 else f"%{3 * i - 1}"
        lines.append(f"  %{3 * i}: f32[4, 4] = aten.relu({source})")
        lines.append(f"  %{3 * i + 1}: f32[4, 4] = aten.exp(%{3 * i})")
        lines.append(f"  %{3 * i + 2}: f32[4, 4] = aten.mul.Tensor(%{3 * i + 1}, {source})")
    found = Picture(viz.svg(Graph.parse("\n".join([*lines, "  return %17", ""]))))
    assert found.badges == ["× 6"]
    assert found.titles == ["x", "relu", "exp", "mul", "result"]


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        grown = torch.cat([cache, self.lin(x)])
        return x + grown.mean(0), grown


def test_inputs_and_results_of_each_round_share_a_box() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Cached() for _ in range(3))

        def forward(self, x: Tensor, caches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            kept = []
            for layer, cache in zip(self.layers, caches, strict=True):
                x, grown = layer(x, cache)
                kept.append(grown)
            return x, kept

    graph = capture(Decoder().eval(), (torch.ones(2, 8), [torch.ones(4, 8) for _ in range(3)]))
    found = Picture(viz.svg(graph))
    assert found.badges == ["× 3", "× 3", "× 3"]  # the block, its caches, what they become
    assert len([t for t in found.titles if t.startswith("result")]) == 2


def test_a_constant_named_after_one_block_does_not_part_it_from_its_like() -> None:
    blocks = []
    for i in range(3):
        source = "%x" if i == 0 else f"%{2 * i - 1}"
        blocks.append(f"  %{2 * i}: f32[4] = aten.add.Tensor({source}, @block.2.bias)  # block.{i}.a")
        blocks.append(f"  %{2 * i + 1}: f32[4] = aten.relu(%{2 * i})  # block.{i}.b")
    text = "\n".join(["graph(%x: f32[4])", "  @block.2.bias: f32[4]", *blocks, "  return %5", ""])
    assert Picture(viz.svg(Graph.parse(text))).badges == ["× 3"]


def test_differing_literals_are_not_folded() -> None:
    lines = [f"  %{i}: f32[4] = aten.mul.Scalar(%{i - 1}, {i}.0)  # block.{i}.m" for i in range(1, 9)]
    text = "\n".join(["graph(%x: f32[4])", "  %0: f32[4] = aten.relu(%x)", *lines, "  return %8", ""])
    assert Picture(viz.svg(parse(text))).badges == []
