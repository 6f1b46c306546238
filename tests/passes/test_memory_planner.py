"""The planner against the checker; the checker against counting bytes; both as commands."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from passes import memory_check
from passes.memory import greedy
from passes.memory.__main__ import main
from passes.memory.greedy import Packing, pack
from passes.memory_check import Row, lower_bound, peak, problems

DATA = Path(__file__).parent.parent / "data" / "minimalloc"
CAPACITY = 1_048_576
Buffer = tuple[int, int, int]  # lower, upper, size

BUFFERS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 12), st.integers(0, 50)).map(
        lambda t: (t[0], t[0] + t[1], t[2])
    ),
    max_size=40,
)


def solve(buffers: Sequence[Buffer], **options: object) -> Packing:
    lower, upper, size = ([b[k] for b in buffers] for k in range(3))
    return pack(lower, upper, size, bound=lower_bound(buffers), **options)


def rows(buffers: Sequence[Buffer], offsets: Sequence[int | None]) -> list[Row]:
    return [Row(str(i), *b, offset) for i, (b, offset) in enumerate(zip(buffers, offsets, strict=True))]


def bytes_overlap(placed: Sequence[Row]) -> bool:
    """Whether a byte is taken twice at a step: counted step by step and byte by byte."""
    taken = [
        (step, byte)
        for r in placed
        for step in range(r.lower, r.upper)
        for byte in range(r.offset or 0, (r.offset or 0) + r.size)
    ]
    return len(taken) != len(set(taken))


@given(BUFFERS)
def test_plans_are_valid_and_no_larger_than_needed(buffers: list[Buffer]) -> None:
    found = solve(buffers)
    placed = rows(buffers, found.offsets)
    assert not list(problems(placed, found.peak))
    assert not bytes_overlap(placed)
    assert found.peak == peak(placed)
    assert lower_bound(buffers) <= found.peak <= sum(size for *_, size in buffers)


@given(BUFFERS, st.data())
def test_the_checker_agrees_with_counting_bytes(buffers: list[Buffer], data: st.DataObject) -> None:
    offsets = [data.draw(st.integers(0, 60)) for _ in buffers]
    placed = rows(buffers, offsets)
    assert bool(list(problems(placed))) == bytes_overlap(placed)
    steps = range(40)
    alive = [sum(size for lower, upper, size in buffers if lower <= step < upper) for step in steps]
    assert lower_bound(buffers) == max(alive)


@given(BUFFERS)
def test_the_same_input_gives_the_same_plan(buffers: list[Buffer]) -> None:
    assert solve(buffers) == solve(buffers)


@given(BUFFERS)
def test_lists_and_whole_arrays_give_the_same_plan(buffers: list[Buffer]) -> None:
    by_lists, by_arrays = (_with_crowds_of(neighbours, buffers) for neighbours in (10**9, -1))
    assert by_lists == by_arrays


def _with_crowds_of(neighbours: int, buffers: list[Buffer]) -> Packing:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy, "CROWDED", neighbours)
        return solve(buffers)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 50)), max_size=30))
def test_buffers_that_do_not_meet_share_the_floor(buffers: list[tuple[int, int]]) -> None:
    apart = [(2 * i, 2 * i + 1, size) for i, (_, size) in enumerate(buffers)]
    assert set(solve(apart).offsets) <= {0}


def cut(rng: random.Random, lower: int, upper: int, size: int, pieces: int) -> list[Buffer]:
    """A capacity x time rectangle cut into buffers: a plan that takes just `size` bytes exists."""
    if pieces == 1:
        return [(lower, upper, size)]
    left = rng.randint(1, pieces - 1)
    if rng.random() < 0.5 and upper - lower >= 2:
        at = rng.randint(lower + 1, upper - 1)
        return cut(rng, lower, at, size, left) + cut(rng, at, upper, size, pieces - left)
    if size < 2:
        return [(lower, upper, size)]
    at = rng.randint(1, size - 1)
    return cut(rng, lower, upper, at, left) + cut(rng, lower, upper, size - at, pieces - left)


@pytest.mark.parametrize("pieces", [2, 5, 20, 80])
def test_cut_rectangles(pieces: int) -> None:
    ratios = []
    for seed in range(20):
        rng = random.Random(seed)
        buffers = cut(rng, 0, 100, 4096, pieces)
        rng.shuffle(buffers)
        found = solve(buffers)
        assert not list(problems(rows(buffers, found.offsets), found.peak))
        assert lower_bound(buffers) == 4096
        ratios.append(found.peak / 4096)
    assert min(ratios) >= 1.0
    assert sum(ratios) / len(ratios) <= 1.16


def read(name: str) -> list[Buffer]:
    lines = (DATA / f"{name}.{CAPACITY}.csv").read_text().splitlines()[1:]
    return [tuple(map(int, line.split(",")[1:])) for line in lines]


@pytest.mark.parametrize("name", "ABCDEF")
def test_hard_instances_are_placed_validly_if_not_within_the_capacity(name: str) -> None:
    buffers = read(name)
    found = solve(buffers)
    assert not list(problems(rows(buffers, found.offsets), found.peak))
    assert lower_bound(buffers) <= CAPACITY
    assert found.peak <= 1.37 * lower_bound(buffers)


def test_a_plan_at_the_bound_is_not_searched_further() -> None:
    """Any bound that the first order meets gives the first order's plan."""
    buffers = read("A")
    lower, upper, size = ([b[k] for b in buffers] for k in range(3))
    first = pack(lower, upper, size, bound=10 * CAPACITY)
    best = pack(lower, upper, size)
    assert best.peak < first.peak
    assert pack(lower, upper, size, seconds=0) == first


