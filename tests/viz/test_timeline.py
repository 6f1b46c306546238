"""The memory timeline: a rectangle a buffer, where the plan says, and the levels around it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import passes
import viz
from capture import CaptureError, Graph
from tests.handmade import parse
from tests.viz.svgs import NAMESPACE, Picture, tooltip
from viz.labels import common_name
from viz.timeline import Timeline, nice_ticks, timeline_of


@pytest.fixture(scope="module")
def plan(small_resnet: tuple[Graph, Graph]) -> Any:
    return small_resnet[1].memory_plan


def bars(picture: Picture) -> list[Any]:
    groups = (g for g in picture.root.iter(f"{NAMESPACE}g") if g.get("class") == "v")
    return [rect for g in groups for rect in g.iter(f"{NAMESPACE}rect")]


def number(element: Any, name: str) -> float:
    return float(element.get(name))


def test_a_rectangle_a_buffer_where_the_plan_says(plan: Any) -> None:
    drawn = {tooltip(rect).split()[0]: rect for rect in bars(Picture(viz.memory(plan)))}
    assert set(drawn) == {b.name for b in plan.buffers}
    assert len(drawn) == len(plan.buffers) > 5
    x, width = zip(*((number(r, "x"), number(r, "width")) for r in drawn.values()), strict=True)
    step = (max(a + b for a, b in zip(x, width, strict=True)) - min(x)) / (
        max(b.end for b in plan.buffers) - min(b.first for b in plan.buffers)
    )
    byte = max(
        number(drawn[b.name], "height") / b.size for b in plan.buffers if b.size > plan.arena_bytes / 4
    )
    floor = max(number(r, "y") + number(r, "height") for r in drawn.values())
    for buffer in plan.buffers:
        rect = drawn[buffer.name]
        assert number(rect, "x") == pytest.approx(min(x) + step * buffer.first, abs=0.2)
        assert number(rect, "width") == pytest.approx(step * (buffer.end - buffer.first), abs=0.2)
        top = floor - byte * (buffer.offset + buffer.size)
        assert number(rect, "y") == pytest.approx(top, abs=2)


def test_the_same_from_the_graph_the_plan_and_the_report(
    small_resnet: tuple[Graph, Graph], plan: Any
) -> None:
    told = Timeline.of_plan(plan)
    of_graph = timeline_of(small_resnet[1])
    assert {bar.module for bar in of_graph.bars} >= {
        "conv1",
        "layer1.0.conv1",
    }  # from the graph
    assert [replace(bar, module="") for bar in of_graph.bars] == list(told.bars)
    assert replace(of_graph, bars=told.bars) == told
    fields = ("name", "op", "location", "first", "end", "offset", "size", "callee")
    rows = [{f: getattr(b, f) for f in fields} for b in plan.buffers]
    keys = ("arena_bytes", "lower_bound_bytes", "naive_bytes", "callee_allocated_bytes", "results_bytes")
    memory = {key: getattr(plan, key) for key in keys}
    memory["timeline"] = {"steps": list(plan.steps), "live_bytes": list(plan.live_bytes), "buffers": rows}
    told = Timeline.of_report(memory)
    assert told is not None
    assert replace(told, bars=()) == replace(Timeline.of_plan(plan), bars=())
    assert len(bars(Picture(viz.memory(told)))) == len(plan.buffers)


def test_levels_peak_and_its_holders_are_named(plan: Any) -> None:
    texts = Picture(viz.memory(plan)).texts
    assert any(t.startswith("naive ") and "×" in t for t in texts)
    assert any(t.startswith("lower bound ") for t in texts)
    (head,) = (t for t in texts if t.startswith("Peak of "))
    assert f"in step {plan.peak_step}" in head
    largest = plan.buffers[plan.peak_holders[0]]
    assert any(t.startswith(f"{largest.name}  {common_name(largest.op)}") for t in texts)


def test_holders_of_a_graph_name_their_modules(small_resnet: tuple[Graph, Graph]) -> None:
    texts = Picture(viz.memory(small_resnet[1])).texts
    assert any(t.endswith("conv1  models/resnet.py:116") for t in texts)


def test_what_operators_allocate_is_dashed(plan: Any) -> None:
    drawn = bars(Picture(viz.memory(plan)))
    dashed = {tooltip(r).split()[0] for r in drawn if "dash" in r.get("class").split()}
    assert dashed == {b.name for b in plan.buffers if b.callee}
    holding = {tooltip(r).split()[0] for r in drawn if "holds" in r.get("class").split()}
    assert holding == {plan.buffers[i].name for i in plan.peak_holders}


def test_every_step_can_be_hovered_over(plan: Any) -> None:
    steps = [r for r in Picture(viz.memory(plan)).root.iter(f"{NAMESPACE}rect") if r.get("class") == "step"]
    assert len(steps) == len(plan.steps)
    assert tooltip(steps[3]).startswith(f"step 3: {plan.steps[3]}\n")


def test_many_buffers() -> None:
    lines = [f"  %{i}: f32[64] = aten.relu(%{i - 1})" for i in range(1, 800)]
    graph = Graph.parse(
        "\n".join(["graph(%x: f32[64])", "  %0: f32[64] = aten.exp(%x)", *lines, "  return %799", ""])
    )
    picture = Picture(viz.memory(passes.optimize(graph, passes=["memory"])))
    width = float((picture.root.get("viewBox") or "").split()[2])
    assert width < 1400
    assert bars(picture)


def test_a_graph_without_buffers() -> None:
    graph = passes.optimize(parse("graph(%x: f32[2])\n  return %x\n"), passes=["memory"])
    picture = Picture(viz.memory(graph))
    assert bars(picture) == []
    assert "Memory plan" in picture.texts


def test_a_graph_without_a_plan_is_told() -> None:
    with pytest.raises(CaptureError, match="no memory plan") as caught:
        viz.memory(parse("graph(%x: f32[2])\n  %0: f32[2] = aten.relu(%x)\n  return %0\n"))
    assert "level=2" in str(caught.value)


def test_hostile_names(plan: Any) -> None:
    evil = '</title><script>"&\x07'
    timeline = Timeline.of_plan(plan)
    bar = replace(timeline.bars[0], name=evil, op=evil, location=evil, values=(evil, evil))
    text = viz.memory(replace(timeline, bars=(bar, *timeline.bars[1:]), steps=(evil, *timeline.steps[1:])))
    assert "<script" not in text
    Picture(text)


def test_written_and_equal_each_time(tmp_path: Path, plan: Any) -> None:
    text = viz.memory(plan, tmp_path / "m.svg")
    assert (
        (tmp_path / "m.svg").read_text()
        == text
        == viz.memory(pickle.loads(pickle.dumps(Timeline.of_plan(plan))))
    )


@pytest.mark.parametrize(
    ("top", "ticks"),
    [
        (0, [0]),
        (5, [0, 1, 2, 3, 4, 5]),
        (57, [0, 10, 20, 30, 40, 50]),
        (1200, [0, 200, 400, 600, 800, 1000, 1200]),
    ],
)
def test_ticks_are_round(top: int, ticks: list[int]) -> None:
    assert nice_ticks(top) == ticks


def test_one_is_not_told_as_several() -> None:
    graph = parse(
        "graph(%x: f32[2])\n  %0: f32[2] = aten.exp(%x)\n  %1: f32[2] = aten.relu(%0)\n  return %1\n"
    )
    planned = passes.optimize(graph, passes=["memory"])
    assert any(text.startswith("1 buffer over 2 steps") for text in Picture(viz.memory(planned)).texts)
