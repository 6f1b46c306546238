"""verify() finds each way in which a graph can be broken, and shows the place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sympy
import torch
from torch.utils import _pytree as pytree

from capture.errors import VerificationError
from capture.ir import (
    Fusion,
    Graph,
    Impl,
    LiteralType,
    Range,
    RegionRef,
    TensorType,
    Value,
    symbol,
)
from capture.ir.parse import parse_type

aten = torch.ops.aten

TEXT = """\
graph(%x: f32[N, 4], %p: bool[]) where N in [1, 64]
  @w: f32[4, 4]
  %0: f32[N, 4] = aten.linear(%x, @w)                                                             # fc  m.py:3
  %1: f32[N, 4] = fusion.pointwise(%0) {
    ^(%a: f32[N, 4])
    %b: f32[N, 4] = aten.relu(%a)
    return %b
  }
  %2: f32[N], %3: i64[N] = aten.max.dim(%1, 1)
  %4: f32[N] = higher_order.cond(%p, ^0, ^1, [%2]) {
    ^(%a: f32[N])
    return %a
  } {
    ^(%a: f32[N])
    %b: f32[N] = aten.neg(%a)
    return %b
  }
  %5: i64[u0, 1] = aten.nonzero(%4)
  return %4, %3, %5
  write %x = %1
