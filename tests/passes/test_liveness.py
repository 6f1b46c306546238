"""Which values share a buffer, when buffers are alive, and what may be written over an operand."""

from __future__ import annotations

import pytest
import torch

from capture.errors import CaptureError
from capture.ir import Graph, Value
from capture.ir.text import names
from passes.buffers import buffers
from passes.liveness import liveness
from passes.memory import plan


def parse(text: str) -> Graph:
    return Graph.parse(text).verify()


def homes(graph: Graph) -> dict[str, str]:
    """Name of each node's result -> name of the buffer's first value."""
    named, shared = names(graph), buffers(graph)
    return {named[v]: named[shared.roots[v]] for n in graph.nodes for v in n.results if v in shared.roots}


def intervals(graph: Graph) -> dict[str, tuple[int, int]]:
    named = names(graph)
    return {named[v]: span for v, span in liveness(graph).intervals.items()}


def over(graph: Graph) -> dict[str, str]:
    named = names(graph)
    return {named[v]: named[o] for v, o in liveness(graph).in_place.items()}


VIEWS = """graph(%x: f32[4, 6])
  %0: f32[4, 6] = aten.cumsum(%x, 0)
  %1: f32[6, 4] strided = aten.permute(%0, [1, 0])
  %2: f32[24] = aten.reshape(%1, [24])
  %3: f32[2, 12] = aten.reshape(%0, [2, 12])
  %4: f32[12] = aten.sum.dim_IntList(%3, [0])
  %5: f32[12] = aten.slice.Tensor(%2, 0, 0, 12)
  %6: f32[12] = aten.cumsum(%5, 0)
  %7: f32[12] = aten.sub.Tensor(%6, %4)
  %8: f32[12] = aten.cumsum(%7, 0)
  return %8
"""


def test_views_live_in_their_roots_buffer_and_a_reshape_that_copies_does_not() -> None:
    views = {"%1": "%0", "%3": "%0", "%5": "%2"}
    assert homes(parse(VIEWS)) == {f"%{i}": f"%{i}" for i in range(9)} | views


def test_a_buffer_lives_until_the_last_reader_of_any_of_its_views() -> None:
    graph = parse(VIEWS)
    assert liveness(graph).lifetimes[value(graph, "%2")] == (2, 7)
    # %0 as long as %2, which is a view of it where the caller's %x has other strides; %7 is written over %6;
    # %8 is a result, which no buffer of the call may hold.
    assert intervals(graph) == {"%0": (0, 7), "%2": (2, 7), "%4": (4, 8), "%6": (6, 9)}
    assert over(graph) == {"%7": "%6"}


def value(graph: Graph, name: str) -> Value:
    return next(v for v, n in names(graph).items() if n == name)


def test_inputs_constants_and_results_are_left_out_with_all_their_views() -> None:
    graph = parse("""graph(%x: f32[4, 6])
  @w: f32[6]
  %0: f32[24] = aten.reshape(%x, [24])
  %1: f32[2, 3] = aten.reshape(@w, [2, 3])
  %2: f32[24] = aten.cumsum(%0, 0)
  %3: f32[24] = aten.cumsum(%2, 0)
  %4: f32[4, 6] = aten.reshape(%2, [4, 6])
  return %4, %1
""")
    assert intervals(graph) == {"%3": (3, 4)}  # unused, but alive while it is made


def test_what_is_written_back_lives_to_the_end() -> None:
    graph = parse("""graph(%x: f32[8])
  @state: f32[8]
  %0: f32[8] = aten.add.Tensor(@state, %x)
  %1: f32[8] = aten.cumsum(%x, 0)
  %2: f32[8] = aten.cumsum(%1, 0)
  return %2
  write @state = %0
""")
    assert intervals(graph) == {"%0": (0, 3), "%1": (1, 3)}


def test_what_is_written_back_is_not_written_over_by_the_last_node() -> None:
    graph = parse("""graph(%x: f32[8])
  @state: f32[8]
  %0: f32[8] = aten.cumsum(@state, 0)
  %1: f32[8] = aten.sin(%0)
  return
  write @state = %0
""")
    assert over(graph) == {}


