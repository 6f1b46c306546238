"""What the generated source looks like, and that it stands alone, whatever the graph is called."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capture import Graph, capture
from capture.errors import UnsupportedOpError
from capture.ir import Constant, LiteralType, TensorType
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

AWKWARD = [
    "w", "m", "torch", "F", "aten", "lambda", "class", "None", "float", "max", "min", "load", "forward",
    "state", "arenas", "Arena", "conv", "linear", "v0", "v1", "v0_0", "N", "self", "a b", "1st", "x²", "é",
    "", 'x"]\nimport os#', "__debug__", "complex", "list", "true_branch",
]  # fmt: skip


def test_awkward_names_of_inputs_weights_and_sizes() -> None:
    graph = Graph("awkward")
    graph.dims["N"] = Graph.parse("graph(%x: f32[N]) where N in [1, 9]\n  return %x\n").dims["N"]
    n = next(
        iter(Graph.parse("graph(%x: f32[N]) where N in [1, 9]\n  return %x\n").inputs)
    ).tensor_type.shape[0]
    total = None
    add, tensors = torch.ops.aten.add.Tensor, []
    for i, name in enumerate(AWKWARD):
        value = graph.add_input(name, TensorType(torch.float64, (n, 2)))
        tensors.append(torch.full((3, 2), 2.0**i).double())
        total = value if total is None else graph.add_node(add, [total, value]).result
    for i, name in enumerate(AWKWARD):
        constant = graph.add_constant(name, torch.full((2,), -(2.0**i)).double())
        total = graph.add_node(add, [total, constant]).result
    clamped = graph.add_node(torch.ops.aten.clamp.default, [total, -math.inf, math.inf]).result
    graph.set_results([graph.add_node(torch.ops.aten.mul.Tensor, [clamped, n]).result])
    for passes in ([], ["fuse"], ["fuse", "memory"]):
        (got,) = called(run(graph, passes), *tensors)
        torch.testing.assert_close(got, torch.zeros(3, 2).double())


def test_names_of_weights_that_look_alike_stay_apart() -> None:
    """Both are `a_b` in Python."""
    graph = parse(
        """
        graph(%x: f32[2, 3])
          @a.b: f32[3]
          @a_b: f32[3]
          @a.b.linear: f32[3]
          @c: f32[3, 3]
          @c.linear: f32[3]
          @c_linear: f32[3]
          %0: f32[2, 3] = aten.mul.Tensor(%x, @a.b)
          %1: f32[2, 3] = aten.add.Tensor(%0, @a_b)
          %2: f32[2, 3] = aten.add.Tensor(%1, @c.linear)
          %3: f32[2, 3] = aten.linear(%2, @c, @c_linear)
          %4: f32[2, 3] = aten.add.Tensor(%3, @a.b.linear)
          return %4
        """
    )
    (x,) = inputs_of(graph)
    torch.testing.assert_close(called(run(graph, ["lower"]), x), [graph.run(x)])


def test_sizes_named_like_inputs_and_functions() -> None:
    graph = parse(
        """
        graph(%n: f32[k, 2], %k: f32[n], %w: f32[w]) where k in [1, 8], n in [1, 8], w in [1, 8]
          %0: f32[2*k] = aten.reshape(%n, [2*k])
          %1: f32[n] = aten.mul.Tensor(%k, max(k, n + 1, min(w, 3)))
          %2: f32[w] = aten.add.Tensor(%w, inf)
          return %0, %1, %2, w
        """
    )
    a, b, c = torch.randn(3, 2), torch.randn(5), torch.randn(4)
    got = called(graph, a, b, c)
    torch.testing.assert_close(got, [a.reshape(6), b * 6, c + math.inf, 4])


def test_sizes_that_must_be_solved_for() -> None:
    graph = parse(
        """
        graph(%x: f32[2*N - 1, K + N], %y: f32[M + K, 3]) where N in [1, 9], K in [1, 9], M in [1, 9]
          %0: f32[N, M, K] = aten.full([N, M, K], 1.0)
          return %0, N*K % 5, (N + 7)//M
        """
    )
    assert body(graph)[:3] == ["N = (x.shape[0] + 1) // 2", "K = x.shape[1] - N", "M = y.shape[0] - K"]
    for n, k, m in ((1, 1, 1), (4, 2, 7), (9, 9, 3)):
        full, a, b = called(graph, torch.zeros(2 * n - 1, k + n), torch.zeros(m + k, 3))
        assert list(full.shape) == [n, m, k]
        assert (a, b) == (n * k % 5, (n + 7) // m)


@settings(max_examples=60)
@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_no_text_of_the_graph_becomes_code(name: str, title: str, literal: str) -> None:
    graph = Graph(title)
    graph.frontend = title
    x = graph.add_input(name, TensorType(torch.float32, (2,)))
    graph.add_input(name + "_", LiteralType(literal))
    constant = graph.add_constant(name, torch.ones(2))
    graph.set_results([graph.add_node(torch.ops.aten.add.Tensor, [x, constant]).result, literal])
    source = python.emit(graph, title=title)
    module = load_module(source, "test")
    module.load({name: torch.ones(2)})
    assert module.forward(torch.ones(2), literal)[1] == literal
    assert len(source.splitlines()) == source.count("\n")


def test_hostile_text_stays_text() -> None:
    evil = '"""\nraise SystemExit\n"""'
    graph = parse(
        "graph(%x: f32[2])\n  @w: f32[2]\n  %0: f32[2] = aten.add.Tensor(%x, @w)  # a.py:1\n  return %0\n"
    )
    graph.name = graph.frontend = evil
    graph.inputs[0].name = evil
    renamed = graph.add_constant(evil + '"]', torch.ones(2))
    graph.replace_uses(graph.constants["w"], renamed)
    graph.add_input("mode", LiteralType(evil))
    graph.set_results([*graph.results, evil, "\\", '"'])
    assert called(graph, torch.ones(2), evil)[1:] == [evil, "\\", '"']


# -- literals ---------------------------------------------------------------------------------------------


def test_floats_that_have_no_literal() -> None:
    graph = parse(
        """
        graph(%x: f32[4])
          %0: f32[4] = aten.clamp(%x, -inf, inf)
          %1: f32[4] = aten.add.Tensor(%0, nan)
          %2: f32[4] = aten.mul.Tensor(%x, -0.0)
          %3: c64[4] = aten.mul.Tensor(%x, complex(nan, -inf))
          %4: c64[4] = aten.mul.Tensor(%x, complex(-0.0, 1.5))
          return %1, %2, %3, %4, inf, -inf, nan, -0.0
        """
    )
    x = torch.ones(4)
    got = called(graph, x)
    want = list(graph.run(x))
    torch.testing.assert_close(got[:4], want[:4], equal_nan=True, rtol=0, atol=0)
    assert torch.signbit(got[1]).all()
    assert got[4:6] == [math.inf, -math.inf]
    assert math.isnan(got[6])
    assert math.copysign(1, got[7]) == -1


def test_dtypes_devices_formats_and_words_as_operands() -> None:
    graph = parse(
        """
        graph(%x: f32[2, 3, 4, 4])
          @w: f32[3, 3, 3, 3]
          %0: f32[2, 3, 4, 4] channels_last = aten.clone(%x, memory_format=torch.channels_last)
          %1: f64[2, 3, 4, 4] channels_last = aten._to_copy(%0, dtype=torch.float64, device=device("cpu"))
          %2: f32[2, 3, 4, 4] = aten.conv2d.padding(%x, @w, None, [1, 1], "same")
          %3: i64[3] = aten.arange(3, device=device("cpu"), pin_memory=False)
          %4: f32[2, 3] = aten.full([2, 3], 1.5, dtype=torch.float32, layout=torch.strided)
          %5: f64[2, 3, 4, 4] = aten.div.Tensor_mode(%1, 0.3, rounding_mode="floor")
          return %2, %3, %4, %5
        """
    )
    (x,) = inputs_of(graph)
    torch.testing.assert_close(called(graph, x), list(graph.run(x)))


def test_results_that_are_no_values() -> None:
    graph = parse(
        """
        graph(%x: f32[N, 2]) where N in [1, 8]
          @w: f32[2]
          return %x, 3, N + 1, None, "a", @w, True
        """
    )
    x = torch.ones(4, 2)
    got = called(graph, x)
    assert got[0] is x
    assert got[1:5] == [3, 5, None, "a"]
    assert got[6] is True


# -- operators with several results, none, or control flow ------------------------------------------------


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