"""


def graph() -> Graph:
    return Graph.parse(TEXT)


def test_the_graph_is_sound_to_begin_with() -> None:
    assert graph().verify().clone().verify()


def fused(g: Graph) -> Graph:
    region = g.nodes[1].region
    assert region is not None
    return region


def uses_before_definition(g: Graph) -> None:
    g.move(g.nodes[0], after=g.nodes[1])


def uses_a_stranger(g: Graph) -> None:
    g.nodes[0].replace_operand(g.inputs[0], Value(g.inputs[0].type, "stranger"))


def uses_a_value_of_the_region(g: Graph) -> None:
    region = fused(g)
    g.nodes[2].replace_operand(g.nodes[1].result, region.inputs[0])
    region.nodes[0].set_operands([region.inputs[0]])
    del region.inputs[0]._users[g.nodes[2]]


def has_an_input_twice(g: Graph) -> None:
    g.add_input("x", g.inputs[0].type)


def has_a_value_twice(g: Graph) -> None:
    g.nodes[2].results.append(g.nodes[0].result)


def misplaces_a_result(g: Graph) -> None:
    g.nodes[2].results.reverse()


def disowns_a_node(g: Graph) -> None:
    g.nodes[0].graph = Graph()


def names_a_constant_otherwise(g: Graph) -> None:
    g.constants["w"].name = "v"


def binds_an_unfit_tensor(g: Graph) -> None:
    g.constants["w"].tensor = torch.zeros(4, 4, dtype=torch.int64)


def has_a_wrong_dtype(g: Graph) -> None:
    g.set_result_type(g.nodes[0].result, parse_type("f64[N, 4]"))


def has_a_wrong_size(g: Graph) -> None:
    g.set_result_type(g.nodes[0].result, parse_type("f32[N, 5]"))


def has_a_wrong_symbolic_size(g: Graph) -> None:
    g.set_result_type(g.nodes[0].result, parse_type("f32[N + 1, 4]"))


def has_a_wrong_rank(g: Graph) -> None:
    g.set_result_type(g.nodes[0].result, parse_type("f32[N, 4, 1]"))


def has_a_wrong_device(g: Graph) -> None:
    g.set_result_type(g.nodes[0].result, parse_type("f32[N, 4] @meta"))


def takes_a_tensor_for_a_scalar(g: Graph) -> None:
    g.set_result_type(g.nodes[0].result, parse_type("float"))


def has_a_literal_for_a_result(g: Graph) -> None:
    g.set_result_type(g.nodes[0].result, LiteralType(1))


def has_too_few_results(g: Graph) -> None:
    value = g.nodes[2].results[1]
    g.replace_uses(value, g.inputs[0])
    g.nodes[2].results.pop()


def refuses_its_operands(g: Graph) -> None:
    g.nodes[0].set_operands([g.inputs[0], g.inputs[1]])


def mentions_an_unknown_size(g: Graph) -> None:
    g.add_node(aten.ones.default, [[symbol("M")]], types=[parse_type("f32[M]")], before=g.nodes[0])


def uses_a_size_before_the_data_decide_it(g: Graph) -> None:
    g.add_node(aten.ones.default, [[symbol("u0")]], types=[parse_type("f32[u0]")], before=g.nodes[0])


def makes_up_a_size(g: Graph) -> None:
    g.set_result_type(g.nodes[4].result, parse_type("i64[M, 1]"))


def makes_a_size_of_another_symbol(g: Graph) -> None:
    g.set_result_type(g.nodes[0].result, TensorType(torch.float32, (sympy.Symbol("N", integer=True), 4)))


def has_no_range_for_a_size(g: Graph) -> None:
    g.add_input("y", parse_type("f32[M]"))


def has_a_size_no_input_tells(g: Graph) -> None:
    g.dims["M"] = Range(1, 8)
    g.add_input("y", parse_type("f32[M//2]"))
    g.add_node(aten.ones.default, [[symbol("M")]], types=[parse_type("f32[M]")])


def has_an_empty_range(g: Graph) -> None:
    g.dims["N"] = Range(8, 4)


def has_an_odd_name_for_a_size(g: Graph) -> None:
    g.dims["nan"] = Range(8, 9)


def writes_in_place(g: Graph) -> None:
    g.add_node(aten.add_.Tensor, [g.nodes[0].result, 1], types=[g.nodes[0].result.type])


def is_no_operator(g: Graph) -> None:
    g.nodes[0].op = torch.relu


def is_not_in_normal_form(g: Graph) -> None:
    g.nodes[0].operands = (*g.nodes[0].operands, None)


def has_an_operand_too_many(g: Graph) -> None:
    g.nodes[0].operands = (*g.nodes[0].operands, None, None)


def holds_what_text_cannot(g: Graph) -> None:
    g.add_node(aten.mul.Tensor, [g.inputs[0], torch.Generator()], types=[g.inputs[0].type])


def has_a_value_among_the_options(g: Graph) -> None:
    g.nodes[0].set_impl(Impl("mkldnn.linear", {"bias": g.inputs[0]}))


def has_an_option_that_is_no_name(g: Graph) -> None:
    g.nodes[0].set_impl(Impl("mkldnn.linear", {"not a name": 1}))


def lacks_a_region(g: Graph) -> None:
    g.nodes[1].regions = ()


def has_two_regions_in_a_fusion(g: Graph) -> None:
    g.nodes[1].regions *= 2


def has_a_region_on_an_operator(g: Graph) -> None:
    g.nodes[0].regions = g.nodes[1].regions


def shares_a_region(g: Graph) -> None:
    g.add_node(Fusion("pointwise"), [g.nodes[0].result], regions=[fused(g)], after=g.nodes[1])


def contains_itself(g: Graph) -> None:
    region = fused(g)
    region.add_node(Fusion("some"), region.inputs, types=[region.inputs[0].type]).regions = (region,)


def has_sizes_of_its_own_in_a_region(g: Graph) -> None:
    fused(g).dims = type(g.dims)(g.dims)


def writes_back_in_a_region(g: Graph) -> None:
    region = fused(g)
    region.set_writeback(region.inputs[0], region.nodes[0].result)


def passes_too_much_to_a_region(g: Graph) -> None:
    g.nodes[1].set_operands([g.inputs[0], g.inputs[0]])


def passes_another_type_to_a_region(g: Graph) -> None:
    g.nodes[1].set_operands([g.inputs[1]])


def passes_a_literal_to_a_fusion(g: Graph) -> None:
    g.nodes[1].set_operands([3])


def passes_another_type_to_a_branch(g: Graph) -> None:
    g.nodes[3].set_operands([g.inputs[1], RegionRef(0), RegionRef(1), [g.inputs[0]]])


def refers_to_no_region(g: Graph) -> None:
    g.nodes[3].set_operands([g.inputs[1], RegionRef(0), RegionRef(2), [g.nodes[2].results[0]]])


def returns_different_things_from_branches(g: Graph) -> None:
    g.nodes[3].regions[0].set_results([])


def returns_a_wrong_type_from_a_region(g: Graph) -> None:
    g.set_result_type(g.nodes[1].result, parse_type("f32[N, 3]"))


def breaks_inside_a_region(g: Graph) -> None:
    region = fused(g)
    region.set_result_type(region.nodes[0].result, parse_type("f32[7]"))


def returns_a_stranger(g: Graph) -> None:
    g.set_results([Value(parse_type("f32[]"), "stranger")])


def returns_an_unknown_size(g: Graph) -> None:
    g.set_results([symbol("M")])


def returns_what_text_cannot_hold(g: Graph) -> None:
    g.set_results([object()])


def returns_a_list(g: Graph) -> None:
    g.set_results([[1, 2]])


def has_another_number_of_inputs_than_leaves(g: Graph) -> None:
    _, g.in_spec = pytree.tree_flatten(((1,), {}))


def has_another_number_of_results_than_leaves(g: Graph) -> None:
    _, g.out_spec = pytree.tree_flatten((1, 2))


def writes_to_a_result(g: Graph) -> None:
    g.set_writeback(g.nodes[0].result, g.nodes[1].result)


def writes_a_stranger(g: Graph) -> None:
    g.set_writeback(g.inputs[0], Value(g.inputs[0].type, "stranger"))


def writes_another_type(g: Graph) -> None:
    g.set_writeback(g.constants["w"], g.nodes[0].result)


def forgets_a_use(g: Graph) -> None:
    g.inputs[0]._users.clear()


def miscounts_results(g: Graph) -> None:
    g.nodes[0].result._result_uses += 1


@pytest.mark.parametrize(
    ("breaks", "what", "mark"),
    [
        (uses_before_definition, "%1 is used before it is defined", "fusion.pointwise(%1)"),
        (uses_a_stranger, "<input %stranger: f32[N, 4]> is used before", "aten.linear(%?stranger"),
        (uses_a_value_of_the_region, "is used before it is defined", "aten.max.dim"),
        (has_an_input_twice, "the input 'x' is defined twice", ""),
        (has_a_value_twice, "result 2 names another producer or place", "aten.max.dim"),
        (misplaces_a_result, "result 0 names another producer or place", "aten.max.dim"),
        (disowns_a_node, "belongs to another graph", "aten.linear"),
        (names_a_constant_otherwise, "the constant @w calls itself @v", ""),
        (binds_an_unfit_tensor, "the constant @w is f32[4, 4], its tensor is torch.int64 [4, 4]", ""),
        (has_a_wrong_dtype, "%0 is said to be f64[N, 4], the op gives f32[N, 4]", "aten.linear"),
        (has_a_wrong_size, "%0 is said to be f32[N, 5], the op gives f32[N, 4]", "aten.linear"),
        (has_a_wrong_symbolic_size, "%0 is said to be f32[N + 1, 4], the op gives f32[N, 4]", "aten.linear"),
        (has_a_wrong_rank, "%0 is said to be f32[N, 4, 1]", "aten.linear"),
        (has_a_wrong_device, "%0 is said to be f32[N, 4] @meta", "aten.linear"),
        (takes_a_tensor_for_a_scalar, "%0 is said to be float, the op gives f32[N, 4]", "aten.linear"),
        (has_a_literal_for_a_result, "%0 is a literal", "aten.linear"),
        (has_too_few_results, "aten.max.dim gives 2 results, the node has 1", "aten.max.dim"),
        (refuses_its_operands, "aten.linear does not accept these operands", "aten.linear"),
        (mentions_an_unknown_size, "the size 'M' is used before", "aten.ones"),
        (uses_a_size_before_the_data_decide_it, "the size 'u0' is used before", "aten.ones"),
        (makes_up_a_size, "has a size 'M' that no input defines", "aten.nonzero"),
        (makes_a_size_of_another_symbol, "the symbol N is not that of a size", "aten.linear"),
        (has_no_range_for_a_size, "the size 'M' of %y has no range", ""),
        (has_a_size_no_input_tells, "the size 'M' is used before", "aten.ones"),
        (has_an_empty_range, "the range [8, 4] of the size 'N' is empty", ""),
        (has_an_odd_name_for_a_size, "a size cannot be named 'nan'", ""),
        (writes_in_place, "aten.add_.Tensor writes to its operand", "aten.add_"),
        (is_no_operator, "is no operator", "(%x, @w)"),
        (is_not_in_normal_form, "not in normal form", "aten.linear"),
        (has_an_operand_too_many, "aten.linear takes 3 arguments, 4 given", "aten.linear"),
        (holds_what_text_cannot, "cannot hold the literal", "aten.mul.Tensor(...)"),
        (has_a_value_among_the_options, "the options of mkldnn.linear are not literals", "aten.linear"),
        (has_an_option_that_is_no_name, "the options of mkldnn.linear are not literals", "aten.linear"),
        (lacks_a_region, "fusion.pointwise needs a region", "fusion.pointwise"),
        (has_two_regions_in_a_fusion, "a fusion has one region, not 2", "fusion.pointwise"),
        (has_a_region_on_an_operator, "aten.linear takes no regions", "aten.linear"),
        (shares_a_region, "a region belongs to another node", "fusion.pointwise"),
        (contains_itself, "a region contains itself", "fusion.some"),
        (has_sizes_of_its_own_in_a_region, "a region has sizes of its own", "fusion.pointwise"),
        (writes_back_in_a_region, "a region writes back", "fusion.pointwise"),
        (passes_too_much_to_a_region, "the region takes 1 values, the node passes 2", "fusion.pointwise"),
        (passes_another_type_to_a_region, "parameter is f32[N, 4], its operand %p bool[]", "fusion"),
        (passes_a_literal_to_a_fusion, "a fusion takes values only, not 3", "fusion.pointwise(3)"),
        (passes_another_type_to_a_branch, "a region's parameter is f32[N], its operand %x", "cond"),
        (refers_to_no_region, "there is no region ^2", "higher_order.cond"),
        (returns_different_things_from_branches, "the regions of higher_order.cond return different", "cond"),
        (returns_a_wrong_type_from_a_region, "%1 is said to be f32[N, 3], the op gives f32[N, 4]", "fusion"),
        (breaks_inside_a_region, "%b is said to be f32[7], the op gives f32[N, 4]", "aten.relu(%a)"),
        (returns_a_stranger, "the graph returns <input %stranger: f32[]>, which it does not define", ""),
        (returns_an_unknown_size, "the graph returns the size 'M'", ""),
        (returns_what_text_cannot_hold, "a result: a graph cannot hold the literal", ""),
        (returns_a_list, "the results are not flat", ""),
        (has_another_number_of_inputs_than_leaves, "structure of the inputs", ""),
        (has_another_number_of_results_than_leaves, "structure of the results", ""),
        (writes_to_a_result, "is neither an input nor a constant", ""),
        (writes_a_stranger, "the graph writes back <input %stranger", ""),
        (writes_another_type, "@w is f32[4, 4], what is written to it f32[N, 4]", ""),
        (forgets_a_use, "the use list of %x does not match its uses", ""),
        (miscounts_results, "%0 miscounts its uses as a result", "aten.linear"),
    ],
)  # fmt: skip
def test_each_check_fires(breaks: Callable[[Graph], None], what: str, mark: str) -> None:
    g = graph()
    breaks(g)
    with pytest.raises(VerificationError) as caught:
        g.verify()
    assert what in caught.value.what
    marked = [line for line in str(caught.value.why).split("\n") if line.startswith("> ")]
    assert len(marked) == (1 if mark else 0), "the node in question is pointed at"
    assert mark in "".join(marked)