def test_a_tuple_of_results_has_a_buffer_each_and_pieces_of_a_split_none() -> None:
    graph = parse("""graph(%x: f32[4, 6])
  %0: f32[4, 6] = aten.cumsum(%x, 0)
  %1: f32[4, 2] strided, %2: f32[4, 4] strided = aten.split_with_sizes(%0, [2, 4], 1)
  %3: f32[4, 2], %4: i64[4, 2] = aten.topk(%1, 2)
  %5: f32[4, 2] = aten.gather(%2, 1, %4)
  return %5
""")
    assert homes(graph) == {"%0": "%0", "%1": "%0", "%2": "%0", "%3": "%3", "%4": "%4", "%5": "%5"}
    assert intervals(graph) == {"%0": (0, 4), "%3": (2, 3), "%4": (2, 4)}


def test_dropout_in_evaluation_returns_its_operand() -> None:
    graph = parse("""graph(%x: f32[8])
  %0: f32[8] = aten.cumsum(%x, 0)
  %1: f32[8] = aten.dropout(%0, 0.5, False)
  %2: f32[8] = aten.cumsum(%1, 0)
  %3: f32[8] = aten.cumsum(%2, 0)
  return %3
""")
    assert homes(graph)["%1"] == "%0"


def test_a_type_that_says_channels_last_is_taken_at_its_word() -> None:
    """Only then does flattening the kernel's result copy."""
    text = """graph(%x: f32[1, 3, 8, 8])
  @w: f32[4, 3, 3, 3]
  %0: f32[1, 4, 8, 8] = aten.conv2d(%x, @w, None, [1, 1], [1, 1])
  %1: f32[1, 256] = aten.reshape(%0, [1, 256])
  %2: f32[1, 256] = aten.cumsum(%1, 1)
  return %2
"""
    assert homes(parse(text))["%1"] == "%0"
    lowered = text.replace("%0: f32[1, 4, 8, 8]", "%0: f32[1, 4, 8, 8] channels_last")
    assert homes(parse(lowered))["%1"] == "%1"


def test_the_strides_of_a_bound_constant_count() -> None:
    text = """graph(%x: f32[2])
  @w: f32[4, 6]
  %0: f32[24] = aten.reshape(@w, [24])
  %1: f32[24] = aten.cumsum(%0, 0)
  return %1
"""
    graph = parse(text)
    assert homes(graph)["%0"] == "@w"
    transposed = parse(text)
    transposed.constants["w"].tensor = torch.zeros(6, 4).t()
    assert homes(transposed)["%0"] == "%0"


RESHAPED = """graph(%x: f32[{0}, 4]){1}
  %0: f32[{0}, 4] = aten.cumsum(%x, 0)
  %1: f32[4, {0}] strided = aten.permute(%0, [1, 0])
  %2: f32[{2}] = aten.reshape(%1, [{2}])
  %3: f32[{2}] = aten.relu(%2)
  %4: f32[{2}] = aten.cumsum(%3, 0)
  return %4
"""


@pytest.mark.parametrize("sizes", [("N", " where N in [1, 64]", "4*N"), ("7", "", "28")])
def test_a_copy_may_be_a_view_after_all_and_keeps_its_operand(sizes: tuple[str, str, str]) -> None:
    """It is one with N = 1, and where the caller's %x lies the other way round."""
    graph = parse(RESHAPED.format(*sizes))
    assert intervals(graph) == {"%0": (0, 4), "%2": (2, 4), "%3": (3, 5)}
    assert over(graph) == {}


def test_what_a_result_may_be_a_view_of_lives_to_the_end_and_is_not_placed() -> None:
    graph = parse("""graph(%x: f32[N, 4], %y: f32[8, 4]) where N in [1, 64]
  %0: f32[N, 4] = aten.exp(%x)
  %1: f32[4, N] strided = aten.permute(%0, [1, 0])
  %2: f32[4*N] = aten.reshape(%1, [4*N])
  %3: f32[8, 4] = aten.exp(%y)
  %4: f32[8, 4] = aten.cumsum(%3, 0)
  return %2, %4
""")
    assert intervals(graph) == {"%0": (0, 5), "%3": (3, 5)}
    assert over(graph) == {}
    assert [b.callee for b in plan(graph).buffers] == [True, False]


def test_sizes_that_depend_on_data() -> None:
    graph = parse("""graph(%x: f32[8])
  %0: i64[u0, 1] = aten.nonzero(%x)
  %1: i64[u0] = aten.reshape(%0, [u0])
  %2: f32[u0] = aten.index.Tensor(%x, [%1])
  %3: f32[u0] = aten.exp(%2)
  %4: f32[] = aten.sum(%3)
  return %4
""")
    assert homes(graph)["%1"] == "%0"
    assert intervals(graph) == {"%0": (0, 3), "%2": (2, 5)}


