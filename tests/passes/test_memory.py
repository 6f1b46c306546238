"""The memory plan of a graph: its numbers, what is left to callees, symbolic sizes, odd graphs."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from capture.errors import CaptureError
from capture.ir import Graph
from capture.ir.text import names
from codegen import python
from passes import make_pass, run_pass
from passes.memory import MemoryPlan, plan

CHAIN = """graph(%x: f32[16, 64], %w: f32[64, 64])
  %0: f32[16, 64] = aten.mm(%x, %w)                                                             # a  net.py:3
  %1: f32[16, 64] = aten.layer_norm(%0, [64])                                                   # b  net.py:4
  %2: f32[16, 64] = aten.relu(%1)                                                               # c  net.py:5
  %3: f32[32, 32] = aten.reshape(%2, [32, 32])                                                  # d  net.py:6
  %4: f32[32] = aten.sum.dim_IntList(%3, [1])                                                   # e  net.py:7
  %5: f32[32] = aten.softmax.int(%4, 0)                                                         # f  net.py:8
  return %5
"""
BYTES = 16 * 64 * 4


def parse(text: str) -> Graph:
    return Graph.parse(text).verify()


def by_name(made: MemoryPlan) -> dict[str, object]:
    return {b.name: b for b in made.buffers}


def test_the_numbers_of_a_chain() -> None:
    made = plan(parse(CHAIN))
    assert [(b.name, b.values, b.first, b.end, b.size) for b in made.buffers] == [
        ("%0", ("%0",), 0, 2, BYTES),
        ("%1", ("%1", "%2", "%3"), 1, 5, BYTES),
        ("%4", ("%4",), 4, 6, 128),
    ]
    assert made.live_bytes == (BYTES, 2 * BYTES, BYTES, BYTES, BYTES + 128, 128)
    assert made.lower_bound_bytes == made.arena_bytes == 2 * BYTES
    assert made.naive_bytes == 3 * BYTES + 128  # %0, %1, %2, %4: the view %3 is free
    assert made.results_bytes == 128
    assert made.steps[1] == "%1 = aten.layer_norm"
    assert made.peak_step == 1
    assert [made.buffers[i].name for i in made.peak_holders] == ["%0", "%1"]
    assert made.unplanned == ()


def test_who_allocates_what() -> None:
    """layer_norm returns memory of its own; relu is written over it; mm and sum take what they are given."""
    graph = parse(CHAIN)
    made = plan(graph)
    assert {b.name: b.callee for b in made.buffers} == {"%0": False, "%1": True, "%4": False}
    assert made.callee_allocated_bytes == BYTES
    assert made.in_arena_bytes == BYTES  # %0 and %4 do not meet
    assert made.expected_peak_bytes == 2 * BYTES
    named = {n: v for v, n in names(graph).items()}
    assert set(made.offsets) == {named[n] for n in ("%0", "%1", "%2", "%3", "%4")}
    assert set(made.placements) == {named["%0"], named["%4"]}
    assert made.in_place == {named["%2"]: named["%1"]}
    buffer = by_name(made)["%1"]
    assert (buffer.op, buffer.location, buffer.placement) == ("aten.layer_norm", "net.py:4", None)


def test_what_would_raise_the_peak_is_left_to_its_callee() -> None:
    """layer_norm's buffers are gone when mm needs room: an arena held throughout would come on top."""
    graph = parse("""graph(%x: f32[16, 64], %y: f32[16], %w: f32[64, 64])
  %0: f32[16] = aten.exp(%y)
  %1: f32[16, 64] = aten.layer_norm(%x, [64])
  %2: f32[16, 64] = aten.layer_norm(%1, [64])
  %3: f32[64] = aten.sum.dim_IntList(%2, [0])
  %4: f32[16, 64] = aten.mm(%x, %w)
  %5: f32[16] = aten.mv(%4, %3)
  %6: f32[16] = aten.mul.Tensor(%5, %0)
  return %6
""")
    made = plan(graph)
    assert [b.name for b in made.buffers if not b.callee] == ["%0", "%5"]  # the small ones
    assert made.lower_bound_bytes == 2 * BYTES + 64
    assert made.expected_peak_bytes <= 1.02 * made.lower_bound_bytes


