"""recompose: products with constant weights become linear layers; decomposed ops become composites."""

from __future__ import annotations

import pytest

from capture.ir import Graph
from tests.passes.golden import check

NAME = "recompose"


def test_a_flattened_product_becomes_linear() -> None:
    after = check(
        """
        graph(%x: f32[N, 5, 3]) where N in [1, 64]
          @weight: f32[3, 4]
          @bias: f32[4]
          %0: f32[5*N, 3] = aten.reshape(%x, [-1, 3])
          %1: f32[5*N, 4] = aten.addmm(@bias, %0, @weight)
          %2: f32[N, 5, 4] = aten.reshape(%1, [N, 5, 4])
          %3: f32[N, 5, 4] = aten.relu(%2)
          return %3
        """,
        NAME,
        """
        graph(%x: f32[N, 5, 3]) where N in [1, 64]
          @weight: f32[3, 4]
          @bias: f32[4]
          @weight.transposed: f32[4, 3] strided
          %0: f32[N, 5, 4] = aten.linear(%x, @weight.transposed, @bias)
          %1: f32[N, 5, 4] = aten.relu(%0)
          return %1
        """,
        exact=False,
        sizes={"N": 3},
    )
    constants = after.constants
    assert constants["weight.transposed"].tensor.data_ptr() == constants["weight"].tensor.data_ptr()


def test_every_product_of_a_weight_shares_one_transposed_constant() -> None:
    check(
        """
        graph(%x: f32[2, 3])
          @weight: f32[3, 3]
          %0: f32[2, 3] = aten.mm(%x, @weight)
          %1: f32[2, 3] = aten.matmul(%0, @weight)
          return %1
        """,
        NAME,
        """
        graph(%x: f32[2, 3])
          @weight: f32[3, 3]
          @weight.transposed: f32[3, 3] strided
          %0: f32[2, 3] = aten.linear(%x, @weight.transposed)
          %1: f32[2, 3] = aten.linear(%0, @weight.transposed)
          return %1
        """,
        exact=False,
    )


def test_decomposed_ops_become_composites() -> None:
    check(
        """
        graph(%x: f32[2, 3])
          %0: f32[2, 3], %1: f32[2, 1], %2: f32[2, 1] = aten.native_layer_norm(%x, [3], None, None, 1e-05)
          %3: f32[2, 3] = aten._softmax(%0, 1, False)
          return %3
        """,
        NAME,
        """
        graph(%x: f32[2, 3])
          %0: f32[2, 3] = aten.layer_norm(%x, [3])
          %1: f32[2, 3] = aten.softmax.int(%0, 1)
          return %1
        """,
        exact=False,
    )


KEPT = {
    "a computed weight": ("%0: f32[3, 4] = aten.neg(@weight)\n  %1: f32[2, 4] = aten.mm(%x, %0)", "%1"),
    "a factor": ("%0: f32[2, 4] = aten.addmm(@bias, %x, @weight, alpha=2)", "%0"),
    "a bias per row": ("%0: f32[2, 4] = aten.addmm(@rows, %x, @weight)", "%0"),
    "a vector": ("%0: f32[2] = aten.matmul(%x, @vector)", "%0"),
    "more axes": ("%0: f32[2, 2, 4] = aten.matmul(%x, @cube)", "%0"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_stays(name: str) -> None:
    body, result = KEPT[name]
    check(
        f"""\
graph(%x: f32[2, 3])
  @weight: f32[3, 4]
  @bias: f32[4]
  @rows: f32[2, 1]
  @vector: f32[3]
  @cube: f32[2, 3, 4]
  {body}
  return {result}
""",
        NAME,
    )


TEXT = """
graph(%x: i64[2, 3])
  @weight: i64[3, 4]
  %0: i64[2, 4] = aten.mm(%x, @weight)
  return %0
"""


def test_integer_products_stay() -> None:
    check(TEXT, NAME)


def test_weights_that_are_unbound_or_written_back_stay() -> None:
    text = TEXT.replace("i64", "f32").strip() + "\n"
    check(Graph.parse(text), NAME, runs=False)
    check(text + "  write @weight = @weight\n", NAME, runs=False)
