"""simplify: each rule by a golden text, and what must not be simplified."""

from __future__ import annotations

import pytest
import torch

from capture.ir.types import DTYPE_NAMES
from passes import optimize
from tests.passes.golden import check, parse

NAME = "simplify"
aten = torch.ops.aten


def wrap(body: str, result: str, signature: str = "%x: f32[2, 3]", constants: str = "") -> str:
    """The text of a graph: its signature, constants and nodes by line, and what it returns."""
    lines = [*constants.splitlines(), *body.splitlines(), f"return {result}"]
    return "\n".join([f"graph({signature})", *(f"  {line.strip()}" for line in lines if line.strip())])


IDENTITIES = [
    "f32[2, 3] = aten.clone(%0)",
    "f32[2, 3] = aten.detach(%0)",
    "f32[2, 3] = aten.alias(%0)",
    "f32[2, 3] = aten.lift_fresh_copy(%0)",
    "f32[2, 3] = aten.contiguous(%0)",
    "f32[2, 3] = aten._to_copy(%0, dtype=torch.float32)",
    "f32[2, 3] = aten.to.dtype(%0, torch.float32)",
    "f32[2, 3] = aten.dropout(%0, 0.1, False)",
    "f32[2, 3] = aten.feature_dropout(%0, 0.1, False)",
    "f32[2, 3] = aten.sub.Tensor(%0, 0)",
    "f32[2, 3] = aten.sub.Tensor(%0, 0.0)",
    "f32[2, 3] = aten.add.Tensor(%0, -0.0)",
    "f32[2, 3] = aten.mul.Tensor(%0, 1)",
    "f32[2, 3] = aten.mul.Tensor(%0, 1.0)",
    "f32[2, 3] = aten.div.Tensor(%0, 1)",
    "f32[2, 3] = aten.pow.Tensor_Scalar(%0, 1)",
    "f32[2, 3] = aten.permute(%0, [0, 1])",
    "f32[2, 3] = aten.transpose.int(%0, 1, -1)",
    "f32[2, 3] = aten.reshape(%0, [2, -1])",
    "f32[2, 3] = aten.flatten.using_ints(%0, 1, 1)",
    "f32[2, 3] = aten.squeeze.dim(%0, 1)",
    "f32[2, 3] = aten.expand(%0, [-1, 3])",
    "f32[2, 3] = aten.slice.Tensor(%0, 1, 0, 9223372036854775807)",
    "f32[2, 3] = aten.narrow(%0, 1, 0, 3)",
    "f32[2, 3] = aten.repeat(%0, [1, 1])",
    "f32[2, 3] = aten.cat([%0], 1)",
    "f32[2, 3] = aten.split.Tensor(%0, 2)",
    "f32[2, 3] = aten.constant_pad_nd(%0, [0, 0])",
    "f32[2, 3] = aten.relu(%0)",
]


@pytest.mark.parametrize("text", IDENTITIES, ids=lambda t: t.partition(" = ")[2])
def test_what_changes_nothing(text: str) -> None:
    body = f"%0: f32[2, 3] = aten.relu(%x)\n%1: {text}\n%2: f32[2, 3] = aten.neg(%1)"
    after = "%0: f32[2, 3] = aten.relu(%x)\n%1: f32[2, 3] = aten.neg(%0)"
    check(wrap(body, "%2"), NAME, wrap(after, "%1"))


