"""Profiles name the user's lines; the measured peak is exact where it can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import runtime
from models import mlp, resnet
from runtime.onnx_profile import place_of
from runtime.peak import measured_peak
from runtime.profile import Profile, chrome_trace, profile
from runtime.recorders import Event, line_nodes


def test_eager_ops_have_their_module_and_line() -> None:
    rows = profile(mlp.small(), mlp.example_inputs(1, "small")).rows()
    source = Path(mlp.__file__).read_text().splitlines()
    linears = [row for row in rows if row["op"] == "aten.addmm"]
    assert {row["module"] for row in linears} == {"hidden.0", "hidden.1", "head"}
    assert {row["file"] for row in rows} == {"models/mlp.py"}
    for row in linears:
        assert "head" in source[row["line"] - 1] or "linear(x)" in source[row["line"] - 1]
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    assert [row["microseconds"] for row in rows] == sorted((r["microseconds"] for r in rows), reverse=True)


def test_ops_on_one_line_of_one_module_are_one_row() -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(4):
                x = torch.sin(x)
            return x

    (row,) = profile(Loop(), (torch.randn(8),)).rows()
    assert (row["op"], row["calls"]) == ("aten.sin", 4)
    assert row["file"].endswith("test_profile.py")


def test_hooks_are_taken_away_also_after_an_error() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch._C._len_torch_dispatch_stack():
                raise RuntimeError("only when profiled")
            return x

    with pytest.raises(RuntimeError, match="only when profiled"):
        profile(Fails(), (torch.randn(2),))
    assert torch._C._len_torch_dispatch_stack() == 0
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_a_compiled_model_has_a_row_for_each_node() -> None:
    model, args = resnet.small(), resnet.example_inputs(1, "small")
    f = runtime.compile(model, args, backend="aten")
    made = profile(f, args, runs=2)
    assert len(made.events) == len(f.graph.nodes)
    assert {e.file for e in made.events} == {"models/resnet.py"}
    assert any("conv1" in e.module for e in made.events)
    starts = [e.start for e in made.events]
    assert starts == sorted(starts)


def test_lines_of_a_generated_module_belong_to_nodes() -> None:
    model, args = resnet.small(), resnet.example_inputs(1, "small")
    f = runtime.compile(model, args, backend="aten")
    owner = line_nodes(f.graph, f.executable.module, f.source)
    assert set(owner.values()) == set(f.graph.nodes)
    lines = f.source.splitlines()
    for line, node in owner.items():
        if node.origin.modules and "#" in lines[line - 1]:
            assert node.origin.modules[0] in lines[line - 1]


def test_a_module_of_another_graph_is_refused() -> None:
    f = runtime.compile(mlp.small(), mlp.example_inputs(1, "small"), backend="aten")
    other = runtime.compile(resnet.small(), resnet.example_inputs(1, "small"), backend="aten")
    with pytest.raises(ValueError, match="lines for"):
        line_nodes(other.graph, f.executable.module, f.source)


def test_an_eager_compiled_model_is_profiled_as_eager() -> None:
    args = mlp.example_inputs(1, "small")
    f = runtime.compile(mlp.small(), args, backend="eager")
    assert {e.module for e in profile(f, args).events if e.op == "aten.addmm"} == {
        "hidden.0",
        "hidden.1",
        "head",
    }


def test_kernels_of_onnx_runtime_have_their_module_and_line() -> None:
    args = mlp.example_inputs(1, "small")
    made = profile(runtime.compile(mlp.small(), args, backend="onnx"), args, runs=3)
    placed = [e for e in made.events if e.module]
    assert {"hidden.0", "hidden.1", "head"} <= {name for e in placed for name in e.module.split(", ")}
    assert {e.file for e in placed} == {"models/mlp.py"}


def test_a_kernel_belongs_to_the_longest_name() -> None:
    places = {"a/Conv": ("a", "f.py", 1), "a/Conv_1": ("b", "f.py", 2)}
    assert place_of("a/Conv", places)[0] == "a"
    assert place_of("a/Conv_1_nchwc", places)[0] == "b"
    assert place_of("a/Conv/FusedConv", places)[0] == "a"
    assert place_of("fused a/Conv_1", places)[0] == "b"
    assert place_of("a/Convolution", places) == ("", "", 0)
    assert place_of("ReorderOutput_token_3", places) == ("", "", 0)


def test_a_chrome_trace_is_json_with_a_process_a_side(tmp_path: Path) -> None:
    made = Profile((Event("%0", "aten.relu", "act", "net.py", 7, 1.5, 2.5),))
    chrome_trace(tmp_path / "trace.json", {"eager": made, "optimized": made})
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [e["args"]["name"] for e in events if e["ph"] == "M"] == ["eager", "optimized"]
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["pid"] for e in spans} == {1, 2}
    assert spans[0]["args"] == {"value": "%0", "module": "act", "line": "net.py:7"}
    assert (spans[0]["ts"], spans[0]["dur"]) == (1.5, 2.5)
    made.chrome_trace(tmp_path / "one.json", "eager")
    assert json.loads((tmp_path / "one.json").read_text())["displayTimeUnit"] == "ms"


KILO = 4096  # bytes of the tensors below


def test_the_peak_counts_transients_only() -> None:
    def f(x: Tensor) -> Tensor:
        a = torch.sin(x)
        b = torch.cos(a)
        del a
        c = torch.sin(b)
        return torch.neg(c)

    x = torch.randn(KILO // 4)
    assert measured_peak(f, (x,)) == 2 * KILO
    assert measured_peak(f, (x,), include_results=True) == 3 * KILO


def test_results_are_left_out_unless_asked_for() -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(x), torch.cos(x)[:10]

    x = torch.randn(KILO // 4)
    assert measured_peak(f, (x,)) == 0
    assert measured_peak(f, (x,), include_results=True) == 2 * KILO


def test_the_peak_leaves_inputs_alone_and_counts_an_arena() -> None:
    class Module:
        arenas: list[Tensor] = []

    class Executable:
        module = Module

    class Planned:
        executable = Executable

        def __call__(self, x: Tensor) -> Tensor:
            arena = Module.arenas.pop() if Module.arenas else torch.empty(KILO, dtype=torch.uint8)
            torch.sin(x, out=arena.view(torch.float32))
            Module.arenas.append(arena)
            return x.neg_()

    x = torch.randn(KILO // 4)
    before = x.clone()
    assert measured_peak(Planned(), (x,)) == KILO
    assert torch.equal(x, before)


def test_the_profiler_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    measured_peak(torch.relu, (torch.randn(4),))
    assert capfd.readouterr() == ("", "")


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        return torch.cond(y.sum() > 0, lambda t: torch.relu(t + 1), lambda t: t - 1, (y,))


@pytest.mark.parametrize("backend", ["aten", "eager"])
def test_a_higher_order_op_is_timed_as_a_whole(backend: str) -> None:
    args = (torch.ones(4),)
    model = Branches()
    f = runtime.compile(model, args, backend=backend)
    for side in (model, f):
        assert "higher_order.cond" in {row["op"] for row in profile(side, args).rows()}


class Counts(nn.Module):
    """A buffer that it writes to in place, and one that it replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        self.last = self.last + x
        return self.last / self.n


@pytest.mark.parametrize("backend", ["aten", "eager"])
def test_measuring_leaves_buffers_as_they_were(backend: str) -> None:
    model, args = Counts(), (torch.ones(4),)
    held = dict(model.named_buffers())
    f = runtime.compile(model, args, backend=backend)
    for side in (model, f):
        profile(side, args)
        measured_peak(side, args)
        assert all(buffer is held[name] for name, buffer in model.named_buffers())
        assert not any(buffer.any() for buffer in held.values())