# -- the commands ----------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


EASY = "id,lower,upper,size\na,0,2,4\nb,1,3,4\nc,2,4,4\n"


def test_the_tool_writes_offsets_that_the_checker_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = write(tmp_path / "in.csv", EASY), tmp_path / "out.csv"
    done = CliRunner().invoke(main, [str(source), "--capacity", "8", "--seconds", "1", "-o", str(target)])
    assert done.exit_code == 0, done.output
    assert "peak 8  lower bound 8  gap 0.00%" in done.output
    assert "fits the capacity of 8" in done.output
    assert target.read_text().splitlines()[0] == "id,lower,upper,size,offset"
    assert memory_check.main([str(target), "--capacity", "8"]) == 0
    assert capsys.readouterr().out == "valid: 3 buffers, peak 8, lower bound 8\n"
    assert memory_check.main([str(target), "--capacity", "7"]) == 1


def test_the_tool_exits_1_where_the_plan_does_not_fit_and_still_writes_it(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.csv", EASY), tmp_path / "out.csv"
    done = CliRunner().invoke(main, [str(source), "--capacity", "7", "-o", str(target)])
    assert done.exit_code == 1
    assert "does not fit" in done.output
    assert target.exists()


def test_the_tool_keeps_other_columns_and_replaces_old_offsets(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "id,offset,lower,upper,size,note\na,9,0,2,4,first\n")
    target = tmp_path / "out.csv"
    assert CliRunner().invoke(main, [str(source), "-o", str(target)]).exit_code == 0
    assert target.read_text() == "id,offset,lower,upper,size,note\na,0,0,2,4,first\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,lower,size\na,0,4\n", "no column upper"),
        ("", "no column"),
        ("id,lower,upper,size\na,0,x,4\n", "line 2"),
        ("id,lower,upper,size\na,0,1,4\nb,0\n", "line 3"),
        ("id,lower,upper,size\na,2,2,4\n", "lower < upper"),
        ("id,lower,upper,size\na,0,2,-4\n", "size >= 0"),
        ("id,lower,upper,size\n\n\na,0,1,4\na,1,2,4\n", "line 5: a second buffer with the id 'a'"),
        ("id,lower,upper,size\na,0,1,4,5\n", "line 2: more fields than columns"),
        ("id,lower,upper,size,size\na,0,1,4,5\n", "two columns of one name"),
    ],
)
def test_the_tool_refuses_what_is_no_table_of_buffers(tmp_path: Path, text: str, message: str) -> None:
    target = tmp_path / "out.csv"
    done = CliRunner().invoke(main, [str(write(tmp_path / "in.csv", text)), "-o", str(target)])
    assert done.exit_code == 2
    assert message in done.output
    assert not target.exists()


