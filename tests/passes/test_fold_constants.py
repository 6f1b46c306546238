"""fold-constants: what is computed once, and what is left to every call."""

from __future__ import annotations

import torch

from capture.ir import Graph
from tests.passes.golden import check, parse

NAME = "fold-constants"


def test_a_chain_becomes_one_constant_named_after_its_module() -> None:
    after = check(
        """
        graph(%x: f32[2, 4])
          %0: i64[4] = aten.arange(4)                          # position
          %1: i64[4] = aten.add.Tensor(%0, 2)                  # position
          %2: f32[4] = aten._to_copy(%1, dtype=torch.float32)  # position
          %3: f32[2, 4] = aten.mul.Tensor(%x, %2)
          return %3
        """,
        NAME,
        """
        graph(%x: f32[2, 4])
          @position._to_copy: f32[4]
          %0: f32[2, 4] = aten.mul.Tensor(%x, @position._to_copy)
          return %0
        """,
    )
    assert torch.equal(after.constants["position._to_copy"].tensor, torch.arange(4.0) + 2)
    assert after.history[-1].stats == {"folded": 3, "constants": 1}


def test_parameters_and_several_results() -> None:
    check(
        """
        graph(%x: f32[2, 2])
          @weight: f32[4, 2]
          %0: f32[2, 2], %1: f32[2, 2] = aten.split.Tensor(@weight, 2)
          %2: f32[2, 2] = aten.exp(%0)
          %3: f32[2, 2] = aten.mm(%x, %2)
          %4: f32[2, 2] = aten.mm(%3, %1)
          return %4
        """,
        NAME,
        """
        graph(%x: f32[2, 2])
          @weight: f32[4, 2]
          @split: f32[2, 2]
          @exp: f32[2, 2]
          %0: f32[2, 2] = aten.mm(%x, @exp)
          %1: f32[2, 2] = aten.mm(%0, @split)
          return %1
        """,
        folds=torch.float32,
    )


def test_what_depends_on_an_operands_type_alone() -> None:
    check(
        """
        graph(%x: f32[2, 3])
          %0: f32[2, 3] = aten.relu(%x)
          %1: f32[2, 3] = aten.zeros_like(%0)
          %2: f32[3] = aten.new_full(%0, [3], 2)
          %3: f32[2, 3] = aten.maximum(%0, %1)
          %4: f32[2, 3] = aten.mul.Tensor(%3, %2)
          return %4
        """,
        NAME,
        """
        graph(%x: f32[2, 3])
          @zeros_like: f32[2, 3]
          @new_full: f32[3]
          %0: f32[2, 3] = aten.relu(%x)
          %1: f32[2, 3] = aten.maximum(%0, @zeros_like)
          %2: f32[2, 3] = aten.mul.Tensor(%1, @new_full)
          return %2
        """,
    )


def test_a_transposed_weight_shares_the_weights_memory() -> None:
    after = check(
        """
        graph(%x: f32[2, 3])
          @weight: f32[4, 3]
          %0: f32[3, 4] strided = aten.t(@weight)
          %1: f32[2, 4] = aten.mm(%x, %0)
          return %1
        """,
        NAME,
        """
        graph(%x: f32[2, 3])
          @weight: f32[4, 3]
          @t: f32[3, 4] strided
          %0: f32[2, 4] = aten.mm(%x, @t)
          return %0
        """,
    )
    assert after.constants["t"].tensor.data_ptr() == after.constants["weight"].tensor.data_ptr()


def test_a_mask_that_chooses_one_side_everywhere() -> None:
    def masked(text: str) -> str:
        return f"""
        graph(%x: f32[2, 3], %y: f32[2, 3])
          @mask: bool[2, 3]
          %0: f32[2, 3] = aten.neg(%x)
          %1: f32[2, 3] = aten.neg(%y)
          %2: f32[2, 3] = {text}
          return %2
        """

    def kept(value: str) -> str:
        return f"""
        graph(%x: f32[2, 3], %y: f32[2, 3])
          @mask: bool[2, 3]
          %0: f32[2, 3] = aten.neg(%x)
          %1: f32[2, 3] = aten.neg(%y)
          return {value}
        """

    true, false = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    where, fill = "aten.where.self(@mask, %0, %1)", "aten.masked_fill.Scalar(%0, @mask, 7)"
    check(parse(masked(where), mask=true), NAME, kept("%0"))
    check(parse(masked(where), mask=false), NAME, kept("%1"))
    check(parse(masked(fill), mask=false), NAME, kept("%0"))
    check(parse(masked(fill), mask=true), NAME)
    mixed = true.clone()
    mixed[0, 1] = False
    check(parse(masked(where), mask=mixed), NAME)


def test_a_mask_that_broadcasts_its_choice_stays() -> None:
    check(
        parse(
            """
            graph(%x: f32[1, 3], %y: f32[2, 3])
              @mask: bool[2, 3]
              %0: f32[2, 3] = aten.where.self(@mask, %x, %y)
              return %0
            """,
            mask=torch.ones(2, 3, dtype=torch.bool),
        ),
        NAME,
    )


def unchanged(text: str, pass_: str = NAME, **options: object) -> None:
    check(text, pass_, **options)


