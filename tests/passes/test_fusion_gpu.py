"""Fusion for a GPU, where a region is one kernel: reductions, results that others use too, prologues."""

from __future__ import annotations

from pathlib import Path

import networkx
import pytest
import torch
from hypothesis import given, settings

from capture import Graph, capture
from capture.ir import Fusion
from codegen import onnx, python
from passes import ledger
from passes.fuse import Fuse
from passes.fusion import partition, target_of
from runtime.executables import bound_constants, load_module
from tests.handmade import inputs_of, kinds, parse, run
from tests.random_graphs import Case, assert_same_results, cases

GPU = Fuse(target="gpu")


def fused(text: str) -> list[str]:
    """The kinds after fusion for a GPU; the graph means the same, run as it is and as generated code."""
    graph = parse(text)
    after = run(graph, [GPU])
    assert_same_results(Case(graph, 1), after, exact=True)
    assert str(Graph.parse(str(after))) == str(after)
    code = load_module(python.emit(run(after, ["memory"])), "test")
    code.load(bound_constants(after))
    args = inputs_of(graph)
    want = graph.run(*args)
    want = list(want) if isinstance(want, (list, tuple)) else [want]
    for a, b in zip(code.forward(*args), want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    return kinds(after)


RMS_NORM = """
    graph(%x: f32[2, 3, 8])
      @w: f32[8]
      %0: f32[2, 3, 8] = aten.pow.Tensor_Scalar(%x, 2)
      %1: f32[2, 3, 1] = aten.mean.dim(%0, [-1], True)
      %2: f32[2, 3, 1] = aten.add.Tensor(%1, 1e-05)
      %3: f32[2, 3, 1] = aten.rsqrt(%2)
      %4: f32[2, 3, 8] = aten.mul.Tensor(%x, %3)
      %5: f32[2, 3, 8] = aten.mul.Tensor(%4, @w)
      return %5
    """


def test_a_norm_in_parts_is_one_kernel() -> None:
    assert fused(RMS_NORM) == ["fusion.reduction(pow mean add rsqrt mul mul)"]


def test_several_reductions_of_the_same_rows() -> None:
    text = """
        graph(%x: bf16[4, 8])
          %0: f32[4, 8] = aten._to_copy(%x, dtype=torch.float32)
          %1: f32[4, 1] = aten.mean.dim(%0, [1], True)
          %2: f32[4, 8] = aten.sub.Tensor(%0, %1)
          %3: f32[4, 1] = aten.var.correction(%0, [-1], correction=0, keepdim=True)
          %4: f32[4, 1] = aten.add.Tensor(%3, 1e-05)
          %5: f32[4, 1] = aten.sqrt(%4)
          %6: f32[4, 8] = aten.div.Tensor(%2, %5)
          %7: bf16[4, 8] = aten._to_copy(%6, dtype=torch.bfloat16)
          return %7
        """
    assert fused(text) == ["fusion.reduction(_to_copy mean sub var add sqrt div _to_copy)"]


@pytest.mark.parametrize(
    ("call", "made"),
    [
        ("aten.softmax.int(%0, -1)", "f32[3, 4, 8]"),
        ("aten.log_softmax.int(%0, 1)", "f32[3, 4, 8]"),
        ("aten.layer_norm(%0, [8])", "f32[3, 4, 8]"),
        ("aten.layer_norm(%0, [4, 8])", "f32[3, 4, 8]"),
        ("aten.rms_norm(%0, [8])", "f32[3, 4, 8]"),
        ("aten.group_norm(%0, 2)", "f32[3, 4, 8]"),
        ("aten.logsumexp(%0, [2])", "f32[3, 4]"),
        ("aten.sum.dim_IntList(%0, [0, 2])", "f32[4]"),
        ("aten.amax(%0, [1], True)", "f32[3, 1, 8]"),
        ("aten.linalg_vector_norm(%0)", "f32[]"),
        ("aten.mean(%0)", "f32[]"),
    ],
)
def test_every_reduction_takes_what_is_before_and_after_it(call: str, made: str) -> None:
    text = f"""
        graph(%x: f32[3, 4, 8])
          %0: f32[3, 4, 8] = aten.mul.Tensor(%x, 2)
          %1: {made} = {call}
          %2: {made} = aten.neg(%1)
          return %2
        """
    name = call.split("(")[0].split(".")[1]
    assert fused(text) == [f"fusion.reduction(mul {name} neg)"]


def test_a_loss_takes_the_scale_before_it() -> None:
    graph = parse(
        """
        graph(%x: f32[4, 8], %t: i64[4])
          %0: f32[4, 8] = aten.div.Tensor(%x, 2)
          %1: f32[] = aten.cross_entropy_loss(%0, %t)
          return %1
        """
    )
    after = run(graph, [GPU])
    assert kinds(after) == ["fusion.reduction(div cross_entropy_loss)"]
    x, target = torch.randn(4, 8), torch.tensor([0, 7, 3, 3])
    torch.testing.assert_close(after.run(x, target), graph.run(x, target), rtol=0, atol=0)


RESIDUAL = """
    graph(%x: f32[4, 8], %r: f32[4, 8])
      @w: f32[8, 8]
      %0: f32[4, 8] = aten.add.Tensor(%x, %r)
      %1: f32[4, 8] = aten.layer_norm(%0, [8])
      %2: f32[4, 8] = aten.linear(%1, @w)
      %3: f32[4, 8] = aten.add.Tensor(%2, %0)
      return %3
    """


def test_a_region_returns_what_is_used_after_it_too() -> None:
    after = run(parse(RESIDUAL), [GPU])
    assert kinds(after) == ["fusion.reduction(add layer_norm)", "fusion.linear(linear add)"]
    assert len(after.nodes[0].results) == 2
    fused(RESIDUAL)


def test_a_region_of_two_results_exports_to_onnx(tmp_path: Path) -> None:
    import onnxruntime

    graph = parse(RESIDUAL)
    onnx.export(run(graph, [GPU]), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x, r = inputs_of(graph)
    (got,) = session.run(None, {"x": x.numpy(), "r": r.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), graph.run(x, r))


def test_but_not_what_is_wanted_before_it_ends() -> None:
    text = """
        graph(%x: f32[4, 8])
          %0: f32[4, 8] = aten.neg(%x)
          %1: f32[4, 8] = aten.cumsum(%0, 1)
          %2: f32[4, 8] = aten.add.Tensor(%0, %1)
          return %2
        """
    assert fused(text) == ["neg", "cumsum", "add"]


ALONE = {
    "rows along another axis": (
        """
        graph(%x: f32[4, 4])
          %0: f32[4, 4] = aten.softmax.int(%x, 0)
          %1: f32[4, 4] = aten.softmax.int(%0, 1)
          return %1
        """,
        "what reads it reduces along other axes",
    ),
    "a column where rows are reduced": (
        """
        graph(%x: f32[4, 4], %b: f32[4])
          %0: f32[4] = aten.amax(%x, [1])
          %1: f32[4, 4] = aten.mul.Tensor(%x, %0)
          return %1
        """,
        "what reads it has another shape, and computing it once is cheaper",
    ),
    "a broadcast operand": (
        """
        graph(%x: f32[3, 4], %b: f32[4])
          %0: f32[4] = aten.exp(%b)
          %1: f32[3, 4] = aten.mul.Tensor(%x, %0)
          return %1
        """,
        "what reads it has another shape, and computing it once is cheaper",
    ),
    "a weight of the norm": (
        """
        graph(%x: f32[4, 4], %b: f32[4])
          %0: f32[4] = aten.exp(%b)
          %1: f32[4, 4] = aten.layer_norm(%x, [4], %0)
          return %1
        """,
        "what reads it has another shape, and computing it once is cheaper",
    ),
    "groups have no rows beside them": (
        """
        graph(%x: f32[2, 4, 3])
          %0: f32[2, 4, 3] = aten.group_norm(%x, 2)
          %1: f32[2, 1, 1] = aten.amax(%0, [1, 2], True)
          return %1
        """,
        "what reads it reduces along other axes",
    ),
    "a reduction of what was reduced": (
        """
        graph(%x: f32[2, 4, 3])
          %0: f32[2, 4] = aten.amax(%x, [2])
          %1: f32[2] = aten.amax(%0, [1])
          return %1
        """,
        "what reads it reduces along other axes",
    ),
    "no neighbour that takes part": (
        """
        graph(%x: f32[2, 4])
          %0: f32[2, 4] = aten.neg(%x)
          %1: f32[2, 4] = aten.cumsum(%0, 1)
          return %1
        """,
        "aten.cumsum reads it, which takes in no operator before it",
    ),
}


@pytest.mark.parametrize("why", ALONE)
def test_stays_alone_and_the_reason_is_told(why: str) -> None:
    text, reason = ALONE[why]
    graph = parse(text)
    assert not [k for k in fused(text) if "fusion" in k]
    _, alone = partition(graph, target_of(graph, "gpu"))
    assert reason in alone.values()


def test_a_kernel_reads_no_more_than_so_many_tensors() -> None:
    names = "abcdefgh"
    inputs = ", ".join(f"%{n}: f32[4]" for n in names)
    lines = [
        f"%{i}: f32[4] = aten.add.Tensor(%{'a' if not i else i - 1}, %{n})" for i, n in enumerate(names[1:])
    ]
    graph = parse(f"graph({inputs})\n" + "\n".join(f"  {line}" for line in lines) + "\n  return %6\n")
    assert [k.count("add") for k in kinds(run(graph, [Fuse(target="gpu", max_inputs=4)]))] == [1, 3, 3]


def test_products_take_what_follows_but_leave_it_to_a_reduction() -> None:
    text = """
        graph(%q: f32[2, 4, 8], %k: f32[2, 8, 4], %m: f32[4, 4])
          %0: f32[2, 4, 4] = aten.bmm(%q, %k)
          %1: f32[2, 4, 4] = aten.mul.Tensor(%0, 0.5)
          %2: f32[2, 4, 4] = aten.add.Tensor(%1, %m)
          %3: f32[2, 4, 4] = aten.softmax.int(%2, -1)
          %4: f32[2, 4, 8] = aten.bmm(%3, %q)
          %5: f32[2, 4, 8] = aten.relu(%4)
          return %5
        """
    assert fused(text) == ["bmm", "fusion.reduction(mul add softmax)", "fusion.matmul(bmm relu)"]


@pytest.mark.parametrize(
    ("given", "before", "kinds_"),
    [
        ("bf16[4, 8]", "aten._to_copy(%x, dtype=torch.float32)", ["fusion.linear(_to_copy linear)"]),
        ("f32[4, 8]", "aten.mul.Tensor(%x, 0.125)", ["fusion.linear(mul linear)"]),
        ("f64[4, 8]", "aten._to_copy(%x, dtype=torch.float32)", ["_to_copy", "linear"]),
        ("f32[4, 8]", "aten.mul.Tensor(%x, %x)", ["mul", "linear"]),
        ("f32[4, 8]", "aten.gelu(%x)", ["gelu", "linear"]),
        ("f32[8]", "aten.mul.Tensor(%x, @ones)", ["mul", "linear"]),
    ],
)
def test_a_cast_that_widens_or_a_scale_goes_into_the_product(
    given: str, before: str, kinds_: list[str]
) -> None:
    ones = "@ones: f32[4, 8]\n          " if "@ones" in before else ""
    text = f"""
        graph(%x: {given})
          {ones}@w: f32[8, 8]
          %0: f32[4, 8] = {before}
          %1: f32[4, 8] = aten.linear(%0, @w)
          return %1
        """
    assert fused(text) == kinds_


def test_a_prologue_that_others_read_stays_out() -> None:
    text = """
        graph(%x: f32[4, 8])
          @w: f32[8, 8]
          %0: f32[4, 8] = aten.mul.Tensor(%x, 0.125)
          %1: f32[4, 8] = aten.linear(%0, @w)
          %2: f32[4, 8] = aten.cumsum(%0, 1)
          return %1, %2
        """
    assert fused(text) == ["mul", "linear", "cumsum"]


def test_the_target_is_where_the_tensors_lie() -> None:
    assert target_of(parse(RMS_NORM)).name == "cpu"
    on_gpu = Graph.parse("graph(%x: f32[4] @cuda:0)\n  return %x\n")
    assert target_of(on_gpu).name == "gpu"
    cpu = parse(RMS_NORM)
    assert not [n for n in run(cpu, ["fuse"]).nodes if n.op == Fusion("reduction")]


def test_the_ledger_tells_why_an_operator_stays_alone() -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = x.exp()
            return y.cumsum(0), y.softmax(-1)

    rows = {r.op: r for r in ledger(run(capture(Twice(), (torch.randn(3, 4),)), ["fuse"]))}
    assert rows["aten.softmax.int"].reason == "not fused: on a CPU a reduction is a call of its own"
    assert (rows["aten.exp"].kind, rows["aten.exp"].pass_name) == ("kept", "fuse")
    assert rows["aten.exp"].reason.startswith("not fused: ")


def test_the_ledger_tells_what_a_region_saves() -> None:
    """Of f32[N, 4]: exp is neither written nor read, the product is written anyway, but not read again."""

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = x.exp() * 2
            return y.softmax(-1), y

    batch = torch.export.Dim("N", min=1, max=64)
    graph = capture(Model(), (torch.randn(3, 4),), dynamic_shapes=({0: batch},))
    rows = ledger(run(graph, [GPU]))
    reason = "into fusion.reduction, which saves 48*N bytes of reads and writes"
    assert [(r.kind, r.reason) for r in rows] == [("fused", reason)] * 3


@settings(max_examples=60)
@given(cases(dynamic=True, max_nodes=16, families=["unary", "binary", "scalar", "reduce", "cast", "linear"]))
def test_any_graph_keeps_its_meaning_and_no_cycle_arises(case: Case) -> None:
    target = target_of(case.graph, "gpu")
    groups, alone = partition(case.graph, target)
    home = {node: i for i, group in enumerate(groups) for node in group.nodes}
    assert len(home) == sum(len(group.nodes) for group in groups)
    assert not set(home) & set(alone)
    quotient = networkx.DiGraph()
    for node in case.graph.nodes:
        for value in node.operand_values:
            a, b = (home.get(n, n) for n in (value.producer, node))
            if value.producer is not None and a != b:
                quotient.add_edge(a, b)
    assert networkx.is_directed_acyclic_graph(quotient)
    after = run(case.graph, [GPU])
    assert_same_results(case, after, exact=True)
    assert str(Graph.parse(str(after))) == str(after)
