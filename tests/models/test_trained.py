"""The trained models have learnt, learn the same each time, and can be judged."""

from __future__ import annotations

import pytest
import torch

from capture import capture
from capture.loading import load
from models import digits, text


def test_the_cnn_reads_digits():
    assert digits.evaluate(digits.build()) > 0.97


def test_held_out_images_are_not_trained_on():
    seen = {tuple(image.flatten().tolist()) for image in digits.training()[0]}
    images, labels = digits.held_out()
    assert sum(tuple(image.flatten().tolist()) in seen for image in images) == 0
    assert images.shape == (360, 1, 8, 8)
    assert set(labels.tolist()) == set(range(10))


def test_a_guess_is_judged_as_one():
    assert digits.evaluate(lambda x: torch.zeros(len(x), 10)) == pytest.approx(0.1, abs=0.03)
    assert text.perplexity(lambda ids: torch.zeros(*ids.shape, 256)) == pytest.approx(256, rel=1e-4)
    assert text.evaluate(lambda ids: torch.zeros(*ids.shape, 256)) == pytest.approx(1 / 256, rel=1e-4)


def test_each_build_is_its_own_and_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    first, second = digits.build(), digits.build()
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        first.head.weight.zero_()
    assert second.head.weight.abs().sum() > 0
    assert not second.training


def test_training_again_gives_the_same_weights():
    first = digits.build().state_dict()
    digits._weights.cache_clear()
    for name, tensor in digits.build().state_dict().items():
        assert torch.equal(tensor, first[name]), name


def test_it_is_loaded_with_its_data_and_its_measure():
    loaded = load("models.digits", batch=3)
    assert loaded.args[0].shape == (3, 1, 8, 8)
    assert [tuple(x.shape) for (x,) in loaded.calibration_data()] == [(64, 1, 8, 8)] * 4
    graph = capture(loaded.module, loaded.args)
    with torch.no_grad():
        torch.testing.assert_close(graph.run(*loaded.args), loaded.module(*loaded.args))


@pytest.mark.slow
def test_the_vit_reads_digits():
    assert digits.evaluate(digits.vit()) > 0.96


@pytest.mark.slow
def test_the_gpt_has_learnt_to_spell():
    assert text.perplexity(text.build()) < 6
    assert [tuple(ids.shape) for (ids,) in text.calibration_data()] == [(16, 64)] * 4
    assert text.example_inputs(3)[0].shape == (3, 64)