IN_PLACE = """graph(%x: {type}, %y: {type}, %b: f32[6])
  %0: {type} = aten.cumsum(%x, 0)
  %1: {type} = aten.cumsum(%y, 0)
  {line}
  %3: {made} = aten.cumsum(%2, 0)
  %4: {made} = aten.cumsum(%3, 0)
  return %4
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%2: f32[4, 6] = aten.relu(%0)", {"%2": "%0"}),
        ("%2: f32[4, 6] = aten.add.Tensor(%0, %1)", {"%2": "%0"}),
        ("%2: f32[4, 6] = aten.add.Tensor(%x, %1)", {"%2": "%1"}),  # inputs are the caller's
        ("%2: f32[4, 6] = aten.add.Tensor(%0, %b)", {"%2": "%0"}),  # %b is broadcast
        ("%2: f32[4, 6] = aten.mul.Tensor(%0, %0)", {"%2": "%0"}),
        ("%2: f32[4, 6] = aten.masked_fill.Scalar(%0, %m, 1.0)", {"%2": "%0"}),
        ("%2: bool[4, 6] = aten.gt.Tensor(%0, %1)", {}),  # fewer bytes
        ("%2: f32[4, 6] = aten.softmax.int(%0, 1)", {}),  # not elementwise
        ("%2: f32[4, 6] = aten.rsub.Scalar(%0, 1.0)", {}),  # its out= only copies
        ("%2: f32[4, 6] = aten.cumsum(%0, 0)", {}),
    ],
)
def test_in_place(line: str, expected: dict[str, str]) -> None:
    made = line.partition(": ")[2].partition(" = ")[0]
    text = IN_PLACE.format(type="f32[4, 6]", line=line, made="i64[4, 6]" if made.startswith("bool") else made)
    if "%m" in line:
        text = text.replace("%b: f32[6])", "%b: f32[6], %m: bool[4, 6])")
    assert over(parse(text)) == expected


def test_not_over_an_operand_that_is_read_again() -> None:
    graph = parse("""graph(%x: f32[8])
  %0: f32[8] = aten.cumsum(%x, 0)
  %1: f32[8] = aten.relu(%0)
  %2: f32[8] = aten.cumsum(%1, 0)
  %3: f32[8] = aten.sub.Tensor(%2, %0)
  %4: f32[8] = aten.cumsum(%3, 0)
  return %4
""")
    assert over(graph) == {"%3": "%2"}


def test_not_over_an_operand_of_which_a_view_is_read_again() -> None:
    graph = parse("""graph(%x: f32[8])
  %0: f32[8] = aten.cumsum(%x, 0)
  %1: f32[2, 4] = aten.reshape(%0, [2, 4])
  %2: f32[8] = aten.relu(%0)
  %3: f32[8] = aten.cumsum(%2, 0)
  %4: f32[4] = aten.sum.dim_IntList(%1, [0])
  return %3, %4
""")
    assert over(graph) == {}


def test_not_over_an_operand_that_the_node_also_reads_in_another_layout() -> None:
    graph = parse("""graph(%x: f32[4, 4])
  %0: f32[4, 4] = aten.cumsum(%x, 0)
  %1: f32[4, 4] strided = aten.permute(%0, [1, 0])
  %2: f32[4, 4] = aten.add.Tensor(%0, %1)
  %3: f32[4, 4] = aten.cumsum(%2, 0)
  return %3
""")
    assert over(graph) == {}


def test_not_where_the_strides_of_two_readings_differ_even_for_a_size_of_one() -> None:
    graph = parse("""graph(%x: f32[6])
  %0: f32[1] = aten.mean.dim(%x, [0], True)
  %1: f32[1] = aten.slice.Tensor(%0, 0, 0, 1, 2)
  %2: f32[1] = aten.add.Tensor(%1, %0)
  %3: f32[1] = aten.cumsum(%2, 0)
  return %3
""")
    assert over(graph) == {}


def test_not_over_part_of_a_buffer_nor_over_an_expanded_one() -> None:
    graph = parse("""graph(%x: f32[4, 6])
  %0: f32[4, 6] = aten.cumsum(%x, 0)
  %1: f32[2, 6] = aten.slice.Tensor(%0, 0, 0, 2)
  %2: f32[2, 6] = aten.relu(%1)
  %3: f32[1, 6] = aten.sum.dim_IntList(%2, [0], True)
  %4: f32[2, 6] strided = aten.expand(%3, [2, 6])
  %5: f32[2, 6] = aten.relu(%4)
  %6: f32[2, 6] = aten.cumsum(%5, 0)
  return %6
