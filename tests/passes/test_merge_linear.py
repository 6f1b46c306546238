"""Linear layers of one input become one; and when they must not."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from capture import Graph, capture
from capture.ir import Constant
from codegen import onnx, python
from passes import ledger, optimize
from passes.merge_linear import MergeLinear
from runtime.executables import bound_constants, load_module
from tests.handmade import inputs_of, kinds, parse, rewritten, run
from tests.random_graphs import Case, assert_same_results, cases

THREE = """
    graph(%x: f32[N, 5, 4]) where N in [1, 64]
      @a.q.weight: f32[6, 4]
      @a.k.weight: f32[2, 4]
      @a.v.weight: f32[2, 4]
      @a.q.bias: f32[6]
      @a.k.bias: f32[2]
      @a.v.bias: f32[2]
      %0: f32[N, 5, 6] = aten.linear(%x, @a.q.weight, @a.q.bias)
      %1: f32[N, 5, 2] = aten.linear(%x, @a.k.weight, @a.k.bias)
      %2: f32[N, 5, 2, 3] = aten.reshape(%0, [N, 5, 2, 3])
      %3: f32[N, 5, 2] = aten.linear(%x, @a.v.weight, @a.v.bias)
      %4: f32[N, 5, 6] = aten.reshape(%2, [N, 5, 6])
      %5: f32[N, 5, 10] = aten.cat([%4, %1, %3], -1)
      return %5
    """


def test_three_layers_become_one() -> None:
    assert rewritten(THREE, "merge-linear") == (
        "graph(%x: f32[N, 5, 4]) where N in [1, 64]\n"
        "  @a.q_k_v.weight: f32[10, 4]\n"
        "  @a.q_k_v.bias: f32[10]\n"
        "  %0: f32[N, 5, 10] = aten.linear(%x, @a.q_k_v.weight, @a.q_k_v.bias)\n"
        "  %1: f32[N, 5, 6] strided, %2: f32[N, 5, 2] strided, %3: f32[N, 5, 2] strided"
        " = aten.split_with_sizes(%0, [6, 2, 2], -1)\n"
        "  %4: f32[N, 5, 2, 3] strided = aten.reshape(%1, [N, 5, 2, 3])\n"
        "  %5: f32[N, 5, 6] strided = aten.reshape(%4, [N, 5, 6])\n"
        "  %6: f32[N, 5, 10] = aten.cat([%5, %2, %3], -1)\n"
        "  return %6\n"
    )


def test_the_result_is_the_same_and_the_weights_are_those() -> None:
    graph = parse(THREE)
    after = run(graph, ["merge-linear"])
    assert_same_results(Case(graph, 1), after, N=2)
    joined = after.constants["a.q_k_v.weight"].tensor
    parts = [graph.constants[f"a.{name}.weight"].tensor for name in "qkv"]
    assert torch.equal(joined, torch.cat(parts))
    assert after.history[-1].stats == {"merged": 3}


# Most memory is needed at the start, so that it is never what forbids a merge.
PAIR = """
    graph(%x: f32[3, 8], %y: f32[3, 8])
      @p: f32[4, 8]
      @q: f32[4, 8]
      %8: f32[3, 32] = aten.cat([%x, %x, %x, %x], 1)
      %0: f32[3, 4] = aten.linear(%x, @p)
      %1: f32[3, 4] = aten.linear(%x, @q)
      %2: f32[3, 4] = aten.mul.Tensor(%0, 2)
      %3: f32[3, 4] = aten.mul.Tensor(%1, 3)
      return %2, %3
    """


def changed(*replacements: tuple[str, str]) -> str:
    text = PAIR
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return text


def test_the_pair_that_the_refusals_start_from_is_merged() -> None:
    graph = parse(PAIR)
    after = run(graph, ["merge-linear"])
    assert kinds(after) == ["cat", "linear", "split_with_sizes", "mul", "mul"]
    assert_same_results(Case(graph, 1), after)


REFUSED = {
    "another input": changed(("aten.linear(%x, @q)", "aten.linear(%y, @q)")),
    "one has a bias": changed(
        ("@q: f32[4, 8]", "@q: f32[4, 8]\n      @b: f32[4]"), ("(%x, @q)", "(%x, @q, @b)")
    ),
    "a computed weight": changed(
        ("%1: f32[3, 4] = aten.linear(%x, @q)",
         "%9: f32[4, 8] = aten.cumsum(@q, 0)\n      %1: f32[3, 4] = aten.linear(%x, %9)"),
    ),
    "a weight among the inputs": changed(("%y: f32[3, 8]", "%y: f32[4, 8]"), ("(%x, @q)", "(%x, %y)")),
    "a bias among the inputs": changed(
        ("%y: f32[3, 8]", "%y: f32[4]"), ("(%x, @p)", "(%x, @p, %y)"), ("(%x, @q)", "(%x, @q, %y)")
    ),
    "a weight written back": changed(
        ("return %2, %3", "%4: f32[4, 8] = aten.neg(@q)\n      return %2, %3\n      write @q = %4")
    ),
    "a weight used elsewhere": changed(
        ("return %2, %3", "%4: f32[4, 8] = aten.mul.Tensor(@q, 0.5)\n      return %2, %3, %4")
    ),
    "a returned result": changed(("return %2, %3", "return %2, %1")),
    "a returned view": changed(
        ("return %2, %3", "%4: f32[4, 3] strided = aten.t(%1)\n      return %2, %4")
    ),
    "a view that cannot be one": changed(
        ("%3: f32[3, 4] = aten.mul.Tensor(%1, 3)",
         "%9: f32[12] = aten.reshape(%1, [12])\n      %3: f32[12] = aten.mul.Tensor(%9, 3)"),
    ),
    "a view that would fail": changed(
        ("%3: f32[3, 4] = aten.mul.Tensor(%1, 3)",
         "%9: f32[12] = aten.view(%1, [12])\n      %3: f32[12] = aten.mul.Tensor(%9, 3)"),
    ),
    "a norm reads it": changed(
        ("%3: f32[3, 4] = aten.mul.Tensor(%1, 3)", "%3: f32[3, 4] = aten.layer_norm(%1, [4])")
    ),
    "strides are read": changed(
        ("%3: f32[3, 4] = aten.mul.Tensor(%1, 3)",
         "%3: f32[3, 4] = aten.as_strided_copy(%1, [3, 4], [4, 1])"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_stays_apart(why: str) -> None:
    graph = parse(REFUSED[why])
    after = run(graph, ["merge-linear"])
    assert str(after) == str(graph)
    assert after.history[-1].changed is False


def test_unbound_weights_stay_apart() -> None:
    assert run(parse(PAIR, bind=False), ["merge-linear"]).history[-1].changed is False


GATED = """
    graph(%x: f32[3, {width}])
      @gate: f32[8, {width}]
      @up: f32[8, {width}]
      %8: f32[3, {peak}] = aten.cat([%x, %x, %x, %x], 1)
      %0: f32[3, 8] = aten.linear(%x, @gate)
      %1: f32[3, 8] = aten.linear(%x, @up)
      %2: f32[3, 8] = aten.silu(%0)
      %3: f32[3, 8] = aten.mul.Tensor(%2, %1)
      return %3
    """


def test_layers_whose_kernels_do_what_follows_stay_apart() -> None:
    graph = parse(GATED.format(width=8, peak=32))
    after = run(graph, ["merge-linear", "fuse", "lower"])
    assert kinds(after) == ["cat", "fusion.linear(linear silu)", "fusion.linear(linear mul)"]
    assert_same_results(Case(graph, 1), after)


def test_a_wide_input_is_worth_reading_once_less() -> None:
    graph = parse(GATED.format(width=16, peak=64))
    after = run(graph, ["merge-linear"])
    assert kinds(after) == ["cat", "linear", "split_with_sizes", "silu", "mul"]
    assert_same_results(Case(graph, 1), after)


def test_the_rest_of_a_family_is_merged_without_the_one_that_may_not() -> None:
    graph = parse(THREE.replace("return %5", "return %5, %3"))
    after = run(graph, ["merge-linear"])
    assert [n for n in kinds(after) if n == "linear"] == ["linear"] * 2
    assert set(after.constants) == {"a.q_k.weight", "a.q_k.bias", "a.v.weight", "a.v.bias"}
    assert_same_results(Case(graph, 1), after, N=3)


CROSS = """
    graph(%x: f32[64, 8], %y: f32[64, 8])
      @k: f32[32, 8]
      @v: f32[32, 8]
      @kk: f32[32, 8]
      @vv: f32[32, 8]
      %0: f32[64, 32] = aten.linear(%x, @k)
      %1: f32[64, 32] = aten.linear(%x, @v)
      %2: f32[64, 64] = aten.cat([%0, %1], -1)
      %3: f32[64] = aten.amax(%2, [1])
      %4: f32[64, 32] = aten.linear(%x, @kk)
      %5: f32[64, 32] = aten.linear(%x, @vv)
      %6: f32[64, 64] = aten.cat([%4, %5], -1)
      %7: f32[64] = aten.amax(%6, [1])
      return %3, %7
    """


def test_layers_that_are_needed_one_after_the_other_are_merged_in_runs() -> None:
    """As the keys and values that each layer of a decoder makes of one encoder's result."""
    graph = parse(CROSS)
    after = run(graph, ["merge-linear"])
    assert kinds(after) == ["linear", "split_with_sizes", "cat", "amax"] * 2
    assert_same_results(Case(graph, 1), after)


