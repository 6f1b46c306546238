"""The exact planner against every order of a few buffers, cut rectangles and MiniMalloc's instances."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from math import gcd
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.memory import Spans, cut, read
from passes import memory_check
from passes.memory.__main__ import main
from passes.memory.greedy import Packing, pack
from passes.memory.planner import SECOND, place
from passes.memory.search import Effort, Search
from passes.memory_check import Row, lower_bound, problems

DATA = Path(__file__).parent.parent / "data" / "minimalloc"
HARD = {instance.name: instance for instance in read(DATA)}
REACHED = {name: lower_bound(HARD[name].spans) for name in "ABCEF"} | {"D": HARD["D"].capacity}

# Six bytes are alive at each step, and no plan takes fewer than seven.
ABOVE_THE_BOUND = [
    (0, 1, 5), (0, 3, 1), (1, 2, 4), (1, 4, 1), (2, 3, 1), (2, 5, 3), (3, 4, 2), (4, 5, 3)
]  # fmt: skip


def spans(most: int, longest: int = 6) -> st.SearchStrategy[Spans]:
    one = st.tuples(st.integers(0, 8), st.integers(1, longest), st.integers(0, 6))
    return st.lists(one.map(lambda t: (t[0], t[0] + t[1], t[2])), max_size=most)


@st.composite
def full(draw: st.DrawFn) -> Spans:
    """At most seven buffers, with as many bytes alive at each of four steps."""
    starts = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(2, 3), st.integers(1, 4)), max_size=3))
    buffers = [(lower, min(lower + steps, 4), size) for lower, steps, size in starts]
    alive = [sum(size for lower, upper, size in buffers if lower <= step < upper) for step in range(4)]
    height = max(alive) + draw(st.integers(0, 3))
    return [*buffers, *((step, step + 1, height - alive[step]) for step in range(4))]


def columns(buffers: Spans) -> list[list[int]]:
    return [[b[k] for b in buffers] for k in range(3)]


def solve(buffers: Spans, *, work: int = SECOND, capacity: int | None = None) -> Packing:
    bound = lower_bound(buffers)
    return place(*columns(buffers), bound=bound, effort=Effort(work=work), capacity=capacity)


def is_valid(buffers: Spans, offsets: Sequence[int], capacity: int) -> bool:
    placed = [Row(str(i), *b, offset) for i, (b, offset) in enumerate(zip(buffers, offsets, strict=True))]
    return not list(problems(placed, capacity))


def optimum(buffers: Spans) -> int:
    """Of all plans: each is, let down, what dropping its buffers from above in order of offset gives."""
    best = sum(size for *_, size in buffers)
    for order in permutations(buffers):
        placed: list[tuple[int, int, int]] = []  # lower, upper, top
        for lower, upper, size in order:
            floor = max((top for a, b, top in placed if a < upper and lower < b), default=0)
            placed.append((lower, upper, floor + size))
        best = min(best, max((top for *_, top in placed), default=0))
    return best


@settings(deadline=None)
@given(spans(6) | full())
@example(ABOVE_THE_BOUND)
def test_a_few_buffers_are_placed_as_low_as_in_any_order(buffers: Spans) -> None:
    found = solve(buffers)
    assert found.peak == optimum(buffers)
    assert is_valid(buffers, found.offsets, found.peak)
    assert found.least in (0, lower_bound(buffers), found.peak)


@settings(deadline=None)
@given(spans(6) | full(), st.integers(0, 20))
@example(ABOVE_THE_BOUND, 6)
def test_a_search_knows_whether_a_few_buffers_fit(buffers: Spans, capacity: int) -> None:
    taking = [b for b in buffers if b[2]]
    search = Search(*columns(taking), capacity)
    offsets = search.run(Effort(work=SECOND))
    fits = optimum(taking) <= capacity
    assert (offsets is not None, search.impossible) == (fits, not fits)
    assert offsets is None or is_valid(taking, offsets, capacity)


@settings(deadline=None, max_examples=50)
@given(spans(40, longest=9))
def test_plans_are_valid_never_above_the_greedy_one_and_repeatable(buffers: Spans) -> None:
    found = solve(buffers, work=SECOND // 20)
    bound = lower_bound(buffers)
    assert is_valid(buffers, found.offsets, found.peak)
    assert bound <= found.peak <= pack(*columns(buffers), bound=bound).peak
    assert found == solve(buffers, work=SECOND // 20)


@pytest.mark.parametrize("seed", range(12))
def test_cut_rectangles_are_put_together_again(seed: int) -> None:
    rng = random.Random(seed)
    buffers = cut(rng, 100, 4096, rng.randint(20, 60), rng.uniform(0.3, 0.7), 16)
    rng.shuffle(buffers)
    found = solve(buffers)
    assert found.peak == 4096
    assert is_valid(buffers, found.offsets, 4096)


@pytest.mark.parametrize("name", sorted(HARD))
@pytest.mark.parametrize("way", ["as given", "shuffled", "backwards in time"])
def test_hard_instances_reach_the_best_known(name: str, way: str) -> None:
    buffers = list(HARD[name].spans)
    if way == "shuffled":
        random.Random(0).shuffle(buffers)
    elif way == "backwards in time":
        buffers = [(-upper, -lower, size) for lower, upper, size in buffers]
    found = solve(buffers, work=10 * SECOND, capacity=HARD[name].capacity)
    assert found.peak <= REACHED[name]
    assert is_valid(buffers, found.offsets, HARD[name].capacity)


def chain(count: int, steps: int) -> Spans:
    rng = random.Random(count)
    return [(i, i + steps, rng.randint(1, 999)) for i in range(count)]


def test_a_search_among_many_buffers_keeps_to_its_effort() -> None:
    buffers, effort = chain(2500, 3), Effort(work=200_000)
    found = place(*columns(buffers), bound=lower_bound(buffers), effort=effort)
    assert found.nodes
    assert -20_000 < effort.work <= 0
    assert is_valid(buffers, found.offsets, found.peak)


def test_more_buffers_than_can_be_searched_keep_their_greedy_plan() -> None:
    """The sets of buffers alive in each of its sections would take gigabytes."""
    buffers = chain(25_000, 2)
    found = place(*columns(buffers), bound=lower_bound(buffers), effort=Effort(work=1000 * SECOND))
    assert (found.nodes, found.least) == (0, lower_bound(buffers))
    assert found.peak == pack(*columns(buffers), bound=lower_bound(buffers)).peak


def test_stretches_of_time_that_nothing_lives_across_do_not_disturb_each_other() -> None:
    """The first and the last need a byte more than the bound, and what is between them no more than that."""
    shift = [(lower + 10, upper + 10, size) for lower, upper, size in ABOVE_THE_BOUND]
    buffers = [*ABOVE_THE_BOUND, (5, 8, 4), (7, 10, 2), *shift]
    found = solve(buffers)
    assert found.peak == optimum(ABOVE_THE_BOUND)
    assert found.least == found.peak
    assert is_valid(buffers, found.offsets, found.peak)


def test_a_search_ends_where_sizes_leave_nothing_between_the_bound_and_the_plan() -> None:
    """One stretch is a multiple of 5 high, the other of 7: neither can come closer to the other's peak."""
    fives, sevens = (
        [(lower + at, upper + at, size * unit) for lower, upper, size in ABOVE_THE_BOUND]
        for at, unit in ((0, 5), (10, 7))
    )
    buffers = [*fives, *sevens, (20, 21, 47)]
    found = solve(buffers)
    assert found.peak == 49
    assert is_valid(buffers, found.offsets, 49)
    small = [solve(buffers, work=work).peak for work in range(40)]
    assert min(small) >= 49


