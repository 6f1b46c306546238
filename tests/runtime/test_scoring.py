"""Scores: a metric fed in pieces, or agreement with the float model."""

from __future__ import annotations

import pytest
import torch

from capture.errors import UsageError
from runtime.scoring import Scorer, in_pieces


def strict(size):
    """A function of two rows at a time and of a table, as a captured graph is."""

    def call(x, table):
        assert len(x) == size
        return {"y": x * 2 + table.sum(), "z": x.sum(1)}

    return call


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_any_number_of_rows_comes_back_whole(count):
    table = torch.ones(3)
    x = torch.arange(4.0 * count).reshape(count, 4)
    got = in_pieces(strict(2), (torch.zeros(2, 4), table))(x, table)
    assert torch.equal(got["y"], x * 2 + 3)
    assert torch.equal(got["z"], x.sum(1))


def test_results_that_share_memory_are_kept_apart():
    buffer = torch.zeros(2, 1)
    got = in_pieces(lambda x: buffer.copy_(x), (torch.zeros(2, 1),))(torch.arange(4.0).reshape(4, 1))
    assert got.flatten().tolist() == [0, 1, 2, 3]


def test_a_result_without_rows_is_told():
    with pytest.raises(UsageError, match="gives 4 rows, the model was captured for 2"):
        in_pieces(torch.mean, (torch.zeros(2, 3),))(torch.zeros(4, 3))


def test_unlike_numbers_of_rows_are_told():
    with pytest.raises(UsageError, match="unlike batch sizes"):
        in_pieces(torch.add, (torch.zeros(2, 3), torch.zeros(2, 3)))(torch.zeros(4, 3), torch.zeros(6, 3))


def test_what_fits_or_cannot_be_split_is_passed_on():
    seen = []
    f = in_pieces(lambda *args: seen.append([tuple(a.shape) for a in args]), (torch.zeros(2, 3),))
    f(torch.zeros(2, 3))
    f(torch.zeros(4, 5))
    f(torch.zeros(4, 3), torch.zeros(1))
    assert seen == [[(2, 3)], [(4, 5)], [(4, 3), (1,)]]


def test_agreement_stands_in():
    samples = [(torch.tensor([[1.0, 2.0], [4.0, 3.0]]),), (torch.tensor([[5.0, 6.0], [7.0, 8.0]]),)]
    scorer = Scorer.of(lambda x: x, samples, samples[0], None)
    assert scorer(lambda x: x + 0.1) == 1
    assert scorer(lambda x: -x) == 0
    assert scorer(lambda x: x.flip(1) if x[0, 0] > 4 else x) == 0.5


def test_images_are_judged_by_their_error():
    samples = [(torch.ones(1, 2, 3, 3),)]
    scorer = Scorer.of(lambda x: x, samples, samples[0], None)
    assert scorer.name == "1 - relative L2 error against the float model"
    assert scorer(lambda x: x * 0.75) == pytest.approx(0.75)
    assert scorer(lambda x: x * float("nan")) == -float("inf")