def test_a_value_written_over_a_placed_operand_is_placed_with_it() -> None:
    graph = parse("""graph(%x: f32[16, 64], %w: f32[64, 64])
  %0: f32[16, 64] = aten.mm(%x, %w)
  %1: f32[16, 64] = aten.relu(%0)
  %2: f32[16, 64] = aten.layer_norm(%1, [64])
  return %2
""")
    made = plan(graph)
    named = {n: v for v, n in names(graph).items()}
    assert made.placements == {named["%0"]: 0, named["%1"]: 0}


def test_a_result_in_other_strides_than_its_type_says_is_left_to_the_callee() -> None:
    """gelu keeps the transposed strides of its operand; an arena's view would not."""
    graph = parse("""graph(%x: f32[8, 16, 4])
  %0: f32[8, 16, 4] = aten.layer_norm(%x, [4])
  %1: f32[8, 4, 16] strided = aten.permute(%0, [0, 2, 1])
  %2: f32[8, 4, 16] = aten.gelu(%1)
  %3: f32[8, 4] = aten.sum.dim_IntList(%2, [2])
  return %3
""")
    assert by_name(plan(graph))["%2"].callee


def test_channels_last_is_placed_as_such() -> None:
    graph = parse("""graph(%x: f32[1, 8, 4, 4] channels_last)
  %0: f32[1, 8, 4, 4] channels_last = aten.exp(%x)
  %1: f32[1, 8, 1, 1] = aten.adaptive_avg_pool2d(%0, [1, 1])
  return %1
""")
    assert not by_name(plan(graph))["%0"].callee


def test_a_fusion_is_placed_by_its_last_op_and_a_kernel_allocates_its_own() -> None:
    text = """graph(%x: f32[64])
  %0: f32[64] = fusion.pointwise(%x){impl} {{
    ^(%a: f32[64])
    %b: f32[64] = aten.exp(%a)
    %c: f32[64] = aten.relu(%b)
    return %c
  }}
  %1: f32[] = aten.sum(%0)
  return %1
"""
    assert not by_name(plan(parse(text.format(impl=""))))["%0"].callee
    assert by_name(plan(parse(text.format(impl=" via vendor.kernel()"))))["%0"].callee