def test_where_the_peak_of_memory_would_rise_they_stay_apart() -> None:
    """Each is let go once it is turned, but as parts of one buffer both live until the second is."""
    graph = parse(
        """
        graph(%x: f32[64, 8])
          @q: f32[8, 8]
          @k: f32[8, 8]
          %0: f32[64, 8] = aten.linear(%x, @q)
          %1: f32[64, 8] = aten.linear(%x, @k)
          %2: f32[64, 16] = aten.cat([%0, %0], 1)
          %3: f32[64] = aten.amax(%2, [1])
          %4: f32[64, 16] = aten.cat([%1, %1], 1)
          %5: f32[64] = aten.amax(%4, [1])
          return %3, %5
        """
    )
    after = run(graph, ["merge-linear"])
    assert str(after) == str(graph)


def test_names_of_unlike_depth_and_names_that_are_taken() -> None:
    text = PAIR.replace("@q", "@m.q").replace("%y: f32[3, 8]", "%y: f32[3, 8]")
    assert "p_m.q" in run(parse(text), ["merge-linear"]).constants
    graph = parse(PAIR)
    graph.add_constant("p_q", torch.ones(2))
    graph.set_results([*graph.results, graph.constants["p_q"]])
    after = run(graph, ["merge-linear"])
    assert {"p_q", "p_q.1"} == set(after.constants)


