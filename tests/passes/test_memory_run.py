"""Plans are right: graphs run in the very memory that is planned for them give the interpreter's results."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capture.ir import Graph
from passes import optimize
from passes.memory import plan
from passes.memory_check import Row, lower_bound, problems
from tests.passes.arena_machine import ArenaMachine
from tests.random_graphs import Case, cases


def check(graph: Graph, args: list[torch.Tensor], **options: object) -> None:
    made = plan(graph, **options)
    rows = [Row(b.name, b.first, b.end, b.size, b.offset) for b in made.buffers]
    assert not list(problems(rows, made.arena_bytes))
    placed = [Row(b.name, b.first, b.end, b.size, b.placement) for b in made.buffers if not b.callee]
    assert not list(problems(placed, made.in_arena_bytes))
    assert made.lower_bound_bytes == lower_bound([(b.first, b.end, b.size) for b in made.buffers])
    assert made.lower_bound_bytes == max(made.live_bytes, default=0)
    assert made.lower_bound_bytes <= made.arena_bytes <= made.naive_bytes
    want = graph.run(*(a.clone() for a in args))
    want = list(want) if isinstance(want, (list, tuple)) else [want]
    got = ArenaMachine(graph, made).run([a.clone() for a in args])
    torch.testing.assert_close(got[: len(want)], want, rtol=0, atol=0, equal_nan=True)


@given(cases(max_nodes=16))
def test_a_graph_runs_in_its_planned_memory(case: Case) -> None:
    check(case.graph, case.args())


@given(cases(max_nodes=16))
def test_a_plan_serves_inputs_of_other_strides(case: Case) -> None:
    """Then copies are views and views are copies; only what the plan allows for may share memory."""
    turned = [a.transpose(0, -1).contiguous().transpose(0, -1) if a.dim() > 1 else a for a in case.args()]
    check(case.graph, turned)


@given(cases(max_nodes=12, dynamic=True), st.sampled_from([1, 2, 3, 64]))
def test_a_plan_at_the_upper_bounds_serves_every_size(case: Case, n: int) -> None:
    check(case.graph, case.args(N=n))


@given(cases(max_nodes=12, dynamic=True), st.sampled_from([1, 5]))
def test_a_plan_for_one_size_serves_it(case: Case, n: int) -> None:
    check(case.graph, case.args(N=n), sizes={"N": n})


@given(cases(max_nodes=16))
def test_a_scheduled_and_fused_graph_runs_in_its_planned_memory(case: Case) -> None:
    passes = ["simplify", "eliminate-dead-code", "fuse", "schedule"]
    graph = optimize(case.graph, passes=passes, verify=True)
    check(graph, case.args())


@pytest.mark.parametrize("pred", [True, False])
@pytest.mark.parametrize("branch", ["%a", "%b"])
def test_a_branch_that_hands_its_input_through_keeps_the_input_alive(pred: bool, branch: str) -> None:
    """%2 may be %0 itself; were %0 free after the cond, %3 would be written over it."""
    graph = Graph.parse(
        f"""graph(%p: bool[], %x: f32[8])
  %0: f32[8] = aten.exp(%x)
  %1: f32[8] = higher_order.cond(%p, ^0, ^1, [%0]) {{
    ^(%a: f32[8])
    return %a
  }} {{
    ^(%a: f32[8])
    %b: f32[8] = aten.neg(%a)
    return {branch}
  }}
  %2: f32[8] = aten.cos(%x)
  %3: f32[8] = aten.mul.Tensor(%1, %2)
  %4: f32[8] = aten.sum.dim_IntList(%3, [0])
  return %4
""".replace("%4: f32[8]", "%4: f32[]")
    )
    check(graph, [torch.tensor(pred), torch.arange(8.0) / 8])


@pytest.mark.parametrize("n", [1, 3])
def test_a_copy_that_is_a_view_at_some_sizes_keeps_its_operand_alive(n: int) -> None:
    """With N = 1, %2 is a view of %0; were %0 free after the reshape, %3 would be written over it."""
    graph = Graph.parse("""graph(%x: f32[N, 4], %y: f32[4*N]) where N in [1, 64]
  %0: f32[N, 4] = aten.exp(%x)
  %1: f32[4, N] strided = aten.permute(%0, [1, 0])
  %2: f32[4*N] = aten.reshape(%1, [4*N])
  %3: f32[4*N] = aten.cos(%y)
  %4: f32[4*N] = aten.mul.Tensor(%2, %3)
  %5: f32[] = aten.sum(%4)
  return %5
""")
    check(graph, [torch.arange(4.0 * n).view(n, 4) / 8, torch.arange(4.0 * n)])