""")
    assert over(graph) == {}


def test_a_chain_written_over_one_operand_is_one_buffer() -> None:
    graph = parse("""graph(%x: f32[4, 6])
  %0: f32[4, 6] = aten.cumsum(%x, 0)
  %1: f32[4, 6] = aten.relu(%0)
  %2: f32[24] = aten.reshape(%1, [24])
  %3: f32[24] = aten.tanh(%2)
  %4: f32[24] = aten.cumsum(%3, 0)
  return %4
""")
    assert over(graph) == {"%1": "%0", "%3": "%2"}
    assert intervals(graph) == {"%0": (0, 5)}


FUSED = """graph(%x: f32[1, 4, 8, 8] channels_last, %w: f32[4, 4, 1, 1])
  %0: f32[1, 4, 8, 8] channels_last = aten.conv2d(%x, %w)
  %1: f32[1, 4, 8, 8] channels_last = fusion.conv(%x, %w, %0){impl} {{
    ^(%a: f32[1, 4, 8, 8] channels_last, %b: f32[4, 4, 1, 1], %c: f32[1, 4, 8, 8] channels_last)
    %d: f32[1, 4, 8, 8] channels_last = aten.conv2d(%a, %b)
    %e: f32[1, 4, 8, 8] channels_last = aten.add.Tensor(%d, %c)
    return %e
  }}
  %2: f32[1, 4, 1, 1] = aten.adaptive_avg_pool2d(%1, [1, 1])
  return %2
"""


def test_a_kernel_updates_the_operand_that_its_recipe_names() -> None:
    recipe = ' via onednn.conv(binary="add", other=2, inplace=2)'
    assert over(parse(FUSED.format(impl=recipe))) == {"%1": "%0"}
    assert over(parse(FUSED.format(impl=' via onednn.conv(binary="add", other=2)'))) == {}
    assert over(parse(FUSED.format(impl=""))) == {}  # a convolution reads more than it writes


POINTWISE = """graph(%x: f32[8], %y: f32[8])
  %0: f32[8] = aten.cumsum(%x, 0)
  %1: f32[8] = fusion.pointwise(%0, %y) {
    ^(%a: f32[8], %b: f32[8])
    %c: f32[8] = aten.relu(%a)
    %d: f32[8] = aten.add.Tensor(%c, %b)
    return %d
  }
  %2: f32[8] = aten.cumsum(%1, 0)
  return %2
"""


def test_a_pointwise_fusion_is_written_over_an_operand() -> None:
    assert over(parse(POINTWISE)) == {"%1": "%0"}
    reduced = POINTWISE.replace("%c: f32[8] = aten.relu(%a)", "%c: f32[8] = aten.cumsum(%a, 0)")
    assert over(parse(reduced)) == {}
    again = POINTWISE.replace("aten.add.Tensor(%c, %b)", "aten.add.Tensor(%c, %a)")
    assert over(parse(again)) == {}  # the first operator has written over what the second reads


def test_a_fusions_result_is_fresh_unless_it_hands_an_operand_through() -> None:
    assert homes(parse(POINTWISE))["%1"] == "%1"
    through = POINTWISE.replace("return %d", "return %a")
    assert homes(parse(through))["%1"] == "%0"


def test_a_changed_graph_refuses_the_old_liveness() -> None:
    graph = parse(VIEWS)
    old = liveness(graph)
    old.check(graph)
    graph.add_node(torch.ops.aten.relu.default, [graph.inputs[0]])
    with pytest.raises(CaptureError, match="another version"):
        old.check(graph)
    assert liveness(graph) is not old
    assert liveness(graph) is liveness(graph)


def test_no_nodes() -> None:
    graph = parse("graph(%x: f32[3])\n  return %x\n")
    assert intervals(graph) == {}
    assert liveness(graph).steps == 0


def test_scalars_and_empty_tensors() -> None:
    graph = parse("""graph(%x: f32[0, 3])
  %0: f32[0, 3] = aten.cumsum(%x, 0)
  %1: f32[] = aten.sum(%0)
  %2: float = aten.item(%1)
  %3: f32[0, 3] = aten.relu(%0)
  %4: f32[0, 3] = aten.cumsum(%3, 0)
  return %2, %4
""")
    assert "%1" in homes(graph)
    assert "%2" not in homes(graph)
    assert intervals(graph)["%1"] == (1, 3)