@pytest.mark.parametrize("alignment", [1, 64, 256])
def test_sizes_and_offsets_are_multiples_of_the_alignment(alignment: int) -> None:
    graph = parse("""graph(%x: f32[3])
  %0: f32[3] = aten.cumsum(%x, 0)
  %1: f32[3] = aten.cumsum(%0, 0)
  %2: f32[3] = aten.add.Tensor(%0, %1)
  %3: f32[3] = aten.cumsum(%2, 0)
  return %3
""")
    made = plan(graph, alignment=alignment)
    rounded = -(-12 // alignment) * alignment
    assert made.alignment == alignment
    assert made.arena_bytes == made.lower_bound_bytes == 2 * rounded
    assert {b.offset % alignment for b in made.buffers} == {0}


DYNAMIC = """graph(%x: f32[N, 8], %y: f32[M, 8]) where N in [1, 64], M in [1, inf]
  %0: f32[N, 8] = aten.cumsum(%x, 1)
  %1: f32[M, 8] = aten.cumsum(%y, 1)
  %2: f32[8] = aten.sum.dim_IntList(%0, [0])
  %3: f32[8] = aten.sum.dim_IntList(%1, [0])
  %4: f32[8] = aten.add.Tensor(%2, %3)
  return %4
"""


def test_symbolic_sizes_are_planned_at_their_upper_bounds_and_unbounded_ones_left_out() -> None:
    made = plan(parse(DYNAMIC))
    assert by_name(made)["%0"].size == 64 * 8 * 4
    assert made.unplanned == ("%1",)
    assert "%1" not in by_name(made)


def test_symbolic_sizes_may_be_given() -> None:
    made = plan(parse(DYNAMIC), sizes={"N": 2, "M": 100, "unknown": 3})
    assert (by_name(made)["%0"].size, by_name(made)["%1"].size) == (64, 3200)
    assert made.unplanned == ()
    assert dict(made.sizes) == {"N": 2, "M": 100}


def test_a_size_that_shrinks_as_its_dim_grows_is_planned_at_its_own_bound() -> None:
    graph = parse("""graph(%x: f32[N], %y: f32[64 - N]) where N in [1, 63]
  %0: f32[N] = aten.cumsum(%x, 0)
  %1: f32[64 - N] = aten.cumsum(%y, 0)
  %2: f32[64] = aten.cat([%0, %1])
  %3: f32[64] = aten.cumsum(%2, 0)
  return %3
""")
    sizes = {b.name: b.size for b in plan(graph, alignment=4).buffers}
    assert sizes == {"%0": 63 * 4, "%1": 63 * 4, "%2": 64 * 4}


def test_data_dependent_sizes_stay_out() -> None:
    graph = parse("""graph(%x: f32[8])
  %0: i64[u0, 1] = aten.nonzero(%x)
  %1: i64[1] = aten.sum.dim_IntList(%0, [0])
  %2: i64[1] = aten.cumsum(%1, 0)
  return %2
""")
    made = plan(graph)
    assert made.unplanned == ("%0",)
    assert list(by_name(made)) == ["%1"]


def test_values_on_another_device_are_left_out() -> None:
    graph = parse("""graph(%x: f32[8] @meta, %y: f32[8])
  %0: f32[8] @meta = aten.cumsum(%x, 0)
  %1: f32[8] @meta = aten.cumsum(%0, 0)
  %2: f32[8] = aten.cumsum(%y, 0)
  %3: f32[8] @meta = aten.cumsum(%1, 0)
  %4: f32[8] = aten.cumsum(%2, 0)
  return %3, %4
""")
    assert plan(graph).unplanned == ("%2",)


@pytest.mark.parametrize(
    "text",
    [  # no node; no buffer; only results; only empty tensors
        "graph()\n  return\n",
        "graph(%x: f32[3])\n  return %x, %x, 1, None\n",
        "graph(%x: f32[3])\n  %0: f32[3] = aten.relu(%x)\n  return %0, %0\n",
        "graph(%x: f32[0])\n  %0: f32[0] = aten.exp(%x)\n  %1: f32[0] = aten.cumsum(%0, 0)\n  return %1\n",
    ],
)
def test_nothing_to_plan(text: str) -> None:
    made = plan(parse(text))
    assert (made.arena_bytes, made.lower_bound_bytes, made.naive_bytes, made.expected_peak_bytes) == (
        0,
        0,
        0,
        0,
    )
    assert (made.buffers, made.peak_step, made.peak_holders, made.offsets) == ((), -1, (), {})


def test_an_unused_result_takes_room_while_it_is_made() -> None:
    graph = parse("""graph(%x: f32[64])
  %0: f32[64] = aten.cumsum(%x, 0)
  %1: f32[64] = aten.cumsum(%0, 0)
  %2: f32[64] = aten.cumsum(%0, 0)
  return %2
""")
    made = plan(graph)
    assert made.live_bytes == (256, 512, 256)


def test_several_results_that_share_a_buffer_count_once() -> None:
    graph = parse("""graph(%x: f32[64])
  %0: f32[64] = aten.cumsum(%x, 0)
  %1: f32[8, 8] = aten.reshape(%0, [8, 8])
  %2: f32[64] = aten.reshape(%x, [64])
  return %0, %1, %2
""")
    assert plan(graph).results_bytes == 256


def test_the_pass_attaches_a_plan_that_an_edit_makes_void() -> None:
    graph = parse(CHAIN)
    assert graph.memory_plan is None
    record = run_pass(graph, make_pass("memory"))
    made = graph.memory_plan
    assert isinstance(made, MemoryPlan)
    assert not record.changed
    assert record.stats["arena_bytes"] == made.arena_bytes == 2 * BYTES
    made.check(graph)
    graph.add_node(torch.ops.aten.relu.default, [graph.inputs[0]])
    assert graph.memory_plan is None
    with pytest.raises(CaptureError, match="another version"):
        made.check(graph)


def test_the_pass_takes_an_alignment() -> None:
    graph = parse(CHAIN)
    run_pass(graph, make_pass("memory{alignment=4096}"))
    assert graph.memory_plan.alignment == 4096


@pytest.mark.parametrize("alignment", [-64, 3, 8])
def test_the_pass_refuses_an_alignment_at_which_not_every_dtype_may_begin(alignment: int) -> None:
    with pytest.raises(CaptureError, match=f"alignment={alignment}"):
        run_pass(parse(CHAIN), make_pass(f"memory{{alignment={alignment}}}"))


def test_generated_code_places_what_has_a_fixed_size_and_the_plan_says_so() -> None:
    graph = parse("""graph(%x: f32[N, 8], %y: f32[8]) where N in [1, 64]
  %0: f32[N, 8] = aten.cumsum(%x, 1)
  %1: f32[8] = aten.sum.dim_IntList(%0, [0])
  %2: f32[8] = aten.add.Tensor(%1, %y)
  return %2
""")
    run_pass(graph, make_pass("memory"))
    made = graph.memory_plan
    assert {name: b.callee for name, b in by_name(made).items()} == {"%0": True, "%1": False}
    assert (made.callee_allocated_bytes, made.in_arena_bytes) == (64 * 8 * 4, 64)
    assert "torch.empty(64," in python.emit(graph)


@pytest.mark.parametrize("shape", ["2, 3, 4, 4] channels_last", "2, 3, 4, 4, 4] channels_last_3d"])
def test_generated_code_places_values_in_every_format_that_the_plan_places(shape: str) -> None:
    graph = parse(f"""graph(%x: f32[{shape})
  %0: f32[{shape} = aten.sin(%x)
  %1: f32[{shape} = aten.cos(%0)
  return %1
""")
    run_pass(graph, make_pass("memory"))
    assert graph.memory_plan.callee_allocated_bytes == 0
    format_ = torch.channels_last if "3d" not in shape else torch.channels_last_3d
    x = torch.randn(list(graph.inputs[0].tensor_type.shape)).to(memory_format=format_)
    code: dict[str, Any] = {}
    exec(python.emit(graph), code)
    (made,) = code["forward"](x)
    assert torch.equal(made, x.sin().cos())
    assert "out=m.v0" in python.emit(graph)


def test_arenas_of_a_gpu_are_kept_by_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one stream is still to read may not be written by another, though the call has returned."""
    graph = parse("""graph(%x: f32[8] @cuda:0)
  %0: f32[8] @cuda:0 = aten.sin(%x)
  %1: f32[8] @cuda:0 = aten.cumsum(%0, 0)
  %2: f32[8] @cuda:0 = aten.cumsum(%1, 0)
  return %2
""")
    run_pass(graph, make_pass("memory"))
    source = python.emit(graph)
    code: dict[str, Any] = {}
    exec(source.replace('device="cuda:0"', 'device="cpu"'), code)
    stream = SimpleNamespace(cuda_stream=1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    x = torch.randn(8)
    for _ in range(2):
        code["forward"](x)
    (first,) = code["arenas"].free[1]
    stream.cuda_stream = 2
    assert torch.equal(code["forward"](x)[0], x.sin().cumsum(0).cumsum(0))
    assert code["arenas"].free[1] == [first]
    assert code["arenas"].free[2] not in ([], [first])


REGION = """graph(%x: f32[64, 8]{device})
  %0: f32[64, 8]{device} = aten.exp(%x)
  %1: f32[64, 1]{device} = aten.sum.dim_IntList(%0, [-1], True)
  %2: f32[64, 8]{device} = aten.div.Tensor(%0, %1)
  return %2
"""


def test_what_a_region_takes_without_a_kernel_is_told_apart() -> None:
    graph = parse(REGION.format(device=" @cuda:0"))
    for name in ("fuse", "memory"):
        run_pass(graph, make_pass(name))
    made = graph.memory_plan
    assert (made.arena_bytes, made.region_temporaries_bytes) == (0, 64 * 8 * 4 + 256)
    assert "takes up to 2.3 kB more" in python.emit(graph)
    on_cpu = parse(REGION.format(device=""))
    for name in ("fuse", "memory"):
        run_pass(on_cpu, make_pass(name))
    assert on_cpu.memory_plan.region_temporaries_bytes == 0


def test_schedules_and_budgets_count_as_the_plan_of_the_device_does() -> None:
    graph = parse("""graph(%x: f32[20] @cuda:0)
  %0: f32[20] @cuda:0 = aten.sin(%x)
  %1: f32[20] @cuda:0 = aten.cumsum(%0, 0)
  %2: f32[] @cuda:0 = aten.dot(%1, %0)
  return %2
""")
    with pytest.raises(CaptureError, match="one operator needs 512 B"):
        run_pass(graph, make_pass("recompute{max_memory=384}"))
    assert run_pass(graph, make_pass("schedule")).stats["arena_bytes"] == 512
    assert run_pass(graph, make_pass("memory")).stats["arena_bytes"] == 512


def test_a_plan_is_immutable_and_the_same_each_time() -> None:
    made = plan(parse(CHAIN))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.arena_bytes = 0
    again = plan(parse(CHAIN))
    assert (made.buffers, made.live_bytes) == (again.buffers, again.live_bytes)
