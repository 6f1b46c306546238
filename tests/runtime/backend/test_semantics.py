"""What a program may notice: shared memory of results, guards, gradients, what falls back and how loudly."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import runtime


def compiled(function: Any, **settings: Any) -> Any:
    return torch.compile(function, backend="capture", **settings)


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.WARNING, logger="capture.backend")
    return lambda: [r.message for r in caplog.records if r.name == "capture.backend"]


@torch.no_grad()
def test_a_result_that_is_a_view_of_an_input_stays_one() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x[1:].transpose(0, 1)

    f = compiled(forward, dynamic=True)
    for rows in (3, 5):
        x = torch.randn(rows, 4)
        y = f(x)
        assert y._is_view()
        y.fill_(7)
        assert (x[1:] == 7).all()
        assert not (x[0] == 7).any()


@torch.no_grad()
def test_results_that_share_memory_do_so_after_a_graph_break() -> None:
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.relu(x) + 1
        first, turned = y[0], y.t()
        torch._dynamo.graph_break()
        first.mul_(10)
        return y, first, turned, turned[1:]

    f = compiled(forward)
    for rows in (3, 4, 6):
        x = torch.randn(rows, 4)
        for found, expected in zip(f(x), forward(x), strict=True):
            torch.testing.assert_close(found, expected)
            assert found.stride() == expected.stride()


@torch.no_grad()
def test_results_that_are_apart_stay_apart() -> None:
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x * 1, x + 1, x + 1, x.clone()

    x = torch.zeros(4)
    results = compiled(forward)(x)
    for result in results:
        result.add_(5)
    assert [r[0].item() for r in results] == [5, 6, 6, 5]
    assert x[0] == 0


@torch.no_grad()
def test_an_input_that_is_written_to_and_overlaps_another(warnings_of: Any) -> None:
    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return y * 2

    f = compiled(forward)
    apart = torch.zeros(4), torch.zeros(4)
    torch.testing.assert_close(f(*apart), torch.zeros(4))
    assert apart[0][0] == 1
    whole = torch.zeros(6)
    torch.testing.assert_close(f(whole[:4], whole[2:]), torch.tensor([2.0, 2, 0, 0]))
    assert any("shares memory" in event for g in runtime.explain(f).graphs for event in g.events)


@torch.no_grad()
def test_a_weight_that_is_written_to_through_a_view() -> None:
    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))
            self.register_buffer("row", self.weight.data[0])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.row.add_(1)
            return F.linear(x, self.weight)

    model, twin = Writer(), Writer()
    f = compiled(model)
    x = torch.randn(2, 4)
    for _ in range(3):
        torch.testing.assert_close(f(x), twin(x))
    torch.testing.assert_close(model.weight, twin.weight)


def test_an_input_that_is_no_tensor_is_a_guard() -> None:
    def forward(x: torch.Tensor, scale: float, name: str, where: dict[str, int]) -> torch.Tensor:
        return x * scale + where["k"] if name == "add" else x * scale - where["k"]

    f = compiled(forward)
    x = torch.randn(3)
    for given in (
        (2.0, "add", {"k": 1}),
        (3.5, "add", {"k": 1}),
        (4.5, "sub", {"k": 2}),
        (2.0, "add", {"k": 9}),
    ):
        torch.testing.assert_close(f(x, *given), forward(x, *given))


def test_dtype_and_strides_are_guards() -> None:
    f = compiled(lambda x: torch.relu(x).sum(0) + x.contiguous()[0])
    base = torch.randn(4, 6)
    for x in (base, base.double(), base.t(), base[:, ::2], base[1:], base.new_empty(0, 3).new_zeros(1, 3)):
        torch.testing.assert_close(f(x), torch.relu(x).sum(0) + x[0])


def test_the_training_flag_is_a_guard() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval()
    f = compiled(model)
    x = torch.ones(64, 4)
    with torch.no_grad():
        torch.testing.assert_close(f(x), model(x))
        model.train()
        assert (f(x) == 0).any()
        model.eval()
        torch.testing.assert_close(f(x), model(x))


def test_grad_mode_is_a_guard() -> None:
    model = nn.Linear(4, 4)
    f = compiled(model)
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert not f(x).requires_grad
    y = f(x)
    y.sum().backward()
    torch.testing.assert_close(model.weight.grad, x.sum(0).expand(4, 4))
    model.zero_grad()
    with torch.inference_mode():
        assert f(x).is_inference()
    with torch.no_grad():
        assert not f(x).is_inference()
    f(x).sum().backward()
    torch.testing.assert_close(model.weight.grad, x.sum(0).expand(4, 4))


def test_requires_grad_of_an_input_is_a_guard() -> None:
    f = compiled(lambda x: (x * 2).sum())
    plain, leaf = torch.randn(3), torch.randn(3, requires_grad=True)
    assert not f(plain).requires_grad
    f(leaf).backward()
    torch.testing.assert_close(leaf.grad, torch.full((3,), 2.0))
    assert not f(plain).requires_grad
    assert "inference" in [g.runs for g in runtime.explain(f).graphs]


def test_a_graph_with_gradients_off_inside_is_for_inference() -> None:
    model = nn.Linear(4, 4)

    @torch.no_grad()
    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(model(x))

    f = compiled(forward)
    x = torch.randn(2, 4)
    result = f(x)
    torch.testing.assert_close(result, forward(x))
    assert not result.requires_grad


@torch.no_grad()
def test_autocast_is_a_guard() -> None:
    model = nn.Linear(4, 4)
    f = compiled(model)
    x = torch.randn(2, 4)
    torch.testing.assert_close(f(x), model(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert f(x).dtype == torch.bfloat16
        torch.testing.assert_close(f(x), model(x))
    assert f(x).dtype == torch.float32

    def inside(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    g = compiled(inside)
    assert g(x).dtype == torch.bfloat16


@torch.no_grad()
def test_transforms_of_torch_func() -> None:
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        each = torch.func.vmap(lambda row: (row * row).sum())
        return each(x), torch.func.grad(lambda y: each(y).sum())(x)

    f = compiled(forward)
    x = torch.randn(3, 4)
    torch.testing.assert_close(f(x), forward(x))
    (graph,) = runtime.explain(f).graphs
    assert (graph.runs, graph.fell_back) == ("inference", "")
    assert any("torch.func" in event for event in graph.events)


@torch.no_grad()
def test_what_cannot_be_taken_runs_in_eager_with_one_warning(warnings_of: Any) -> None:
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x * 2
        return y, torch.view_as_real(y)  # one memory, read in two ways

    f = compiled(forward)
    for size in (3, 4, 5):
        x = torch.randn(size, dtype=torch.complex64)
        for found, expected in zip(f(x), forward(x), strict=True):
            torch.testing.assert_close(found, expected)
    found = runtime.explain(f)
    assert len(found.fallbacks) == len(found.graphs) == 2
    assert found.graphs[0].runs == "eager"
    (message,) = warnings_of()
    assert "runs in eager: a result is another reading of the memory of a tensor" in message
    assert "test_semantics.py" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"levle": 2}}, "there is no option 'levle'\ntry: level"),
        ({"options": {"level": 7}}, "the option 'level' cannot be 7"),
        ({"options": {"level": True}}, "the option 'level' cannot be True"),
        ({"options": {"backend": "tensorrt"}}, "the option 'backend' cannot be 'tensorrt'"),
        ({"options": {"disable": ["fuze"]}}, "fuze"),
        ({"options": {"disable": "fuse"}}, "the option 'disable' cannot be 'fuse'"),
        ({"options": {"threads": 0}}, "the option 'threads' cannot be 0"),
        ({"options": {"freeze": 1}}, "the option 'freeze' cannot be 1"),
        ({"mode": "fast"}, "there is no mode 'fast'"),
    ],
)
def test_a_wrong_option_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        compiled(lambda x: x + 1, **settings)(torch.ones(2))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"options": {"level": 0}},
        {"options": {"level": 3, "disable": ["fuse"]}},
        {"options": {"passes": ["eliminate-dead-code"]}},
        {"options": {"backend": "onnx", "threads": 1}},
        {"options": {"backend": "eager"}},
        {"mode": "default"},
        {"mode": "reduce-overhead"},
    ],
    ids=str,
)
@torch.no_grad()
def test_options(settings: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    f = compiled(model, **settings)
    x = torch.randn(3, 4)
    torch.testing.assert_close(f(x), model(x))
    (graph,) = runtime.explain(f).graphs
    assert graph.backend == settings.get("options", {}).get("backend", "aten")
    assert not graph.fell_back


@torch.no_grad()
def test_max_autotune_measures_and_keeps_the_fastest() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    f = compiled(model, mode="max-autotune")
    x = torch.randn(3, 4)
    torch.testing.assert_close(f(x), model(x))
    model[0].weight.mul_(2)
    torch.testing.assert_close(f(x), model(x))
    (graph,) = runtime.explain(f).graphs
    assert graph.backend in ("aten", "onnx", "triton", "eager")