KEPT = [
    "f32[2, 3] = aten.add.Tensor(%0, 0)",  # -0.0 + 0.0 is 0.0
    "f32[2, 3] = aten.add.Tensor(%0, 0.0)",
    "f32[2, 3] = aten.sub.Tensor(%0, -0.0)",
    "f32[2, 3] = aten.sub.Tensor(%0, 0.0, alpha=-1)",
    "f32[2, 3] = aten.mul.Tensor(%0, 0)",  # NaN and infinity
    "f32[2, 3] = aten.pow.Tensor_Scalar(%0, 2)",
    "f32[2, 3] = aten.div.Tensor(%0, 3)",
    "f32[2, 3] = aten.div.Tensor(%0, 1e-40)",
    'f32[2, 3] = aten.div.Tensor_mode(%0, 1, rounding_mode="floor")',
    "f64[2, 3] = aten._to_copy(%0, dtype=torch.float64)",
    "f32[2, 2] = aten.slice.Tensor(%0, 1, 0, 2)",
    "f32[2, 3] = aten.constant_pad_nd(%0, [1, -1])",
    "f32[3, 2] strided = aten.transpose.int(%0, 0, 1)",
    "f32[3, 2] = aten.reshape(%0, [3, 2])",
    "f32[4, 3] = aten.repeat(%0, [2, 1])",
    "f32[2, 3] = aten.flip(%0, [0])",
    "f32[2, 3] = aten.roll(%0, [1], [0])",
]


@pytest.mark.parametrize("text", KEPT, ids=lambda t: t.partition(" = ")[2])
def test_what_changes_something_stays(text: str) -> None:
    type_ = text.partition(" = ")[0].removesuffix(" strided")
    body = f"%0: f32[2, 3] = aten.sin(%x)\n%1: {text}\n%2: {type_} = aten.neg(%1)"
    check(wrap(body, "%2"), NAME, runs="strided" not in text)


def test_dropout_in_training_stays() -> None:
    body = "%0: f32[2, 3] = aten.dropout(%x, 0.1, True)\n%1: f32[2, 3] = aten.neg(%0)"
    check(wrap(body, "%1"), NAME, runs=False)


def test_integers_have_one_zero() -> None:
    body = """
    %0: i64[3] = aten.add.Tensor(%x, 0)
    %1: i64[3] = aten.div.Tensor_mode(%0, 1, rounding_mode="floor")
    %2: f32[3] = aten.div.Tensor(%1, 1)
    %3: f32[3] = aten.mul.Tensor(%1, 1.0)
    %4: f32[3] = aten.add.Tensor(%2, %3)
    """
    after = """
    %0: f32[3] = aten.div.Tensor(%x, 1)
    %1: f32[3] = aten.mul.Tensor(%x, 1.0)
    %2: f32[3] = aten.add.Tensor(%0, %1)
    """
    check(wrap(body, "%4", "%x: i64[3]"), NAME, wrap(after, "%2", "%x: i64[3]"))


