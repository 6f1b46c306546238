"""What the generated source looks like, and that it stands alone, whatever the graph is called."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from capture import Graph, capture
from capture.errors import UnsupportedOpError
from capture.ir import Constant
from codegen import python
from passes.fuse import Fuse
from runtime.executables import bound_constants, load_module
from tests.handmade import inputs_of, parse, run


def emitted(graph: Graph) -> str:
    """The source, which must be the same each time and compile without a warning."""
    source = python.emit(graph)
    assert python.emit(graph) == source
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile(source, "<test>", "exec")
    return source


def called(graph: Graph, *args: object) -> list[object]:
    module = load_module(emitted(graph), "test")
    module.load(bound_constants(graph))
    with torch.no_grad():
        return module.forward(*args)


def body(graph: Graph) -> list[str]:
    """The lines of `forward`, comments left out."""
    lines = emitted(graph).split("def forward(")[1].splitlines()[2:]
    return [line.split("  #")[0].strip() for line in lines]


def test_the_whole_module() -> None:
    graph = parse(
        """
        graph(%x: f32[N, 3], %r: f32[N, 4]) where N in [1, 64]
          @fc.weight: f32[4, 3]
          @fc.bias: f32[4]
          @scale: f32[4]
          %0: f32[N, 4] = aten.linear(%x, @fc.weight, @fc.bias)     # fc  model.py:7
          %1: f32[N, 4] = aten.add.Tensor(%0, %r)                   # net  model.py:8
          %2: f32[N, 4] = aten.mul.Tensor(%1, @scale)               # net  model.py:8
          %3: f32[N, 4] = aten.tanh(%2)                             # act  model.py:9
          %4: f32[2*N, 2] = aten.reshape(%3, [2*N, 2])
          return %4
        """
    )
    graph.name, graph.frontend = "Net", "torch.export"
    assert emitted(run(graph, ["fuse", "lower"])).splitlines() == [
        "# Net, captured by torch.export. Runs without torch-capture: load(state), then forward(...).",
        "",
        "from types import SimpleNamespace",
        "",
        "import torch",
        "import torch.nn.functional as F",
        "",
        "aten = torch.ops.aten",
        "linear_binary = torch.ops.mkldnn._linear_pointwise.binary  # ... with another tensor",
        "pack_linear = torch.ops.mkldnn._reorder_linear_weight",
        "",
        "w = SimpleNamespace()  # weights, set by load()",
        "",
        "",
        "def load(state):",
        '    """Take the weights from `state` (name -> tensor) and pack them for their kernels."""',
        '    w.fc_bias = state["fc.bias"]',
        '    w.fc_weight_linear = pack_linear(state["fc.weight"])',
        '    w.scale = state["scale"]',
        "",
        "",
        "def forward(x, r):",
        '    """f32[N, 3], f32[N, 4] -> f32[2*N, 2]"""',
        "    N = x.shape[0]",
        line(
            'v0 = linear_binary(x, r, w.fc_weight_linear, w.fc_bias, "add")',
            "f32[N, 4]   fc, net  model.py:7,8",
        ),
        "    v1_0 = torch.mul(v0, w.scale)",
        line("v1 = torch.tanh(v1_0, out=v1_0); del v1_0; del v0", "f32[N, 4]   net, act  model.py:8,9"),
        line("v2 = torch.reshape(v1, [2*N, 2]); del v1", "f32[2*N, 2]"),
        "    return [v2]",
    ]


def line(code: str, comment: str) -> str:
    """A line of `forward`."""
    return f"    {code.ljust(100)}  # {comment}"


def test_a_region_without_a_kernel_reuses_its_temporaries() -> None:
    graph = parse(
        """
        graph(%x: f32[4], %y: f32[4])
          %0: f32[4] = aten.exp(%x)
          %1: f32[4] = aten.neg(%0)
          %2: f32[4] = aten.abs(%1)
          %3: f32[4] = aten.selu(%2)
          %4: f32[4] = aten.frac(%3)
          %5: f32[4] = aten.logit(%4)
          %6: f32[4] = aten.add.Tensor(%5, %y)
          return %6
        """
    )
    x, y = inputs_of(graph)
    fused = run(graph, [Fuse(target="gpu")])  # for a CPU it would be cut where an operator allocates
    assert len(fused.nodes) == 1
    (got,) = called(fused, x, y)
    torch.testing.assert_close(got, graph.run(x, y), equal_nan=True)
    lines = body(fused)
    assert all("out=" in line for line in lines[1:3])  # neg and abs go where exp was
    assert torch.equal(x, inputs_of(graph)[0])


def test_a_temporary_that_cannot_be_written_over_is_not_named_later() -> None:
    """An operator without out= in the middle of a region: what follows must not write to a deleted name."""
    graph = parse(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.exp(%x)
          %1: f32[4] = aten.rad2deg(%0)
          %2: f32[4] = aten.neg(%1)
          %3: f32[4] = aten.deg2rad(%2)
          %4: f32[4] = aten.abs(%3)
          %5: f32[4] = aten.mul.Tensor(%4, %x)
          return %5
        """
    )
    (x,) = inputs_of(graph)
    for passes in (["fuse"], ["fuse", "memory"]):
        after = run(graph, passes)
        torch.testing.assert_close(called(after, x), [graph.run(x)])


