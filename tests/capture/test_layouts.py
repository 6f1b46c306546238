"""Writes that reach an input in some memory layouts only; settings of the process that a model changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import runtime
from capture import Graph, capture
from capture.errors import CaptureError, GuardError


class Writes(nn.Module):
    def __init__(self, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        self.view(x).add_(1)
        return x * 2


VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.contiguous(),
    lambda x: x.reshape(-1),
    lambda x: x.flatten(),
]
LAYOUTS = {
    "transposed": lambda: torch.randn(4, 3).t(),
    "every other": lambda: torch.randn(3, 8)[:, ::2],
    "channels": lambda: torch.randn(4, 3).t()[None],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("layout", ["transposed", "every other"])
def test_another_layout_than_captured_is_refused(view: Callable[[Tensor], Tensor], layout: str) -> None:
    graph = capture(Writes(view), (torch.randn(3, 4),))
    f = runtime.compile(graph, backend="aten")
    for call in (f, graph.run):
        x = LAYOUTS[layout]()
        before = x.clone()
        with pytest.raises(GuardError, match="x has a strided memory layout, captured contiguous"):
            call(x)
        assert torch.equal(x, before)
        x = x.contiguous()
        torch.testing.assert_close(call(x), (before + 1) * 2)
        torch.testing.assert_close(x, before + 1)


def test_dynamic_sizes_keep_to_the_layout() -> None:
    graph = capture(
        Writes(VIEWS[1]), (torch.randn(3, 4),), dynamic_shapes=({0: torch.export.Dim("N", min=2)},)
    )
    f = runtime.compile(graph, backend="aten")
    x = torch.ones(5, 4)
    f(x)
    assert torch.equal(x, torch.full((5, 4), 2.0))
    with pytest.raises(GuardError, match="captured contiguous"):
        f(torch.ones(4, 5).t())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("layout", ["transposed", "every other"])
def test_a_write_that_depends_on_the_layout_is_not_captured_elsewhere(
    view: Callable[[Tensor], Tensor], layout: str
) -> None:
    with pytest.raises(CaptureError, match="depends on how they lie in memory"):
        capture(Writes(view), (LAYOUTS[layout](),))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_write_in_place_does_not_depend_on_it(layout: str) -> None:
    example = LAYOUTS[layout]()
    f = runtime.compile(capture(Writes(lambda x: x[..., 1:]), (example,)), backend="aten")
    for x in (LAYOUTS[layout](), torch.randn(example.shape)):
        want = x.clone()
        want[..., 1:] += 1
        torch.testing.assert_close(f(x), want * 2)
        torch.testing.assert_close(x, want)


def test_layouts_of_what_is_not_written_are_free() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.contiguous().view(-1) * 2

    for example in (torch.randn(3, 4), LAYOUTS["transposed"]()):
        f = runtime.compile(Reads(), (example,), backend="aten")
        for x in (torch.randn(3, 4), LAYOUTS["transposed"](), LAYOUTS["every other"]()):
            torch.testing.assert_close(f(x), x.reshape(-1) * 2)


# -- settings of the process ------------------------------------------------------------------------------


class Sets(nn.Module):
    def __init__(self, change: Callable[[], object]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        self.change()
        return x * 2


CHANGES: dict[str, Callable[[], object]] = {
    "torch.manual_seed": lambda: torch.manual_seed(torch.initial_seed() + 1),
    "torch.set_default_dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch.set_default_device": lambda: torch.set_default_device("meta"),
    "torch.set_num_threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch.set_float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "torch.use_deterministic_algorithms": lambda: torch.use_deterministic_algorithms(True),
}


@pytest.mark.parametrize("frontend", ["auto", "export", "fx", "dispatch"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_changes_a_setting_is_refused(name: str, frontend: str) -> None:
    before = _settings()
    with pytest.raises(CaptureError, match=f"the model calls {name} in forward"):
        capture(Sets(CHANGES[name]), (torch.ones(2),), frontend=frontend)
    assert _settings() == before


def _settings() -> list[object]:
    return [
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.utils._device.CURRENT_DEVICE,  # torch.compile breaks its graphs where one is set
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    ]


def test_random_models_are_captured_and_leave_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    graph = capture(nn.Dropout(0.5).train(), (torch.ones(4),))
    assert isinstance(graph, Graph)
    assert torch.equal(torch.get_rng_state(), before)
