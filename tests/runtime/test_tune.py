"""Tuning keeps what is faster within the budget, and undoes and lists the rest. Times are by a table."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import runtime
from capture.errors import CaptureError, UsageError
from models import digits
from passes.quantize import QuantConfig
from runtime.engine_times import EngineTime
from runtime.tune import select, tune
from runtime.tuned import Configuration, Trial, pareto
from tests.passes.quantize.nets import Residual, images, seeded
from tests.runtime.clocks import Clock


@cache
def small():
    return seeded(Residual), images(3)


def closeness(fn):
    """1 - the largest difference from the float model, on batches twice as large as it was captured for."""
    model, _ = small()
    (x,) = images(1, seed=5, batch=4)[0]
    with torch.no_grad():
        return 1 - float((fn(x) - model(x)).abs().max())


def test_int8_is_chosen_where_it_is_faster_and_the_layer_that_is_not_goes_back():
    model, samples = small()
    result = tune(model, samples, max_drop=0.5, metric=closeness, ratios=(), timer=Clock(head=3.0))
    assert result.chosen.name == "int8, 4 of 5 layers"
    assert result.configuration.quantize.layers["head"] == "float"
    assert result.chosen.undone[0].what == "head"
    assert result.chosen.undone[0].reason.startswith("no faster:")
    assert result.met
    assert not result.proxy
    assert result.score_before - 0.5 <= result.score_after < 1
    assert result.score_after == closeness(runtime_pieces(result))
    assert result.speedup == pytest.approx(result.baseline.ms / result.chosen.ms)
    kernels = [n.impl.kernel for n in result.compiled.graph.nodes if n.impl is not None]
    assert kernels.count("onednn.qconv") == 4


def runtime_pieces(f):
    """`f`, captured for two images, on four."""
    return lambda x: torch.cat([f(part) for part in x.split(2)])


def test_the_same_times_give_the_same_answer():
    model, samples = small()
    first, second = (
        tune(model, samples, max_drop=0.1, metric=closeness, ratios=(0.25,), timer=Clock()) for _ in range(2)
    )
    assert first.to_dict() == second.to_dict()


def test_the_layers_that_cost_most_stay_float_under_a_tight_budget():
    model, samples = small()
    loose = tune(model, samples, max_drop=0.5, metric=closeness, ratios=(), timer=Clock())
    tight = loose.chosen.drop * 0.6
    result = tune(model, samples, max_drop=tight, metric=closeness, ratios=(), timer=Clock())
    assert 0 < result.chosen.drop <= tight
    chosen = [name for name, scheme in result.configuration.quantize.layers.items() if scheme == "int8"]
    assert 0 < len(chosen) < 5
    left = {u.what for u in result.chosen.undone if "more than the budget" in u.reason}
    assert left == {row.layer for row in result.layers} - set(chosen)


def test_a_budget_that_nothing_meets_gives_float_and_the_closest():
    model, samples = small()
    result = tune(model, samples, max_drop=0, metric=closeness, ratios=(0.5,), timer=Clock())
    assert not result.met
    assert result.chosen.name == "float"
    assert result.configuration == Configuration()
    assert result.closest.name.startswith("int8")
    assert result.closest.drop > 0
    assert [u.what for u in result.undone] == [t.name for t in result.trials[2:]]
    assert all("more than 0.00%" in u.reason for u in result.undone)
    torch.testing.assert_close(result(*samples[0]), model(*samples[0]))


def test_what_is_no_faster_is_undone_as_a_whole():
    model, samples = small()
    result = tune(model, samples, max_drop=1, metric=closeness, ratios=(), timer=Clock(rate=1.5))
    assert result.met
    assert result.chosen.name == "float"
    assert {u.reason for u in result.undone} == {"no faster than float"}


def test_of_equally_fast_candidates_the_one_that_loses_least_wins():
    model, samples = small()

    def even(engines, args):
        """Pruning makes int8 faster by less than the noise."""
        return {
            name: EngineTime({"eager": 9, "float": 8}.get(name, 4 - 0.01 * ("50%" in name)))
            for name in engines
        }

    result = tune(model, samples, max_drop=9, metric=closeness, ratios=(0.5,), timer=even)
    assert result.chosen.name == "int8, 5 of 5 layers"
    reasons = {u.what: u.reason for u in result.undone}
    assert reasons["channels 50%"] == "loses more than int8, 5 of 5 layers, which is as fast"


def test_eager_is_kept_where_it_is_fastest():
    model, samples = small()
    result = tune(model, samples, max_drop=1, metric=closeness, ratios=(), timer=Clock(eager=1e-3))
    assert result.chosen.name == "eager"
    assert result.compiled.backend == "eager"
    assert result.speedup == 1


def test_without_a_metric_agreement_stands_in_and_says_so():
    model, samples = small()
    result = tune(model, samples, ratios=(), timer=Clock())
    assert result.proxy
    assert result.score_name == "top-1 agreement with the float model"
    assert result.score_before == 1
    assert result.to_dict()["score"]["proxy"] is True


def test_pruned_and_tuned_again_is_smaller_and_combines_with_int8():
    model, samples = small()
    seen = []

    def again(graph):
        seen.append(graph)
        batches = [(s, model(*s).detach()) for s in samples] * 10
        return runtime.finetune(graph, batches, F.mse_loss, rate=1e-3)

    result = tune(
        model, samples, max_drop=9, metric=closeness, ratios=(0.25, 0.5), finetune=again, timer=Clock()
    )
    trials = {trial.name: trial for trial in result.trials}
    assert len(seen) == 2
    half, quarter, whole = (trials[name] for name in ("channels 50%", "channels 25%", "float"))
    assert half.parameters < quarter.parameters < whole.parameters
    assert half.flops < quarter.flops < whole.flops
    assert result.chosen.name == "channels 50% + int8, 5 of 5 layers"
    assert result.configuration.prune.sparsity == 0.5
    assert result(*samples[0]).shape == (2, 5)


def test_a_graph_is_tuned_without_eager():
    from capture import capture

    model, samples = small()
    result = tune(capture(model, samples[0]), samples, max_drop=1, metric=closeness, ratios=(), timer=Clock())
    assert [t.name for t in result.trials] == ["float", "int8, 5 of 5 layers"]
    assert result.baseline.name == "float"


def test_a_model_without_layers_stays_float():
    result = tune(nn.Softmax(-1), [(torch.randn(2, 4),)], timer=Clock(eager=1.0))
    assert [t.name for t in result.trials] == ["eager", "float"]
    assert result.layers == ()
    assert result.closest is None
    assert not result.met


def test_digits_keep_their_accuracy_in_int8():
    result = tune(
        digits.build(), digits.calibration_data(), metric=digits.evaluate, ratios=(0.5,), timer=Clock()
    )
    assert result.chosen.name == "int8, 9 of 9 layers"
    assert result.score_before > 0.97
    assert digits.evaluate(runtime_in_batches(result)) >= result.score_before - 0.01
    pruned = next(t for t in result.trials if t.name == "channels 50%")
    assert pruned.reason.startswith("loses ")


def runtime_in_batches(f):
    """All held-out images, the last piece filled up."""

    def call(x):
        filled = torch.cat([x, x[: -len(x) % digits.BATCH]])
        return torch.cat([f(part) for part in filled.split(digits.BATCH)])[: len(x)]

    return call


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_drop": -0.1}, "max_drop is -0.1"),
        ({"max_drop": float("nan")}, "max_drop is nan"),
        ({"max_drop": "1%"}, "max_drop is '1%'"),
        ({"data": []}, "the calibration data is empty"),
        ({"data": [(torch.zeros(2, 3, 8, 8),)]}, "the calibration data is constant"),
        ({"data": [(torch.full((2, 3, 8, 8), float("nan")),)]}, "holds NaN"),
        ({"data": [*images(1), *images(1, size=6)]}, "calibration sample 2"),
        ({"ratios": (1.5,)}, "a sparsity of 1.5 is out of range"),
        ({"config": QuantConfig(layers={"haed": "float"})}, "names an unknown layer 'haed'"),
    ],
)
def test_bad_input_is_told(changed, said):
    model, samples = small()
    given = {"data": samples, "ratios": (), "timer": Clock(), **changed}
    with pytest.raises(UsageError, match=said):
        tune(model, given.pop("data"), **given)


@pytest.mark.parametrize("given", [None, float("nan"), "good"])
def test_a_metric_that_gives_no_number_is_told(given):
    model, samples = small()
    with pytest.raises(CaptureError, match="the metric gave"):
        tune(model, samples, metric=lambda fn: given, timer=Clock())


def test_select_takes_the_longest_head_and_refines_it():
    costs = {"a": 1, "b": 1, "c": 9, "d": 1, "e": 1, "f": 2}

    def fits(layers):
        return sum(costs[name] for name in layers) <= 5

    assert select("ab", fits) == ["a", "b"]
    assert select("abcdef", fits) == ["a", "b", "d", "e"]
    assert select("c", fits) == []
    assert select("cab", fits) == ["a", "b"]
    assert select("", fits) == []


def test_the_pareto_front_holds_what_nothing_beats_in_both():
    def trial(name, ms, drop):
        return Trial(name, Configuration(), 1 - drop, drop, True, ms=ms)

    slow, fast, worse, middle = trial("s", 4, 0), trial("f", 1, 0.5), trial("w", 2, 0.6), trial("m", 3, 0.1)
    assert pareto([slow, fast, worse, middle]) == [fast, middle, slow]