def test_region_of_several_results() -> None:
    graph = parse(
        """
        graph(%x: f32[2, 4])
          %0: f32[2, 4], %1: f32[2], %2: f32[2, 4] = fusion.other(%x) {
            ^(%a: f32[2, 4])
            %b: f32[2, 4] = aten.exp(%a)
            %c: f32[2], %d: i64[2] = aten.max.dim(%b, 1)
            %e: f32[2, 4] = aten.neg(%b)
            return %b, %c, %e
          }
          return %0, %1, %2
        """
    )
    (x,) = inputs_of(graph)
    torch.testing.assert_close(called(graph, x), list(graph.run(x)))


# -- names ------------------------------------------------------------------------------------------------


def test_several_results_and_unused_ones() -> None:
    graph = parse(
        """
        graph(%x: f32[4, 6])
          %0: f32[4, 2], %1: f32[4, 2], %2: f32[4, 2] = aten.split.Tensor(%x, 2, 1)
          %3: f32[4, 6] = aten.split.Tensor(%x, 6, 1)
          %4: f32[4], %5: i64[4] = aten.max.dim(%x, 1)
          %6: f32[4, 6], %7: f32[4, 1], %8: f32[4, 1] = aten.native_layer_norm(%x, [6], None, None, 1e-05)
          return %1, %3, %5, %6
        """
    )
    (x,) = inputs_of(graph)
    torch.testing.assert_close(called(graph, x), list(graph.run(x)))
    lines = body(graph)
    assert lines[0] == "v0, v1, v2 = aten.split.Tensor(x, 2, 1); del v0, v2"
    assert lines[1] == "v3, = aten.split.Tensor(x, 6, 1)"


