"""Terms of axes: what views and concatenations make of one index, against what torch does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from capture import capture
from passes.pruning.axes import (
    PRODUCT,
    SUM,
    Axes,
    Axis,
    bind,
    coordinates,
    fix,
    indices,
    new_size,
    unify,
    unify_products,
)
from passes.pruning.channels import cut
from passes.pruning.rules import apply_rule


def test_a_product_takes_a_leaf_apart():
    width, heads, size = Axis(12), Axis(3), Axis(4)
    unify_products([width], [heads, size])
    kept = {heads.root: torch.tensor([0, 2])}
    assert indices(width, kept).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert indices(width, {size.root: torch.tensor([1])}).tolist() == [1, 5, 9]
    assert new_size(width, kept) == 8


def test_products_meet_in_the_factors_that_they_share():
    left, right = [Axis(6), Axis(4)], [Axis(2), Axis(12)]
    unify_products(left, right)
    assert [leaf.size for leaf in left[0].leaves] == [2, 3]
    assert [leaf.size for leaf in right[1].leaves] == [3, 4]
    assert next(iter(left[0].leaves)) is right[0].root


def test_sizes_without_a_common_factor_stay():
    left, right = [Axis(6), Axis(4)], [Axis(4), Axis(6)]
    unify_products(left, right)
    assert all(leaf.fixed for axis in (*left, *right) for leaf in axis.leaves)


def test_what_is_fixed_anywhere_is_fixed_everywhere():
    a, b, c = Axis(12), Axis(12), Axis(12)
    unify(a, b)
    fix(c, "a result")
    unify(b, c)
    assert next(iter(a.leaves)).fixed == "a result"
    whole = Axis(12)
    unify(whole, a)
    unify_products([whole], [Axis(3), Axis(4)])
    assert {leaf.fixed for leaf in a.leaves} == {"a result"}


def test_a_sum_says_where_each_part_lies():
    whole, left, right = Axis(5), Axis(2), Axis(3)
    bind(whole, SUM, [left, right])
    kept = {left.root: torch.tensor([1]), right.root: torch.tensor([0, 2])}
    assert indices(whole, kept).tolist() == [1, 2, 4]
    assert coordinates(whole, right).tolist() == [-1, -1, 0, 1, 2]


def test_sums_of_other_parts_do_not_fit():
    a, b = Axis(5), Axis(5)
    bind(a, SUM, [Axis(2), Axis(3)])
    bind(b, SUM, [Axis(3), Axis(2)])
    unify(a, b)
    assert all(leaf.fixed for axis in (a, b) for leaf in axis.leaves)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_coordinates_and_indices_agree(sizes, data):
    parts = [Axis(size) for size in sizes]
    whole = Axis(torch.Size(sizes).numel())
    bind(whole, PRODUCT, parts)
    chosen = data.draw(st.sampled_from(parts))
    stay = torch.tensor(sorted(data.draw(st.sets(st.integers(0, chosen.size - 1), min_size=1))))
    owner = coordinates(whole, chosen)
    expected = [i for i, own in enumerate(owner.tolist()) if own in stay.tolist()]
    assert indices(whole, {chosen: stay}).tolist() == expected


class Moves(nn.Module):
    """A weight, moved about."""

    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(2.0 * 12 * 6).view(2, 12, 6))
        self.other = nn.Parameter(torch.arange(2.0 * 4 * 6).view(2, 4, 6))
        self.function = function

    def forward(self, x):
        return self.function(self.weight, self.other) * x


MOVES = {
    "view": lambda w, o: w.view(2, 3, 4, 6),
    "merge": lambda w, o: w.permute(1, 0, 2).reshape(12, 12),
    "heads": lambda w, o: w.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2),
    "cat": lambda w, o: torch.cat([w, o, w * 2], dim=1),
    "cat_view": lambda w, o: torch.cat([w, o], dim=1).flatten(1),
    "split": lambda w, o: torch.split(w, [5, 7], dim=1)[1] + 1,
    "chunk": lambda w, o: torch.chunk(w, 3, dim=1)[1] * 2,
    "expand": lambda w, o: w.unsqueeze(1).expand(2, 5, 12, 6),
    "squeeze": lambda w, o: w.unsqueeze(2).squeeze(2).mT,
    "unbind": lambda w, o: w.unflatten(1, (3, 4)).unbind(1)[2],
    "pad": lambda w, o: torch.nn.functional.pad(w, (1, 2)),
    "slice": lambda w, o: w[:, :, 1:4],
    "softmax": lambda w, o: w.softmax(0),
    "mean": lambda w, o: w.mean(2, keepdim=True),
    "sum": lambda w, o: w.sum(0),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_cut_gives_what_is_left_of_the_result(name):
    graph = capture(Moves(MOVES[name]).eval(), (torch.ones(()),))
    whole = graph.run(torch.ones(()))
    axes = Axes(graph)
    for node in graph.nodes:
        apply_rule(node, axes)
    free = [leaf for axis in axes.of(graph.constants["weight"]) for leaf in axis.leaves if not leaf.fixed]
    assert free
    kept = {leaf: torch.arange(0, leaf.size, 2) for leaf in dict.fromkeys(free)}
    stay = [indices(axis, kept) for axis in axes.of(graph.results[0])]
    cut(graph, axes, kept)
    graph.verify()
    for dim, index in enumerate(stay):
        whole = whole if index is None else whole.index_select(dim, index)
    torch.testing.assert_close(graph.run(torch.ones(())), whole)
