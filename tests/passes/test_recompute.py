"""Values are computed again where keeping them takes too much memory; what may not be, what cannot fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capture.errors import CaptureError
from capture.ir import Graph, op_name
from passes import PIPELINES, optimize
from passes.memory import plan
from passes.recompute import within
from passes.updates import updated_operand
from tests.passes.golden import check, parse
from tests.random_graphs import Case, assert_same_results, cases

KEPT_LONG = """
    graph(%x: f32[64], %w: f32[64, 64])
      %0: f32[64, 64] = aten.outer(%x, %x)
      %1: f32[64] = aten.sum.dim_IntList(%0, [0])
      %2: f32[64, 64] = aten.mm(%w, %w)
      %3: f32[64, 64] = aten.mm(%2, %w)
      %4: f32[64] = aten.sum.dim_IntList(%3, [1])
      %5: f32[64] = aten.mv(%0, %4)
      %6: f32[64] = aten.add.Tensor(%5, %1)
      return %6
"""
MATRIX = 64 * 64 * 4


def recomputed(text: str, budget: int) -> list[str]:
    """Names of the operators that are computed once more."""
    graph = parse(text)
    after = optimize(graph, passes=[f"recompute{{max_memory={budget}}}"], verify=True)
    extra = [op_name(n.op) for n in after.nodes]
    for node in graph.nodes:
        extra.remove(op_name(node.op))
    return extra


def test_a_cheap_value_is_computed_again_after_the_fullest_step() -> None:
    graph = parse(KEPT_LONG)
    assert plan(graph).arena_bytes == 3 * MATRIX + 256
    after = check(
        graph,
        f"recompute{{max_memory={2 * MATRIX + 512}}}",
        """
        graph(%x: f32[64], %w: f32[64, 64])
          %0: f32[64, 64] = aten.outer(%x, %x)
          %1: f32[64] = aten.sum.dim_IntList(%0, [0])
          %2: f32[64, 64] = aten.mm(%w, %w)
          %3: f32[64, 64] = aten.mm(%2, %w)
          %4: f32[64] = aten.sum.dim_IntList(%3, [1])
          %5: f32[64, 64] = aten.outer(%x, %x)
          %6: f32[64] = aten.mv(%5, %4)
          %7: f32[64] = aten.add.Tensor(%6, %1)
          return %7
        """,
    )
    assert after.history[-1].stats == {
        "recomputed": 1,
        "extra_flops": 4096,
        "extra_bytes": 256 + MATRIX,
        "arena_bytes": 2 * MATRIX + 256,
        "saved_bytes": MATRIX,
    }
    assert plan(after).arena_bytes == 2 * MATRIX + 256


def test_a_plan_that_fits_is_left_alone() -> None:
    check(KEPT_LONG, f"recompute{{max_memory={3 * MATRIX + 256}}}")
    check(KEPT_LONG, "recompute")


def test_views_and_what_they_need_are_computed_again_in_a_chain() -> None:
    graph = parse("""
        graph(%x: f32[64], %w: f32[64, 64])
          %0: f32[64, 64] = aten.outer(%x, %x)
          %1: f32[64] = aten.sum.dim_IntList(%0, [0])
          %2: f32[64, 64] = aten.exp(%0)
          %3: f32[64, 64] strided = aten.transpose.int(%2, 0, 1)
          %4: f32[64, 64] = aten.mm(%w, %w)
          %5: f32[64, 64] = aten.mm(%4, %w)
          %6: f32[64] = aten.sum.dim_IntList(%5, [1])
          %7: f32[64] = aten.mv(%3, %6)
          %8: f32[64] = aten.add.Tensor(%7, %1)
          return %8
    """)
    assert recomputed(str(graph), 2 * MATRIX + 512) == ["aten.outer", "aten.exp", "aten.transpose.int"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("aten.outer(%x, %x)", "aten.mm(%w, %w)"),  # dear
        ("aten.outer(%x, %x)", "aten.dropout(%w, 0.5, True)"),  # random
        ("return %6", "return %6, %0"),  # a result takes no memory of the arena
    ],
    ids=["dear", "random", "returned"],
)
def test_what_is_not_computed_again(old: str, new: str) -> None:
    text = KEPT_LONG.replace(old, new)
    budget = 2 * MATRIX + 512
    if "return" in old:
        assert recomputed(text, budget) == []
        return
    with pytest.raises(CaptureError, match=r"does not fit 33.3 kB: 49.[24] kB is the least reached"):
        recomputed(text, budget)


def test_what_may_take_any_number_of_operations_is_not_computed_again() -> None:
    """The product's own size is known, how much it takes is not."""
    text = """
        graph(%x: f32[N, 64], %t: f32[64, N], %y: f32[64, 64]) where N in [1, inf]
          %0: f32[64, 64] = aten.mm(%t, %x)
          %1: f32[64, 64] = aten.mm(%0, %y)
          %2: f32[64, 64] = aten.mm(%1, %y)
          %3: f32[64, 64] = aten.mm(%2, %1)
          %4: f32[64, 64] = aten.mm(%3, %0)
          %5: f32[64, 64] = aten.mm(%4, %0)
          return %5
    """
    with pytest.raises(CaptureError, match=r"65.5 kB is the least reached"):
        recomputed(text, 3 * MATRIX)