def test_the_ledger_tells_of_both_fates() -> None:
    class Projections(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.cat([self.a(x), self.b(x)], 1), self.c(x)

    rows = ledger(run(capture(Projections().eval(), (torch.randn(2, 4),)), ["merge-linear"]))
    told = {row.module: (row.kind, row.pass_name, row.reason) for row in rows if row.op == "aten.linear"}
    one = ("replaced", "merge-linear", "by one linear layer together with 1 more of the same input")
    assert told == {
        "a": one,
        "b": one,
        "c": ("kept", "merge-linear", "not merged with its siblings: the graph returns its memory"),
    }


MODELS = ["bert", "vit", "gpt2", "llama"]


@pytest.mark.parametrize("name", MODELS)
def test_models_keep_their_numbers_and_the_arena_does_not_grow(name: str) -> None:
    module = importlib.import_module(f"models.{name}")
    args = module.example_inputs(2, "small")
    graph = capture(module.small(), args)
    apart, merged = optimize(graph, 2, disable=["merge-linear"]), optimize(graph, 2, verify=True)
    assert merged.memory_plan.arena_bytes <= apart.memory_plan.arena_bytes
    code = load_module(python.emit(merged), "test")
    code.load(bound_constants(merged))
    got = code.forward(*args)
    want = torch.utils._pytree.tree_leaves(graph.run(*args))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_bert_has_one_projection_for_queries_keys_and_values() -> None:
    module = importlib.import_module("models.bert")
    merged = run(capture(module.small(), module.example_inputs(1, "small")), ["merge-linear"])
    assert merged.history[-1].stats == {"merged": 6}
    assert "encoder.layer.0.attention.self.query_key_value.weight" in merged.constants


def test_the_merged_graph_exports_to_onnx(tmp_path: Path) -> None:
    import onnxruntime

    graph = parse(THREE)
    onnx.export(run(graph, ["merge-linear"]), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 3):
        (x,) = inputs_of(graph, N=n)
        (got,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), graph.run(x))


def test_another_target_is_refused_by_name() -> None:
    from capture.errors import CaptureError

    with pytest.raises(CaptureError, match="there is no target"):
        run(parse(PAIR), [MergeLinear(target="tpu")])


@settings(max_examples=25)
@given(cases(dynamic=True, families=["linear", "twin", "unary", "reshape", "permute"]))
def test_any_graph_keeps_its_meaning(case: Case) -> None:
    after = run(case.graph, ["merge-linear"])
    assert_same_results(case, after)
    assert str(Graph.parse(str(after))) == str(after)
    assert all(isinstance(c, Constant) for c in after.constants.values())