def test_what_is_too_large_to_search_keeps_its_greedy_plan() -> None:
    rng = random.Random(0)
    starts = [rng.randrange(300) for _ in range(400)]
    buffers = [(start, start + rng.randint(1, 300), rng.randint(1, 99)) for start in starts]
    bound = lower_bound(buffers)
    greedy = pack(*columns(buffers), bound=bound)
    assert greedy.peak > bound
    assert solve(buffers, work=1000) == replace(greedy, least=bound)


def test_offsets_are_multiples_of_what_all_sizes_are_multiples_of() -> None:
    buffers = HARD["E"].spans
    assert gcd(*(size for *_, size in buffers)) == 1024
    assert all(offset % 1024 == 0 for offset in solve(buffers, capacity=HARD["E"].capacity).offsets)


def test_without_effort_the_plan_is_the_greedy_one() -> None:
    buffers = HARD["A"].spans
    greedy = pack(*columns(buffers), bound=lower_bound(buffers))
    assert solve(buffers, work=0).offsets == greedy.offsets
    late = place(*columns(buffers), bound=lower_bound(buffers), effort=Effort(seconds=0))
    assert late.peak >= greedy.peak
    assert is_valid(buffers, late.offsets, late.peak)


def test_a_part_of_an_effort_is_spent_by_the_whole() -> None:
    whole = Effort(work=100)
    part = whole.part(0.5)
    part.spend(60, nodes=3)
    assert part.over
    assert (whole.work, whole.nodes, whole.over) == (40, 3, False)


def test_a_search_goes_on_with_other_orders_when_called_again() -> None:
    instance = HARD["A"]
    search = Search(*columns(instance.spans), instance.capacity)
    calls = [search.run(Effort(work=100_000)) for _ in range(60)]
    found = next(offsets for offsets in calls if offsets is not None)
    assert calls[0] is None
    assert is_valid(instance.spans, found, instance.capacity)


# -- the command -----------------------------------------------------------------------------------------


def write(path: Path, buffers: Spans) -> str:
    lines = ["id,lower,upper,size", *(f"{i},{a},{b},{c}" for i, (a, b, c) in enumerate(buffers))]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_the_tool_says_what_is_proven(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [write(tmp_path / "in.csv", ABOVE_THE_BOUND), "--capacity", "6"])
    assert done.exit_code == 1
    assert done.output.splitlines()[1:] == [
        f"no plan takes less than {optimum(ABOVE_THE_BOUND)}",
        "does not fit the capacity of 6",
    ]


def test_the_tool_fits_a_hard_instance(tmp_path: Path) -> None:
    source = str(DATA / f"D.{HARD['D'].capacity}.csv")
    done = CliRunner().invoke(main, [source, "--capacity", str(HARD["D"].capacity), "--seconds", "8"])
    assert done.exit_code == 0, done.output


def test_the_tool_refuses_two_buffers_with_one_id(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,lower,upper,size\na,0,1,4\nb,0,1,4\na,1,2,4\n")
    done = CliRunner().invoke(main, [str(source)])
    assert done.exit_code == 2
    assert "line 4: a second buffer with the id 'a'" in done.output


def test_so_does_the_checker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.csv"
    plan.write_text("id,lower,upper,size,offset\na,0,1,4,0\na,1,2,4,0\n")
    assert memory_check.main([str(plan)]) == 2
    assert "line 3: a second buffer with the id a" in capsys.readouterr().err
