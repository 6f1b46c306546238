"""The ladder: which front end is taken, what is said of those that failed, and what is refused."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.export import Dim

from capture import CaptureError, capture
from capture.errors import ModelError, UsageError
from tests.capture.cases import (
    Bounded,
    Broken,
    Opaque,
    Repeated,
    Router,
    Sniffing,
    Stash,
    ToNumPy,
    check_against_eager,
    line_of,
    repeat,
)

X = torch.ones(6, 4)


def message_of(model: nn.Module, **options: object) -> str:
    with pytest.raises(CaptureError) as caught:
        capture(model, (X,), **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_the_first_step_that_works_is_taken() -> None:
    graph = capture(nn.Linear(4, 2), (X,))
    assert graph.frontend == "torch.export (non-strict)"
    assert graph.attempts == [("torch.export (non-strict)", "taken")]


def test_a_later_step_says_why_the_earlier_ones_failed() -> None:
    model = ToNumPy()
    graph = capture(model, (X,))
    check_against_eager(graph, model, (X,))
    assert graph.frontend == "torch.export (strict)"
    (first, reason), (second, outcome) = graph.attempts
    assert (first, second, outcome) == ("torch.export (non-strict)", "torch.export (strict)", "taken")
    assert line_of(ToNumPy, "x.numpy()") in reason
    assert "numpy" in reason


def test_control_flow_on_data_names_the_line_and_the_way_out() -> None:
    text = message_of(Router())
    lines = text.splitlines()
    assert lines[0] == "control flow depends on the data"
    assert lines[1].endswith(f"{line_of(Router, 'if scores')}   if scores.max() > self.threshold:")
    assert "cannot follow a Python `if` on a tensor's value" in text
    assert "torch.fx: same line" in text
    assert "dispatch tracing: would freeze what the example input gives" in text
    assert lines[-1].startswith("try: torch.where(scores.max() > self.threshold, a, b), or torch.cond(")


@pytest.mark.parametrize("frontend", ["export", "fx", "dispatch"])
def test_no_front_end_freezes_a_branch(frontend: str) -> None:
    text = message_of(Router(), frontend=frontend)
    assert text.startswith("control flow depends on the data")
    assert line_of(Router, "if scores") in text


def test_a_number_read_out_of_a_tensor_names_the_line_in_the_helper() -> None:
    text = message_of(Repeated())
    assert text.startswith("control flow depends on the data")
    assert f"{line_of(repeat, 'int(x.sum())')}   count = int(x.sum())" in text  # type: ignore[arg-type]
    assert "torch._check" in text


def test_a_failing_model_is_shown_as_its_own_error() -> None:
    with pytest.raises(ModelError) as caught:
        capture(Broken(), (X,))
    text = str(caught.value)
    assert text.startswith("the model raises on the given input")
    assert line_of(Broken, "torch.ones(7, 2)") in text
    assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied (6x4 and 7x2)" in text
    assert "float32[6, 4]" in text


def test_missing_arguments_are_the_models_own_error_too() -> None:
    with pytest.raises(ModelError, match="missing 1 required positional argument"):
        capture(nn.Bilinear(4, 4, 2), (X,))


@pytest.mark.parametrize("frontend", ["auto", "dispatch"])
def test_a_size_that_the_code_bounds_names_the_line(frontend: str) -> None:
    text = message_of(Bounded(), frontend=frontend, dynamic_shapes=({0: Dim("batch", min=2, max=64)},))
    assert text.startswith("the size batch cannot vary as asked")
    assert f"{line_of(Bounded, 'if x.shape')}   if x.shape[0] > 16:" in text
    assert "batch <= 16" in text


def test_the_remedy_for_a_bounded_size_is_torchs_own() -> None:
    text = message_of(Bounded(), dynamic_shapes=({0: Dim("batch", min=2, max=64)},))
    assert text.endswith("try: batch = Dim('batch', max=16)")


@pytest.mark.parametrize("frontend", ["auto", "export", "fx", "dispatch"])
def test_state_in_a_plain_attribute_is_refused(frontend: str) -> None:
    model = Stash()
    text = message_of(model, frontend=frontend)
    assert text.startswith("the model keeps a tensor from one call to the next")
    assert "register_buffer" in text
    assert torch.equal(model.last, torch.zeros(4))


def test_symbolic_tracing_that_went_another_way_is_refused() -> None:
    assert "traced something else" in message_of(Sniffing(), frontend="fx")
    check_against_eager(capture(Sniffing(), (X,)), Sniffing(), (X,))


def test_an_object_among_the_results_is_refused() -> None:
    text = message_of(Opaque())
    assert text.startswith("the model cannot be captured")
    assert "dispatch tracing: the model returns an object of the class Plain" in text
    assert "register_dataclass" in text


def test_an_operator_without_a_fake_kernel() -> None:
    @torch.library.custom_op("capture_tests::opaque", mutates_args=())
    def opaque(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    text = message_of(lambda x: opaque(x) + 1)  # type: ignore[arg-type]
    assert "no fake impl" in text
    assert text.endswith("register_fake('capture_tests::opaque')")


def test_failed_attempts_are_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    message_of(Router())
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_what_the_model_prints_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    def talkative(x: torch.Tensor) -> torch.Tensor:
        print("here", file=sys.stderr)
        return x + 1

    capture(talkative, (X,))
    assert "here" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("args", "options", "what"),
    [
        (X, {}, "args is a Tensor"),
        ((X,), {"frontend": "jit"}, "there is no front end 'jit'"),
        ((X,), {"dynamic_shapes": {"y": {0: Dim("n")}}}, "the model has no input 'y'"),
        ((X,), {"dynamic_shapes": {"input": {5: Dim("n")}}}, "input has 2 axes; 5 is none of them"),
        ((X,), {"dynamic_shapes": {"input": {0: "n"}}}, "is no torch.export.Dim"),
    ],
)
def test_a_wrong_call_is_a_usage_error(args: object, options: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        capture(nn.Linear(4, 2), args, **options)  # type: ignore[arg-type]


def test_neither_a_module_nor_a_function() -> None:
    with pytest.raises(UsageError, match="the model is a int"):
        capture(3, (X,))  # type: ignore[arg-type]


def test_a_scripted_module_is_refused() -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit.trace"):
        scripted = torch.jit.trace(nn.Linear(4, 2), X)
    with pytest.raises(UsageError, match="TorchScript"):
        capture(scripted, (X,))


class Counting(nn.Module):
    """Counts its calls; `used` says whether the count decides anything."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.calls = 0
        self.used = used

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls if self.used else x * 2


@pytest.mark.parametrize("frontend", ["auto", "export", "fx", "dispatch"])
def test_a_number_that_grows_with_each_call_is_refused_where_it_matters(frontend: str) -> None:
    model = Counting(used=True)
    text = message_of(model, frontend=frontend)
    assert text.startswith("the model keeps a number from one call to the next")
    assert "attribute calls" in text
    assert model.calls == 0
    check_against_eager(capture(Counting(used=False), (X,), frontend=frontend), Counting(used=False), (X,))
