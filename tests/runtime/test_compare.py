"""Parity against fp64: what passes, and what fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from capture import capture
from capture.errors import ModelError
from models import bert, resnet
from runtime.compare import Parity, compare, judge_results, reference_scale
from runtime.tolerances import tolerance

FLOOR = tolerance(torch.float32).floor


def verdict(y: Any, e: Any, r: Any = None, **settings: Any) -> Parity:
    """Of one output: ours, eager's, and the reference's (eager's in fp64 by default)."""
    if r is None and isinstance(e, Tensor):
        r = e.double() if e.is_floating_point() else e
    return judge_results([y], [e], [r], **settings)


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


# -- floating outputs ---------------------------------------------------------------------------------------


def test_the_model_is_as_right_as_itself() -> None:
    model = Affine().eval()
    parity = compare(model, model, (torch.randn(4, 16),))
    assert parity
    assert parity.reference == "fp64 model"
    assert parity.error_vs_fp64 == parity.eager_error_vs_fp64 > 0
    assert parity.max_abs_error == parity.relative_error == 0
    assert parity.integers_exact is None


def test_another_order_of_summation_passes() -> None:
    model, x = Affine().eval(), torch.randn(4, 16)

    def reordered(x: Tensor) -> Tensor:
        columns = torch.randperm(16)
        return torch.relu(x[:, columns] @ model.linear.weight[:, columns].T + model.linear.bias)

    parity = compare(model, reordered, (x,))
    assert parity.ok
    assert 0 < parity.max_abs_error < 1e-5


def test_a_lost_bias_fails_and_the_place_is_named() -> None:
    model = Affine().eval()
    parity = compare(model, lambda x: torch.relu(x @ model.linear.weight.T), (torch.randn(4, 16),))
    assert not parity
    assert "out: error vs fp64" in parity.reason
    assert "worst at [" in parity.reason


def test_a_lost_cast_fails() -> None:
    """Computed in bfloat16 and cast back: no more than a rounding, but a coarser one than eager's."""
    model = Affine().eval()
    parity = compare(model, lambda x: model(x).bfloat16().float(), (torch.randn(4, 16),))
    assert not parity.ok
    assert parity.error_vs_fp64 > 100 * parity.eager_error_vs_fp64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_judged_by_its_own_rounding(dtype: torch.dtype) -> None:
    model, x = Affine().eval().to(dtype), torch.randn(4, 16, dtype=dtype)
    assert compare(model, lambda x: model.float()(x.float()).to(dtype), (x,)).ok
    model.to(dtype)
    assert not compare(model, lambda x: model(x) * 1.2, (x,)).ok


@given(
    error=st.floats(1e-9, 1e-3), own=st.floats(1e-9, 1e-3), scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e20])
)
def test_the_limit_is_twice_eagers_error_or_the_floor(error: float, own: float, scale: float) -> None:
    """Errors of known size at every scale, in fp64 so that nothing else rounds."""
    r = torch.tensor([0.5, -1.0, 0.25, 0.0], dtype=torch.float64) * scale
    step = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64) * scale
    parity = verdict(r + error * step, r + own * step, r)
    limit = max(2 * own, tolerance(torch.float64).floor)
    if abs(error / limit - 1) > 1e-6:
        assert parity.ok == (error < limit)
    assert parity.error_vs_fp64 == pytest.approx(error, rel=1e-5)
    assert parity.eager_error_vs_fp64 == pytest.approx(own, rel=1e-5)


def test_a_fill_value_does_not_hide_an_error() -> None:
    e = torch.tensor([[0.5, -1e9, -1e9], [0.25, 1.0, -1e9]])
    y = e.clone()
    y[1, 0] += 1e-3
    parity = verdict(y, e)
    assert not parity.ok
    assert "worst at [1, 0]" in parity.reason


def test_scale_of_the_reference() -> None:
    assert reference_scale(torch.tensor([1.0, -3.0]), torch.float32) == 3.0
    assert reference_scale(torch.tensor([1.0, -9.0, -9.0]), torch.float32) == 1.0
    assert reference_scale(torch.tensor([2.0, 2.0]), torch.float32) == 2.0
    assert reference_scale(torch.zeros(3), torch.float32) == 1.0


def test_nan_never_passes() -> None:
    e = torch.ones(2, 3)
    y = e.clone()
    y[1, 2] = float("nan")
    parity = verdict(y, e)
    assert not parity.ok
    assert parity.reason == "out: NaN in 1 of 6 elements, first at [1, 2]"
    assert verdict(y, y).reason.endswith("eager has it too")
    assert not verdict(y, y, atol=1.0, rtol=1.0).ok


def test_an_infinity_passes_where_eager_has_the_same() -> None:
    e = torch.tensor([float("inf"), 1.0, float("-inf")])
    assert verdict(e.clone(), e).ok
    assert "infinite at [0], where eager has -inf" in verdict(e, -e).reason
    assert "infinite at [0], where eager has 1" in verdict(e, torch.ones(3)).reason


def test_an_overflow_of_half_precision_passes_where_eager_overflows() -> None:
    e = torch.tensor([float("inf"), 1.0], dtype=torch.float16)
    assert verdict(e, e, torch.tensor([1e6, 1.0], dtype=torch.float64)).ok


