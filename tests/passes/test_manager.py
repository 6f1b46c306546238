"""The manager, the registry and the pipelines."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import passes.base
from capture.errors import CaptureError, UsageError, VerificationError
from capture.ir import Graph, TensorType
from passes import Pass, PassResult, make_pass, optimize, parse_passes, register_pass, registered
from tests.passes.golden import parse

aten = torch.ops.aten

TEXT = """
graph(%x: f32[3])
  %0: f32[3] = aten.clone(%x)
  %1: f32[3] = aten.exp(%0)
  return %1
"""


@dataclass(frozen=True)
class Breaks(Pass):
    """Claims a wrong type."""

    name = "breaks"

    def run(self, graph: Graph) -> PassResult:
        graph.set_result_type(graph.nodes[0].result, TensorType(torch.float64, (3,)))
        return PassResult(True)


@dataclass(frozen=True)
class Raises(Pass):
    name = "raises"

    def run(self, graph: Graph) -> PassResult:
        raise KeyError("inside")


@dataclass(frozen=True)
class Options(Pass):
    count: int = 3
    ratio: float = 0.5
    wide: bool = False
    mode: str = "plain"
    name = "options"

    def run(self, graph: Graph) -> PassResult:
        return PassResult(False, {"count": self.count})


def test_optimize_works_on_a_copy_and_records_each_pass() -> None:
    graph = parse(TEXT)
    after = optimize(graph, passes=["simplify", "eliminate-dead-code"], verify=True)
    assert str(graph) == TEXT.lstrip()
    assert graph.history == []
    assert [(r.name, r.changed, r.nodes_before, r.nodes_after) for r in after.history] == [
        ("simplify", True, 2, 1),
        ("eliminate-dead-code", False, 1, 1),
    ]
    assert all(r.seconds >= 0 for r in after.history)
    assert after.history[0].stats == {"changes nothing": 1}


@pytest.mark.parametrize("level", passes.PIPELINES)
def test_every_level_names_passes_that_exist(level: int) -> None:
    after = optimize(parse(TEXT), level, verify=True)
    assert [r.name for r in after.history] == list(passes.PIPELINES[level])
    assert set(passes.PIPELINES[level]) <= set(registered())
    assert torch.equal(after.run(torch.ones(3)), torch.ones(3).exp())


def test_disabled_passes_are_left_out() -> None:
    after = optimize(parse(TEXT), 1, disable=["simplify"])
    assert "simplify" not in [r.name for r in after.history]
    assert len(after.nodes) == 2


def test_dumps_and_progress(tmp_path: Path) -> None:
    seen: list[str] = []
    optimize(
        parse(TEXT), passes=["simplify", "fold-constants"], dump_dir=tmp_path / "dump", progress=seen.append
    )
    assert seen == ["simplify", "fold-constants"]
    files = sorted((tmp_path / "dump").iterdir())
    assert [f.name for f in files] == ["00-captured.txt", "01-simplify.txt", "02-fold-constants.txt"]
    assert files[0].read_text() == TEXT.lstrip()
    assert "clone" not in files[1].read_text()


def test_verification_names_the_pass_that_broke_the_graph() -> None:
    with pytest.raises(CaptureError, match=r"the pass breaks failed: %0 is said to be f64\[3\]"):
        optimize(parse(TEXT), passes=[Breaks()], verify=True)
    optimize(parse(TEXT), passes=[Breaks()])


def test_a_graph_that_was_broken_before_is_not_blamed_on_a_pass() -> None:
    graph = parse(TEXT)
    Breaks().run(graph)
    with pytest.raises(VerificationError) as caught:
        optimize(graph, passes=["simplify"], verify=True)
    assert "simplify" not in str(caught.value)


def test_an_exception_carries_the_passs_name() -> None:
    with pytest.raises(KeyError) as caught:
        optimize(parse(TEXT), passes=[Raises()])
    assert caught.value.__notes__ == ["in the pass raises"]


def test_a_pipeline_may_be_given_as_text() -> None:
    after = optimize(parse(TEXT), passes="simplify,eliminate-dead-code")
    assert [r.name for r in after.history] == ["simplify", "eliminate-dead-code"]


def test_what_is_no_graph_is_refused_by_name() -> None:
    model = torch.nn.Linear(2, 2)
    for name, call in (
        ("optimize", lambda: optimize(model)),
        ("prune", lambda: passes.prune(model, method="channels", sparsity=0.5)),
        ("lora", lambda: passes.lora(model)),
        ("optimize", lambda: passes.quantize(model, [])),
    ):
        with pytest.raises(UsageError, match=f"{name} takes a captured graph, not a Linear"):
            call()


def test_a_pass_that_tells_nothing_is_named() -> None:
    @dataclass(frozen=True)
    class Silent(Pass):
        name = "silent"

        def run(self, graph: Graph) -> PassResult:
            return None

    with pytest.raises(CaptureError, match="the pass silent failed: run\\(\\) returned a NoneType"):
        optimize(parse(TEXT), passes=[Silent()])


def test_passes_make_real_constants_inside_a_fake_mode() -> None:
    graph = parse(
        """
        graph(%x: f32[3])
          %0: f32[3] = aten.ones([3])
          %1: f32[3] = aten.add.Tensor(%x, %0)
          return %1
        """
    )
    with FakeTensorMode():
        after = optimize(graph, passes=["fold-constants"])
    assert type(after.constants["ones"].tensor) is torch.Tensor


def test_registering() -> None:
    known = registered()
    assert register_pass(known["simplify"]) is known["simplify"]
    with pytest.raises(ValueError, match="needs a `name`"):
        register_pass(type("Nameless", (Pass,), {}))
    with pytest.raises(ValueError, match=r"registered already: passes\.simplify\.Simplify"):
        register_pass(type("Other", (Pass,), {"name": "simplify"}))
    with pytest.raises(NotImplementedError, match="Pass has no run"):
        Pass().run(Graph())


@pytest.mark.parametrize("first", ["passes.base", "passes.fuse", "passes.memory.plan", "passes.ledger"])
def test_whatever_is_imported_first_every_pass_is_known(first: str) -> None:
    code = f"""
        import {first}
        from passes import PIPELINES, Pass, ledger, make_pass, register_pass
        from passes.memory import plan
        assert callable(ledger) and callable(plan)
        try:
            register_pass(type("Other", (Pass,), {{"name": "schedule", "__module__": "users"}}))
        except ValueError as error:
            print(error)
        print(len([make_pass(name) for names in PIPELINES.values() for name in names]) > 0)
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True)
    told = "a pass named 'schedule' is registered already: passes.schedule.Schedule\nTrue\n"
    assert (done.stdout, done.stderr) == (told, "")


def test_options_from_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(passes.base._REGISTRY, "options", Options)
    assert make_pass("options{count=5, ratio=2, wide=true, mode=fast}") == Options(5, 2.0, True, "fast")
    assert make_pass("options") == make_pass("options{}") == Options()
    assert parse_passes("simplify, options{count=5,wide=1},fuse")[1] == Options(5, wide=True)
    assert parse_passes("") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("simplfy", "there is no pass named 'simplfy'"),
        ("simplify{fast=1}", "the pass 'simplify' has no option 'fast'"),
        ("fold-constants{max_bytes=many}", "'many' is no int"),
        ("fold-constants{max_bytes=1", "cannot read the pass"),
    ],
)
def test_wrong_names_and_options(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_pass(text)
    with pytest.raises(UsageError, match="no optimisation level 7"):
        optimize(parse(TEXT), level=7)