def test_values_are_let_go_where_they_die() -> None:
    graph = parse(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.exp(%x)
          %1: f32[4] = aten.neg(%0)
          %2: f32[4] = aten.abs(%0)
          %3: f32[4] = aten.mul.Tensor(%1, %2)
          return %1, %3
        """
    )
    assert body(graph) == [
        "v0 = torch.exp(x)",
        "v1 = torch.neg(v0)",
        "v2 = torch.abs(v0); del v0",
        "v3 = torch.mul(v1, v2); del v2",
        "return [v1, v3]",
    ]


class Branches(nn.Module):
    """Conditions in both branches of a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def small(y: torch.Tensor) -> torch.Tensor:
            return torch.cond(y.sum() > -1, lambda z: self.fc(z), lambda z: z * 3, [y])

        def large(y: torch.Tensor) -> torch.Tensor:
            return torch.cond(y.sum() > 10, lambda z: z - 1, lambda z: torch.relu(self.fc(z)), [y])

        first = torch.cond(x.sum() > 0, large, small, [x])
        return first, torch.cond(first.sum() > 0, lambda z: z + 1, lambda z: z.clone(), [first])

    def plainly(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The same in Python, which torch.cond would have to compile."""
        if x.sum() > 0:
            first = x - 1 if x.sum() > 10 else torch.relu(self.fc(x))
        else:
            first = self.fc(x) if x.sum() > -1 else x * 3
        return [first, first + 1 if first.sum() > 0 else first]


@pytest.mark.parametrize("passes", [[], ["fuse", "lower"]])
def test_conditions_inside_conditions(passes: list[str]) -> None:
    model = Branches().eval()
    batch = torch.export.Dim("N", min=2, max=16)
    graph = run(capture(model, (torch.randn(4, 3),), dynamic_shapes=({0: batch},)), passes)
    module = load_module(emitted(graph), "test")
    module.load(bound_constants(graph))
    for total in (-5.0, -0.5, 1.0, 20.0):  # one for each branch
        for n in (2, 4, 9):
            x = torch.randn(n, 3)
            x = x - x.mean() + total / x.numel()
            with torch.no_grad():
                torch.testing.assert_close(module.forward(x), model.plainly(x))


def test_an_operator_without_a_python_form_is_named_with_its_line() -> None:
    class Rows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            from torch._higher_order_ops.map import map

            return map(lambda row: row.sin() + 1, x)

    graph = capture(Rows(), (torch.ones(2, 3),))
    with pytest.raises(UnsupportedOpError, match=r"higher_order\.map_impl has no Python form") as caught:
        python.emit(graph)
    assert "test_source.py" in (caught.value.where or "")


def test_own_lowerings() -> None:
    op = torch.ops.aten.erf.default
    from codegen.python import ops

    before = dict(ops._TABLE)
    try:
        python.register_lowering(op, lambda args: f"torch.special.erf({', '.join(args)})")
        graph = parse("graph(%x: f32[2])\n  %0: f32[2] = aten.erf(%x)\n  return %0\n")
        assert "v0 = torch.special.erf(x)" in python.emit(graph)
        torch.testing.assert_close(called(graph, torch.ones(2)), [torch.erf(torch.ones(2))])
    finally:
        ops._TABLE.clear()
        ops._TABLE.update(before)


# -- alone ------------------------------------------------------------------------------------------------


def test_a_module_runs_with_torch_alone(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    ).eval()
    x = torch.randn(2, 3, 6, 6)
    graph = run(capture(model, (x,)), ["fold-batch-norm", "layout", "fuse", "lower", "schedule", "memory"])
    torch.save({"state": bound_constants(graph), "x": x, "want": model(x).detach()}, tmp_path / "data.pt")
    (tmp_path / "model.py").write_text(python.emit(graph, title="a title"))
    (tmp_path / "main.py").write_text(
        "import sys, torch, model\n"
        "data = torch.load('data.pt')\n"
        "model.load(data['state'])\n"
        "(y,) = model.forward(data['x'])\n"
        "torch.testing.assert_close(y, data['want'])\n"
        "ours = {'capture', 'passes', 'codegen', 'runtime', 'viz', 'models'}\n"
        "assert not ours & set(sys.modules), ours & set(sys.modules)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-P",
            "-c",
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import main",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_source_names_every_weight_that_it_needs() -> None:
    graph = parse("graph(%x: f32[2])\n  @w: f32[2]\n  %0: f32[2] = aten.add.Tensor(%x, @w)\n  return %0\n")
    module = load_module(emitted(graph), "test")
    with pytest.raises(KeyError, match="w"):
        module.load({})
    assert isinstance(graph.constants["w"], Constant)