def test_what_reads_memory_that_is_written_in_between_is_not_computed_again() -> None:
    text = KEPT_LONG.replace("%w: f32[64, 64])", "%w: f32[64, 64], %state: f32[64])").replace(
        "aten.outer(%x, %x)", "aten.outer(%state, %x)"
    )
    text = text.replace(
        "      %2: f32", "      %9: f32[64] = aten.select_scatter(%state, %v, 0, 1)\n      %2: f32"
    )
    text = text.replace("%state: f32[64])", "%state: f32[64], %v: f32[])") + "      write %state = %9\n"
    graph = optimize(parse(text.replace("return %6\n", "return %6\n")), passes=["reinplace"])
    assert any(updated_operand(n) is not None for n in graph.nodes)
    with pytest.raises(CaptureError, match="does not fit"):
        optimize(graph, passes=[f"recompute{{max_memory={2 * MATRIX + 512}}}"])


def test_the_error_says_what_was_reached_and_what_holds_the_memory() -> None:
    with pytest.raises(CaptureError) as raised:
        recomputed(KEPT_LONG, MATRIX)
    assert "one operator needs 32.8 kB" in raised.value.what
    assert raised.value.why == "fullest at aten.mm: %2 of aten.mm (16.4 kB), %3 of aten.mm (16.4 kB)"
    text = KEPT_LONG.replace("aten.outer(%x, %x)", "aten.mm(%w, %w)")
    with pytest.raises(CaptureError) as raised:
        recomputed(text, 2 * MATRIX + 512)
    assert "49.4 kB without computing anything twice" in str(raised.value.why)
    assert "%0 of aten.mm (16.4 kB)" in str(raised.value.why)


def test_the_pass_goes_before_the_plan() -> None:
    assert within(PIPELINES[2], 9)[-3:] == ["schedule", "recompute{max_memory=9}", "memory"]
    assert within(["simplify"], 9) == ["simplify", "recompute{max_memory=9}", "memory"]


@given(cases(max_nodes=20), st.sampled_from([0.5, 0.7, 0.85]))
def test_random_graphs_keep_their_results_and_fit_or_say_so(case: Case, share: float) -> None:
    budget = max(1, int(share * plan(case.graph.clone()).arena_bytes))
    try:
        after = optimize(case.graph, passes=within([], budget), verify=True)
    except CaptureError as error:
        if "fit" not in error.what:
            raise
        return
    assert after.memory_plan.lower_bound_bytes <= budget
    assert_same_results(case, after, exact=True)


def chain(layers: int) -> Graph:
    """Forward and backward of a chain of products: each activation is read again on the way back."""
    graph = Graph("chain")
    x = graph.add_input("x", parse(KEPT_LONG).inputs[1].type)
    w = graph.add_input("w", x.type)
    kept = [x]
    for _ in range(layers):
        product = graph.add_node(torch.ops.aten.mm.default, [kept[-1], w]).result
        kept += [product, graph.add_node(torch.ops.aten.gelu.default, [product]).result]
    back = kept[-1]
    for value in reversed(kept[1:-1]):
        back = graph.add_node(torch.ops.aten.mul.Tensor, [back, value]).result
        back = graph.add_node(torch.ops.aten.mm.default, [back, w]).result
    graph.set_results([graph.add_node(torch.ops.aten.sum.default, [back]).result])
    return graph


def test_a_training_chain_keeps_half_of_its_activations() -> None:
    """The products must stay; the activations are made of them again."""
    graph = chain(12)
    before = plan(graph.clone()).arena_bytes
    after = optimize(graph, passes=within(["schedule"], int(0.6 * before)), verify=True)
    assert after.memory_plan.arena_bytes <= 0.6 * before
    made = after.history[-2].stats["recomputed"]
    assert len(list(after.find(torch.ops.aten.gelu))) == 12 + made
    assert len(list(after.find(torch.ops.aten.mm))) == len(list(graph.find(torch.ops.aten.mm)))
    args = [torch.randn(64, 64) / 8, torch.randn(64, 64) / 8]
    torch.testing.assert_close(after.run(*args), graph.run(*args), rtol=0, atol=0)