def test_the_tool_reads_what_spreadsheets_write(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(b"\xef\xbb\xbfid, lower, upper, size\r\na, 0, 2, 4\r\n")
    target = tmp_path / "out.csv"
    assert CliRunner().invoke(main, [str(source), "-o", str(target)]).exit_code == 0
    assert target.read_text() == "id,lower,upper,size,offset\na,0,2,4,0\n"
    assert memory_check.main([str(target)]) == 0


def test_the_tool_searches_for_a_number_of_seconds(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [str(write(tmp_path / "in.csv", EASY)), "--seconds", "nan"])
    assert (done.exit_code, "--seconds must be a number" in done.output) == (2, True)


def test_the_tool_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [str(tmp_path / "none.csv")])
    assert done.exit_code == 2
    assert "none.csv" in done.output


def test_no_buffers(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, [str(write(tmp_path / "in.csv", "id,lower,upper,size\n")), "--capacity", "0"]
    )
    assert (done.exit_code, done.output.splitlines()[0]) == (0, "0 buffers: peak 0  lower bound 0  gap 0.00%")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a,0,2,4,0\nb,1,3,4,2\n", "a [0, 4) and b [2, 6) overlap, both alive at step 1"),
        ("a,0,2,4,-1\n", "negative offset"),
        ("a,0,2,4,6\n", "past the capacity"),
    ],
)
def test_the_checker_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, found: str
) -> None:
    plan = write(tmp_path / "plan.csv", "id,lower,upper,size,offset\n" + text)
    assert memory_check.main([str(plan), "--capacity", "8"]) == 1
    assert found in capsys.readouterr().out


def test_buffers_that_only_touch_do_not_overlap() -> None:
    touching = [Row("a", 0, 2, 4, 0), Row("b", 2, 3, 4, 0), Row("c", 0, 2, 4, 4), Row("d", 0, 3, 0, 2)]
    assert list(problems(touching)) == []
    assert list(problems([Row("a", 0, 2, 4, None)])) == ["a has no offset"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("a,0,1,4", "line 2: not a buffer"),
        ("a,0,1,4,", "line 2: not a buffer"),
        ("a,1,1,4,0", "line 2: not a buffer"),  # alive at no step: it would overlap nothing
        ("a,0,1,-4,0", "line 2: not a buffer"),
        ("a,0,1,4,0,0", "line 2: not a buffer"),
        ("a,0,1,4,0\na,1,2,4,0", "line 3: a second buffer with the id a"),
        ("a" * 200_000 + ",0,1,4,0", "field larger than field limit"),
    ],
)
def test_the_checker_refuses_what_is_no_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, why: str
) -> None:
    plan = write(tmp_path / "plan.csv", f"id,lower,upper,size,offset\n{row}\n")
    assert memory_check.main([str(plan)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: cannot read {plan}: ")
    assert why in told


def test_the_checker_names_missing_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert memory_check.main([str(write(tmp_path / "plan.csv", "id,lower,upper,size\na,0,1,4\n"))]) == 2
    assert "no column offset" in capsys.readouterr().err


def test_both_commands_run_as_modules(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.csv", EASY), tmp_path / "out.csv"
    for arguments in (
        ["passes.memory", str(source), "-o", str(target)],
        ["passes.memory_check", str(target)],
    ):
        done = subprocess.run(
            [sys.executable, "-W", "error::RuntimeWarning", "-m", *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""


@pytest.mark.parametrize("command", ["passes.memory.__main__", "passes.memory_check"])
def test_the_commands_need_no_pytorch(command: str) -> None:
    code = f"import sys, {command}; print({{'torch', 'sympy', 'capture.ir'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