def test_keeps_what_the_graph_returns() -> None:
    """A caller that changes the result in place would change the constant."""
    unchanged(
        """
        graph(%x: f32[3])
          %0: f32[4] = aten.zeros([4])
          %1: f32[2, 2] = aten.reshape(%0, [2, 2])
          return %1
        """
    )


def test_a_mask_does_not_choose_a_constant_to_return() -> None:
    check(
        parse(
            """
            graph(%x: f32[3])
              @mask: bool[3]
              @a: f32[3]
              %0: f32[3] = aten.where.self(@mask, @a, %x)
              return %0
            """,
            mask=torch.ones(3, dtype=torch.bool),
        ),
        NAME,
    )


def test_keeps_unbound_constants() -> None:
    graph = parse(
        """
        graph(%x: f32[3])
          @a: f32[3]
          %0: f32[3] = aten.exp(@a)
          %1: f32[3] = aten.mul.Tensor(%x, %0)
          return %1
        """
    )
    graph = Graph.parse(str(graph))
    check(graph, NAME, runs=False)


def test_keeps_constants_that_are_written_back() -> None:
    graph = parse(
        """
        graph(%x: f32[3])
          @count: f32[3]
          %0: f32[3] = aten.add.Tensor(@count, 1)
          %1: f32[3] = aten.mul.Tensor(%x, %0)
          return %1
          write @count = %0
        """
    )
    check(graph, NAME, runs=False)


def test_keeps_random_numbers_and_uninitialised_memory() -> None:
    graph = parse(
        """
        graph(%x: f32[3])
          %0: f32[3] = aten.rand([3])
          %1: f32[3] = aten.empty.memory_format([3])
          %2: f32[3] = aten.add.Tensor(%x, %0)
          %3: f32[3] = aten.add.Tensor(%2, %1)
          return %3
        """
    )
    check(graph, NAME, runs=False)


def test_keeps_effects() -> None:
    unchanged(
        """
        graph(%x: f32[3])
          @ok: bool[]
          aten._assert_async(@ok)
          return %x
        """
    )


def test_keeps_symbolic_sizes() -> None:
    unchanged(
        """
        graph(%x: f32[N]) where N in [1, 64]
          %0: f32[N] = aten.arange(N, dtype=torch.float32)
          %1: f32[N] = aten.mul.Tensor(%x, %0)
          return %1
        """,
        sizes={"N": 5},
    )


def test_keeps_what_would_grow_past_the_budget() -> None:
    text = """
        graph(%x: f32[8, 8])
          %0: f32[8, 8] = aten.ones([8, 8])
          %1: f32[8, 8] = aten.add.Tensor(%x, %0)
          return %1
        """
    unchanged(text, NAME + "{max_bytes=255}")
    check(
        text,
        NAME + "{max_bytes=256}",
        """
        graph(%x: f32[8, 8])
          @ones: f32[8, 8]
          %0: f32[8, 8] = aten.add.Tensor(%x, @ones)
          return %0
        """,
    )


def test_what_does_not_grow_has_no_budget() -> None:
    check(
        """
        graph(%x: f32[8, 8])
          @weight: f32[8, 8]
          %0: f32[8, 8] = aten.relu(@weight)
          %1: f32[8, 8] = aten.mm(%x, %0)
          return %1
        """,
        NAME + "{max_bytes=0}",
        """
        graph(%x: f32[8, 8])
          @weight: f32[8, 8]
          @relu: f32[8, 8]
          %0: f32[8, 8] = aten.mm(%x, @relu)
          return %0
        """,
    )


def test_a_broadcast_stays_on_a_folded_operand() -> None:
    check(
        """
        graph(%x: f32[5, 3])
          @a: f32[1, 3]
          %0: f32[1, 3] = aten.relu(@a)
          %1: f32[5, 3] strided = aten.expand(%0, [5, -1])
          %2: f32[5, 3] = aten.add.Tensor(%x, %1)
          return %2
        """,
        NAME,
        """
        graph(%x: f32[5, 3])
          @a: f32[1, 3]
          @relu: f32[1, 3]
          %0: f32[5, 3] strided = aten.expand(@relu, [5, -1])
          %1: f32[5, 3] = aten.add.Tensor(%x, %0)
          return %1
        """,
    )


def test_keeps_quantised_weights_quantised() -> None:
    import torch.ao.quantization.fx._decomposed  # noqa: F401  (registers the ops)

    unchanged(
        """
        graph(%x: f32[2, 4])
          @weight: i8[4, 4]
          %0: f32[4, 4] = quantized_decomposed.dequantize_per_tensor(@weight, 0.5, 0, -128, 127, torch.int8)
          %1: f32[2, 4] = aten.mm(%x, %0)
          return %1
        """,
        runs=False,
    )


def test_leaves_a_call_that_fails_to_fail_at_run_time() -> None:
    graph = parse(
        """
        graph(%x: f32[3])
          @table: f32[2, 3]
          @index: i64[]
          %0: f32[3] = aten.embedding(@table, @index)
          %1: f32[3] = aten.add.Tensor(%x, %0)
          return %1
        """,
        index=torch.tensor(9),
    )
    check(graph, NAME, runs=False)