def test_tolerances_of_ones_own() -> None:
    e = torch.tensor([1.0, 2.0])
    y = e + 1e-3
    assert not verdict(y, e).ok
    assert verdict(y, e, atol=2e-3).ok
    assert verdict(y, e, rtol=2e-3).ok
    parity = verdict(y, e, atol=1e-4, rtol=1e-4)
    assert "2 of 2 elements beyond atol=0.0001, rtol=0.0001" in parity.reason


def test_empty_outputs_pass() -> None:
    assert verdict(torch.empty(0, 3), torch.empty(0, 3)).ok
    assert judge_results([], [], []).ok


def test_complex_outputs() -> None:
    e = torch.randn(5, dtype=torch.complex64)
    assert verdict(e, e, e.to(torch.complex128)).ok
    assert not verdict(e.conj().resolve_conj(), e, e.to(torch.complex128)).ok


# -- outputs that are exact, and what is not alike at all ----------------------------------------------------


def test_integers_are_exact() -> None:
    e = torch.arange(6).reshape(2, 3)
    y = e.clone()
    y[1, 0] += 1
    assert verdict(e.clone(), e).integers_exact is True
    parity = verdict(y, e)
    assert parity.integers_exact is False
    assert parity.reason == "out: 1 of 6 differ, first at [1, 0]: 4, eager 3"
    assert not verdict(e > 3, e > 2).ok


@pytest.mark.parametrize(
    ("y", "reason"),
    [
        (torch.ones(2), "is f32[2], eager's is f32[3]"),
        (torch.ones(3).double(), "is f64[3], eager's is f32[3]"),
        (1.0, "is float, eager's is f32[3]"),
    ],
)
def test_another_type_fails(y: Any, reason: str) -> None:
    assert verdict(y, torch.ones(3)).reason == f"out: {reason}"


def test_another_structure_fails() -> None:
    model = Affine().eval()
    parity = compare(model, lambda x: (model(x), model(x)), (torch.randn(2, 16),))
    assert "another structure" in parity.reason
    assert judge_results([1], [1, 2], None).reason == "out: returns 1 values, eager 2"


def test_names_of_outputs_follow_the_structure() -> None:
    def model(x: Tensor) -> dict[str, Any]:
        return {"logits": x * 2, "hidden": [x, x + 1]}

    parity = compare(model, model, (torch.randn(3),))
    assert [row.name for row in parity.outputs] == ["out['logits']", "out['hidden'][0]", "out['hidden'][1]"]


def test_python_values_are_compared() -> None:
    assert verdict(3, 3).ok
    assert verdict(None, None).ok
    assert not verdict(3, 4).ok
    assert not verdict(True, 1).ok
    assert verdict(0.1 + 0.2, 0.3).ok
    assert "cannot be compared" in verdict(object(), object()).reason


class Cache:
    """A class that is no pytree, and holds itself."""

    def __init__(self, keys: Tensor) -> None:
        self.layers = [{"keys": keys}]
        self.dtype = keys.dtype
        self.itself = self


def test_objects_are_looked_into() -> None:
    def model(x: Tensor) -> tuple[Tensor, Cache]:
        return x * 2, Cache(x + 1)

    x = torch.randn(3)
    parity = compare(model, model, (x,))
    assert parity.ok
    assert "out[1].layers[0]['keys']" in [row.name for row in parity.outputs]
    wrong = compare(model, lambda x: (x * 2, Cache(x + 2)), (x,))
    assert {row.name for row in wrong.outputs if not row.ok} == {"out[1].layers[0]['keys']"}
    assert "another structure" in compare(model, lambda x: (x * 2, {"keys": x + 1}), (x,)).reason


def test_graphs_and_exported_programs_are_models_too() -> None:
    model, x = Affine().eval(), torch.randn(2, 16)
    graph = capture(model, (x,))
    assert compare(graph, model, (x,)).reference == "fp64 graph"
    program = torch.export.export(model, (x,))
    assert compare(program, graph, (x,)).reference == "fp64 model"


def test_the_models_own_error_is_shown_with_its_line() -> None:
    with pytest.raises(ModelError, match="the model raised on these inputs") as caught:
        compare(Affine(), Affine(), (torch.randn(4, 5),))
    assert "test_compare.py" in caught.value.where
    assert "self.linear(x)" in caught.value.where
    assert caught.value.why.startswith("RuntimeError: mat1 and mat2")


@pytest.mark.parametrize("module", [resnet, bert])
def test_an_error_in_one_layer_is_seen_at_the_end(module: Any) -> None:
    model, broken = module.small(), module.small()
    inputs = module.example_inputs(1, "small")
    assert compare(model, broken, inputs).ok
    weight = next(p for p in broken.parameters() if p.ndim > 1)
    with torch.no_grad():
        weight *= 1.001
    assert not compare(model, broken, inputs).ok


def test_the_verdict_is_plain_data() -> None:
    data = verdict(torch.ones(2), torch.ones(2)).to_dict()
    assert data["ok"] is True
    assert data["outputs"][0]["type"] == "f32[2]"
    assert data["limit"] == FLOOR


def test_a_verdict_prints_as_one_line() -> None:
    x = torch.ones(2)
    right = judge_results([x], [x], [x.double()])
    assert repr(right) == "<Parity ok: error vs fp64 ours 0.0e+00, eager 0.0e+00, at most 1.9e-06>"
    wrong = judge_results([torch.tensor([1, 2])], [torch.tensor([1, 3])], None)
    assert repr(wrong) == "<Parity FAILED: integers differ; out: 1 of 2 differ, first at [1]: 2, eager 3>"