def test_signs_of_zero_survive() -> None:
    """What is dropped is exact for -0.0, too, which `torch.equal` does not tell from 0.0."""
    x = torch.tensor([-0.0, 0.0, float("inf"), float("-inf")])
    for text in ("sub.Tensor(%x, 0.0)", "add.Tensor(%x, -0.0)", "mul.Tensor(%x, 1)", "div.Tensor(%x, 1)"):
        graph = parse(wrap(f"%0: f32[4] = aten.{text}\n%1: f32[4] = aten.reciprocal(%0)", "%1", "%x: f32[4]"))
        after = optimize(graph, passes=[NAME])
        assert len(after.nodes) == 1
        assert torch.equal(graph.run(x), after.run(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_division_by_a_power_of_two_is_exact(dtype: torch.dtype) -> None:
    """Down to subnormal results; where the reciprocal is no normal number of the dtype the division stays."""
    name = DTYPE_NAMES[dtype]
    info = torch.finfo(dtype)
    x = torch.cat([torch.randn(500), torch.randn(500) * 1e-4]).to(dtype)
    x = torch.cat(
        [x, torch.tensor([info.max, info.tiny, info.smallest_normal * info.eps, -0.0], dtype=dtype)]
    )
    for number in (8, 0.25, -4.0, 2.0**14, 2.0**15, 2.0**-14, 2.0**126, 2.0**127):
        line = f"%0: {name}[1004] = aten.div.Tensor(%x, {number!r})\n%1: {name}[1004] = aten.neg(%0)"
        graph = parse(wrap(line, "%1", f"%x: {name}[1004]"))
        after = optimize(graph, passes=[NAME], verify=True)
        multiplied = any(after.find(aten.mul.Tensor))
        assert multiplied == (1 / abs(number) >= info.smallest_normal and abs(number) <= info.max)
        assert torch.equal(graph.run(x), after.run(x))


PAIRS = [
    ("f32[3, 2] strided = aten.t(%0)", "aten.t(%1)"),
    ("f32[3, 2] strided = aten.transpose.int(%0, 0, 1)", "aten.permute(%1, [1, 0])"),
    ("f32[2, 1, 3] = aten.unsqueeze(%0, 1)", "aten.squeeze.dim(%1, 1)"),
    ("f32[6] = aten.reshape(%0, [6])", "aten.reshape(%1, [2, 3])"),
    ("f32[6] = aten.flatten.using_ints(%0)", "aten.unflatten.int(%1, 0, [2, 3])"),
    ("f32[2, 3] = aten.neg(%0)", "aten.neg(%1)"),
    ("f32[2, 3] = aten.flip(%0, [1])", "aten.flip(%1, [1])"),
    ("f64[2, 3] = aten._to_copy(%0, dtype=torch.float64)", "aten._to_copy(%1, dtype=torch.float32)"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda t: t.partition(" = ")[2] or t)
def test_pairs_that_undo_each_other(first: str, second: str) -> None:
    after = "%0: f32[2, 3] = aten.sin(%x)\n%1: f32[2, 3] = aten.sin(%0)"
    check(between_sines(first, second), NAME, wrap(after, "%1"))


def between_sines(first: str, second: str) -> str:
    """A graph of two calls in a row, the first on %0, the second on %1, that nothing else can simplify."""
    body = f"""
    %0: f32[2, 3] = aten.sin(%x)
    %1: {first}
    %2: f32[2, 3] = {second}
    %3: f32[2, 3] = aten.sin(%2)
    """
    return wrap(body, "%3")


def test_the_first_of_a_pair_stays_where_it_is_used() -> None:
    body = """
    %0: f32[2, 3] = aten.neg(%x)
    %1: f32[2, 3] = aten.neg(%0)
    %2: f32[2, 3] = aten.mul.Tensor(%0, %1)
    """
    after = "%0: f32[2, 3] = aten.neg(%x)\n%1: f32[2, 3] = aten.mul.Tensor(%0, %x)"
    check(wrap(body, "%2"), NAME, wrap(after, "%1"))


LOSSY = [
    ("f16[2, 3] = aten._to_copy(%0, dtype=torch.float16)", "aten._to_copy(%1, dtype=torch.float32)"),
    ("bf16[2, 3] = aten._to_copy(%0, dtype=torch.bfloat16)", "aten._to_copy(%1, dtype=torch.float32)"),
    ("i64[2, 3] = aten._to_copy(%0, dtype=torch.int64)", "aten._to_copy(%1, dtype=torch.float32)"),
    ("f32[2, 3] = aten.flip(%0, [1])", "aten.flip(%1, [0])"),
    ("f32[2, 3] = aten.clamp(%0, 0)", "aten.clamp(%1, -1)"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), LOSSY, ids=lambda t: t.partition(" = ")[2] or t)
def test_pairs_that_do_not_undo_each_other_stay(first: str, second: str) -> None:
    check(between_sines(first, second), NAME)


def test_calls_that_join() -> None:
    body = """
    %0: f32[4, 2, 3] strided = aten.permute(%x, [2, 0, 1])
    %1: f32[3, 2, 4] strided = aten.transpose.int(%0, 0, 2)
    %2: f32[3, 2, 4] = aten.sin(%1)
    %3: f32[6, 4] = aten.reshape(%2, [6, -1])
    %4: f32[8, 3] = aten.reshape(%3, [8, 3])
    %5: f64[8, 3] = aten._to_copy(%4, dtype=torch.float64)
    %6: f16[8, 3] = aten._to_copy(%5, dtype=torch.float16)
    %7: f16[1, 8, 3] = aten.unsqueeze(%6, 0)
    %8: f16[2, 8, 3] strided = aten.expand(%7, [2, -1, -1])
    %9: f16[5, 2, 8, 3] strided = aten.expand(%8, [5, -1, -1, -1])
    %10: f16[5, 2, 8, 3] = aten.neg(%9)
    """
    after = """
    %0: f32[3, 2, 4] strided = aten.permute(%x, [1, 0, 2])
    %1: f32[3, 2, 4] = aten.sin(%0)
    %2: f32[8, 3] = aten.reshape(%1, [8, 3])
    %3: f16[8, 3] = aten._to_copy(%2, dtype=torch.float16)
    %4: f16[1, 8, 3] = aten.unsqueeze(%3, 0)
    %5: f16[5, 2, 8, 3] strided = aten.expand(%4, [5, 2, 8, 3])
    %6: f16[5, 2, 8, 3] = aten.neg(%5)
    """
    check(wrap(body, "%10", "%x: f32[2, 3, 4]"), NAME, wrap(after, "%6", "%x: f32[2, 3, 4]"))


def test_symbolic_sizes() -> None:
    signature = "%x: f32[N, 6]"
    body = """
    %0: f32[2*N, 3] = aten.reshape(%x, [2*N, 3])
    %1: f32[N, 6] = aten.reshape(%0, [N, 6])
    %2: f32[N, 6] = aten.slice.Tensor(%1, 0, 0, 9223372036854775807)
    %3: f32[N, 6] = aten.expand(%2, [N, 6])
    %4: f32[6*N] = aten.reshape(%3, [-1])
    %5: f32[6*N] = aten.sin(%4)
    """
    after = "%0: f32[6*N] = aten.reshape(%x, [-1])\n%1: f32[6*N] = aten.sin(%0)"
    where = " where N in [1, 64]"
    before = wrap(body, "%5", signature).replace("6])", f"6]){where}", 1)
    check(before, NAME, wrap(after, "%1", signature).replace("6])", f"6]){where}", 1), sizes={"N": 4})


def test_reshapes_of_a_strided_value_stay_two() -> None:
    """The first one copies; without it the second might be a view with other strides."""
    body = """
    %0: f32[3, 2] strided = aten.t(%x)
    %1: f32[6] = aten.reshape(%0, [6])
    %2: f32[2, 3] = aten.reshape(%1, [2, 3])
    %3: f32[2, 3] = aten.sin(%2)
    """
    check(wrap(body, "%3"), NAME)


def test_operands_without_elements_leave_a_cat() -> None:
    body = """
    %0: f32[2, 0] = aten.slice.Tensor(%x, 1, 0, 0)
    %1: f32[2, 6] = aten.cat([%x, %0, %x], 1)
    %2: f32[2, 3] = aten.cat([%0, %x], -1)
    %3: f32[2, 9] = aten.cat([%1, %2], 1)
    """
    after = """
    %0: f32[2, 0] = aten.slice.Tensor(%x, 1, 0, 0)
    %1: f32[2, 6] = aten.cat([%x, %x], 1)
    %2: f32[2, 9] = aten.cat([%1, %x], 1)
    """
    check(wrap(body, "%3"), NAME, wrap(after, "%2"))


def test_a_cat_that_promotes_keeps_its_empty_operand() -> None:
    body = """
    %0: f64[2, 0] = aten.slice.Tensor(%y, 1, 0, 0)
    %1: f64[2, 3] = aten.cat([%x, %0], 1)
    """
    check(wrap(body, "%1", "%x: f32[2, 3], %y: f64[2, 3]"), NAME)


def test_a_transposed_weight_goes_into_linear() -> None:
    constants = "@w: f32[4, 3]\n@v: f32[5, 4]\n@u: f32[2, 5]\n@b: f32[5]"
    body = """
    %0: f32[3, 4] strided = aten.t(@w)
    %1: f32[2, 4] = aten.mm(%x, %0)
    %2: f32[4, 5] strided = aten.permute(@v, [1, 0])
    %3: f32[2, 5] = aten.addmm(@b, %1, %2)
    %4: f32[5, 2] strided = aten.transpose.int(@u, 0, 1)
    %5: f32[2, 2] = aten.matmul(%3, %4)
    """
    after = """
    %0: f32[2, 4] = aten.linear(%x, @w)
    %1: f32[2, 5] = aten.linear(%0, @v, @b)
    %2: f32[2, 2] = aten.linear(%1, @u)
    """
    check(wrap(body, "%5", constants=constants), NAME, wrap(after, "%2", constants=constants))


def test_products_that_linear_is_not_stay() -> None:
    constants = "@w: f32[4, 3]\n@b: f32[2, 4]"
    body = """
    %0: f32[3, 4] strided = aten.t(@w)
    %1: f32[2, 4] = aten.addmm(@b, %x, %0)
    %2: f32[2, 4] = aten.addmm(%1, %x, %0, alpha=2)
    %3: f32[3, 2] strided = aten.t(%x)
    %4: f32[2, 2] = aten.mm(%x, %3)
    """
    check(wrap(body, "%2, %4", constants=constants), NAME)


# -- what a caller could notice ---------------------------------------------------------------------------

VISIBLE = {
    "a copy of an input": ("%0: f32[2, 3] = aten.clone(%x)", "%0"),
    "a copy of a constant": ("%0: f32[2, 3] = aten.clone(@w)", "%0"),
    "a view of a copy": ("%0: f32[2, 3] = aten.mul.Tensor(%x, 1)\n%1: f32[6] = aten.reshape(%0, [6])", "%1"),
    "a detached input": ("%0: f32[2, 3] = aten.detach(%x)", "%0"),
    "a copy of a result": ("%0: f32[2, 3] = aten.relu(%x)\n%1: f32[2, 3] = aten.clone(%0)", "%0, %1"),
    "a result twice": ("%0: f32[2, 3] = aten.relu(%x)\n%1: f32[2, 3] = aten.alias(%0)", "%0, %1"),
    "two reshapes, the first a copy": (
        "%0: f32[3, 2] strided = aten.t(%x)\n%1: f32[6] = aten.reshape(%0, [6])\n"
        "%2: f32[3, 2] = aten.reshape(%1, [3, 2])",
        "%2",
    ),
    "a copy that orders memory": (
        "%0: f32[3, 2] strided = aten.t(%x)\n%1: f32[3, 2] = aten.contiguous(%0)\n"
        "%2: f32[3, 2] = aten.sin(%1)",
        "%2",
    ),
}


@pytest.mark.parametrize("name", VISIBLE)
def test_what_a_caller_could_notice_stays(name: str) -> None:
    body, result = VISIBLE[name]
    check(wrap(body, result, constants="@w: f32[2, 3]"), NAME)


def test_swapped_state_is_not_mixed_up() -> None:
    """Write-backs come one after the other: without the copies the second would read what the first wrote."""
    text = """
    graph(%x: f32[3])
      @a: f32[3]
      @b: f32[3]
      %0: f32[3] = aten.clone(@b)
      %1: f32[3] = aten.clone(@a)
      return %x
      write @a = %0
      write @b = %1
    """
    check(text, NAME)


def test_a_copy_of_what_is_not_returned_goes() -> None:
    body = "%0: f32[2, 3] = aten.relu(%x)\n%1: f32[2, 3] = aten.clone(%0)"
    check(wrap(body, "%1"), NAME, wrap("%0: f32[2, 3] = aten.relu(%x)", "%0"))


def test_inside_branches() -> None:
    """A branch's own results stay copies of its operands."""
    text = """
    graph(%p: bool[], %x: f32[3])
      %0: f32[3] = higher_order.cond(%p, ^0, ^1, [%x]) {
        ^(%a: f32[3])
        %b: f32[3] = aten.sin(%a)
        CLONE
        return %d
      } {
        ^(%a: f32[3])
        %b: f32[3] = aten.clone(%a)
        return %b
      }
      return %0
    """
    before = text.replace("CLONE", "%c: f32[3] = aten.clone(%b)\n        %d: f32[3] = aten.exp(%c)")
    after = text.replace("CLONE", "%c: f32[3] = aten.exp(%b)").replace("%d", "%c")
    check(before, NAME, after)
