"""Replaying rewrites: both sides on recorded and random operands, in their own dtype and in fp64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import passes
from capture import Graph, capture
from tests.passes.golden import parse

X = torch.randn(2, 3)
Run = Callable[..., Graph]


@pytest.fixture
def run() -> Iterator[Run]:
    """Registers a rule and runs it alone, checked: ``run(graph, pattern, replacement, *example_args)``."""
    made: list[str] = []

    def run(
        graph: Graph, pattern: Any, replacement: Any, *example: Any, inputs: Any = None, **more: Any
    ) -> Graph:
        name = f"checked{len(made)}"
        passes.register_rule(name, pattern, replacement, example or (X,), **more)
        made.append(name)
        steps = [f"rewrite{{rules={name}}}"]
        return passes.optimize(graph, passes=steps, verify=True, check_rewrites=True, args=inputs)

    yield run
    for name in made:
        passes.remove_rule(name)


def notes(graph: Graph) -> str:
    """What the history says of the last pass."""
    return "\n".join(graph.history[-1].notes)


def graph_of(function: Callable[..., Any], *args: Any, **more: Any) -> Graph:
    class Model(torch.nn.Module):
        def forward(self, *args: Any) -> Any:
            return function(*args)

    return capture(Model(), args, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_right_rule_passes(run: Run, dtype: torch.dtype, recorded: bool) -> None:
    x = torch.randn(5, 7, dtype=dtype)
    graph = graph_of(lambda x: x * torch.sigmoid(x), x)
    after = run(graph, lambda x: torch.sigmoid(x) * x, F.silu, inputs=(x,) if recorded else None)
    assert after.history[-1].changed
    assert not after.history[-1].notes


@pytest.mark.parametrize("recorded", [True, False])
def test_a_wrong_rule_is_refused_noted_and_in_the_ledger(
    run: Run, recorded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    graph = graph_of(lambda x: x * torch.tanh(x), X)
    after = run(graph, lambda x: x * torch.tanh(x), F.silu, inputs=(X,) if recorded else None)
    assert str(after) == str(graph)
    assert not after.history[-1].changed
    assert dict(after.history[-1].stats) == {"refused": 1}
    kind = "recorded" if recorded else "random"
    assert f"differs on {kind} operands: error" in notes(after)
    assert "test_rewrite_replay.py:" in notes(after)
    assert [r.getMessage() for r in caplog.records if r.name == "capture.passes.rewrite"]
    assert {row.kind for row in passes.ledger(after)} == {"kept"}
    assert all("differs" in row.reason for row in passes.ledger(after))


def test_a_lost_cast_shows_in_the_dtype_though_not_in_fp64(run: Run) -> None:
    """Squares of 300 overflow in f16."""

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x.float().pow(2).mean(-1).sqrt().to(x.dtype)

    def careless(x: torch.Tensor) -> torch.Tensor:
        return x.pow(2).mean(-1).sqrt()

    x = 300 * torch.rand(4, 64, dtype=torch.float16) + 100
    after = run(graph_of(norm, x), norm, careless, inputs=(x,))
    assert "differs on recorded operands: infinite in other places" in notes(after)
    wide = after.run(x, dtype=torch.float64)
    torch.testing.assert_close(careless(x.double()), wide, rtol=1e-12, atol=0)


def test_an_error_below_the_dtypes_rounding_shows_in_fp64(run: Run) -> None:
    graph = graph_of(lambda x: torch.sin(x) * 1.0625, X)
    after = run(graph, lambda x: torch.sin(x) * 1.0625, lambda x: torch.sin(x) * 1.0625000001)
    assert "differs on random operands" in notes(after)


def test_nan_in_other_places_is_a_difference(run: Run) -> None:
    """0 * x is NaN where x is infinite; zero is not."""
    x = torch.tensor([1.0, float("inf")])
    graph = graph_of(lambda x: torch.exp(x * 0), x)
    rule = (lambda x: torch.exp(x * 0), lambda x: torch.ones_like(x))
    assert "differs on recorded operands: NaN in other places" in notes(run(graph, *rule, inputs=(x,)))
    finite = x[:1].expand(2)
    assert "differs on infinite operands: NaN in other places" in notes(run(graph, *rule, inputs=(finite,)))
    excused = dict.fromkeys(("infinite", "nan"), "x is finite")
    assert run(graph, *rule, inputs=(finite,), excused=excused).history[-1].changed


@pytest.mark.parametrize(
    ("pattern", "replacement", "kind"),
    [
        (lambda x: x.clamp(max=50).exp(), torch.exp, "large"),
        (lambda x: x.clamp(-20, 20).sin(), torch.sin, "large"),
        (lambda x: torch.where(x > 0, x, 0.0), F.relu, "nan"),
        (lambda x: (x * 0).exp(), torch.ones_like, "infinite"),
    ],
)
def test_numbers_that_are_seldom_drawn_are_tried(run: Run, pattern: Any, replacement: Any, kind: str) -> None:
    after = run(graph_of(pattern, X), pattern, replacement)
    assert not after.history[-1].changed
    assert f"differs on {kind} operands" in notes(after)


def test_a_row_without_numbers_that_an_operator_hides_is_seen(run: Run) -> None:
    """On a CPU the operator gives zeros for a query that holds NaN, the formula NaN."""
    q, k, v = (torch.randn(2, 2, 5, 4) for _ in range(3))

    def spelled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(q @ k.transpose(-2, -1), -1) @ v

    def operator(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)

    graph = graph_of(spelled, q, k, v)
    assert "NaN in other places" in notes(run(graph, spelled, operator, q, k, v))
    excused = dict.fromkeys(("infinite", "nan"), "zeros")
    assert run(graph, spelled, operator, q, k, v, excused=excused).history[-1].changed


def test_one_value_for_two_parameters_is_drawn_once(run: Run) -> None:
    graph = graph_of(lambda x: torch.sin(x) * torch.exp(x), X)
    rule = (lambda x, y: torch.sin(x) * torch.exp(y), lambda x, y: torch.exp(y) * torch.cos(x - torch.pi / 2))
    assert run(graph, *rule, X, X).history[-1].changed


def test_what_overflows_on_the_way_need_not_in_the_replacement(run: Run) -> None:
    """In fp64 exp(300) is finite, and the two agree."""
    graph = graph_of(lambda x: torch.log(1 + torch.exp(x)), X)
    rule = (lambda x: torch.log(1 + torch.exp(x)), lambda x: torch.logaddexp(x, torch.zeros_like(x)))
    assert run(graph, *rule).history[-1].changed


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8])
def test_integers_that_nothing_is_known_of_are_spread(run: Run, dtype: torch.dtype) -> None:
    """For 0 and 1 the square is x itself."""
    x = torch.ones(2, 3, dtype=dtype)
    graph = graph_of(lambda x: (x + 7).square(), x)
    rule = (lambda x: (x + 7).square(), lambda x: 15 * x + 49, x)
    assert "differs on random operands" in notes(run(graph, *rule))
    right = (lambda x: (x + 7).square(), lambda x: x * x + 14 * x + 49, x)
    assert run(graph, *right).history[-1].changed


def test_indices_are_in_range_where_others_are_refused(run: Run) -> None:
    x, table = torch.tensor([1, 0, 1]), torch.randn(5, 4)
    graph = graph_of(lambda x, t: F.embedding(x, t).neg(), x, table)
    rule = (lambda x, t: F.embedding(x, t).neg(), lambda x, t: F.embedding(x, -t), x, table)
    after = run(graph, *rule)
    assert after.history[-1].changed
    assert not after.history[-1].notes


def test_what_casts_to_integers_is_not_tried_on_nan(run: Run) -> None:
    """NaN and what is out of range become any integer."""
    graph = graph_of(lambda x: x.relu().to(torch.int8), X)
    rule = (lambda x: x.relu().to(torch.int8), lambda x: x.to(torch.int8).relu())
    assert run(graph, *rule).history[-1].changed


def test_a_varying_size_is_tried_at_several(run: Run) -> None:
    """Right for the one row that is recorded; of the sizes tried, some are larger."""
    graph = parse(
        """
        graph(%x: f32[N, 4]) where N in [1, 8]
          %0: f32[N, 4] = aten.exp(%x)
          %1: f32[4] = aten.sum.dim_IntList(%0, [0])
          return %1
        """
    )
    after = run(graph, lambda x: x.exp().sum(0), lambda x: x.exp()[0], inputs=(torch.randn(1, 4),))
    assert "differs on random operands" in notes(after)


def test_integers_are_exact(run: Run) -> None:
    x = torch.tensor([[3.0, 1.0, 3.0]])
    graph = graph_of(lambda x: torch.neg(x).argmin(-1), x)
    rule = (lambda x: torch.neg(x).argmin(-1), lambda x: x.shape[-1] - 1 - x.flip(-1).argmax(-1))
    assert "1 of 1 elements" in notes(run(graph, *rule, inputs=(x,)))


def test_integers_are_drawn_from_the_range_that_is_recorded(run: Run) -> None:
    """Indices as large as those of the example, which shows that the replacement goes astray there."""
    table, x = torch.randn(5, 4), torch.tensor([4, 0, 3])
    graph = graph_of(lambda x, table: F.embedding(x, table).neg(), x, table)
    rule = (lambda x, t: F.embedding(x, t).neg(), lambda x, t: F.embedding(x % 4, -t), x, table)
    assert "differs on recorded operands" in notes(run(graph, *rule, inputs=(x, table)))
    assert run(graph, *rule, inputs=(x % 4, table)).history[-1].changed


def test_what_one_rule_puts_in_another_is_replayed_on(run: Run) -> None:
    """The index is computed: that it is in range is known from the record alone, for the new value too."""
    x = torch.tensor([7.0, 5.0, 6.0])
    table = torch.randn(8, 4)
    graph = graph_of(lambda x, t: F.embedding(x.relu().long(), t).neg(), x, table)
    passes.register_rule("first", lambda x: x.relu().long(), lambda x: x.long().relu(), (X,))
    passes.register_rule(
        "second",
        lambda i, t: F.embedding(i, t).neg(),
        lambda i, t: F.embedding(i.remainder(7), -t),
        (x.long(), X),
    )
    try:
        steps = ["rewrite{rules=first}", "rewrite{rules=first+second}"]
        after = passes.optimize(graph, passes=steps, check_rewrites=True, args=(x, table))
    finally:
        passes.remove_rule("first")
        passes.remove_rule("second")
    assert after.history[0].changed
    assert "the rule second" in notes(after)
    assert "differs on recorded operands" in notes(after)


def test_operands_that_the_pattern_refuses_leave_the_rule_unproven(run: Run) -> None:
    """Without example inputs there is no index in range for an empty table."""
    graph = parse(
        """
        graph(%x: i64[3], %table: f32[0, 4])
          %0: f32[3, 4] = aten.embedding(%table, %x)
          %1: f32[3, 4] = aten.neg(%0)
          return %1
        """
    )
    after = run(
        graph,
        lambda x, t: -F.embedding(x, t),
        lambda x, t: F.embedding(x, -t),
        torch.ones(2, dtype=torch.long),
        X,
    )
    assert "cannot be checked" in notes(after)


def test_nothing_is_written_while_recording(run: Run) -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return x * torch.sigmoid(x)

    model = Counter()
    graph = capture(model, (X,))
    assert run(graph, lambda x: torch.sigmoid(x) * x, F.silu, inputs=(X,)).history[-1].changed
    assert model.count == 0
