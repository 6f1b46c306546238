"""Where verify() points, what it takes as equal sizes, loops, and that it is quick."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from capture.errors import VerificationError
from capture.ir import (
    CapturedOp,
    Graph,
    Node,
    Origin,
    Range,
    infer,
)
from capture.ir.graph import NodeList
from capture.ir.parse import parse_type
from tests.capture.ir.test_verify import fused, graph

aten = torch.ops.aten


def test_an_error_shows_the_neighbours_and_the_users_own_line() -> None:
    g = graph()
    g.captured[7] = CapturedOp(7, "aten.max.dim", "pick", "models/m.py", 12, "best, at = scores.max(1)")
    pick = g.nodes[2]
    pick.origin = Origin((7,), ("pick",), (("models/m.py", 12),))
    pick.results[1].type = parse_type("f32[N]")
    with pytest.raises(VerificationError) as caught:
        g.verify()
    lines = [line.split("#")[0].rstrip() for line in str(caught.value).split("\n")]
    assert lines == [
        "%3 is said to be f32[N], the op gives i64[N]",
        "  models/m.py:12   best, at = scores.max(1)",
        "    %0: f32[N, 4] = aten.linear(%x, @w)",
        "    %1: f32[N, 4] = fusion.pointwise(%0) {",
        "  > %2: f32[N], %3: f32[N] = aten.max.dim(%1, 1)",
        "    %4: f32[N] = higher_order.cond(%p, ^0, ^1, [%2]) {",
        "    %5: i64[u0, 1] = aten.nonzero(%4)",
    ]


def test_a_region_shows_its_own_nodes_and_the_line_around_it() -> None:
    g = graph()
    g.captured[3] = CapturedOp(3, "aten.relu", "act", "m.py", 4, "y = act(x)")
    inner = fused(g).nodes[0]
    inner.origin = Origin((3,), ("act",), (("m.py", 4),))
    inner.result.type = parse_type("f32[9]")
    with pytest.raises(VerificationError, match=r"m.py:4   y = act\(x\)\n  > %b: f32\[9\] = aten.relu\(%a\)"):
        g.verify()


@pytest.mark.parametrize(
    ("said", "sound"),
    [
        ("f32[(N*N + N)//(N + 1), 4]", True),
        ("f32[N*N//N, 4]", True),
        ("f32[max(1, N), 4]", True),
        ("f32[max(2, N), 4]", False),
        ("f32[min(64, N), 4]", True),
        ("f32[min(63, N), 4]", False),
        ("f32[N, 4] channels_last", True),
        ("f32[N, 4] strided", True),
        ("f32[u9, 4]", True),
        ("f32[N, 4] @cpu:0", True),
    ],
)
def test_sizes_are_compared_as_functions_of_the_dims(said: str, sound: bool) -> None:
    """N lies in [1, 64]; a memory format is a matter of layout; data-dependent sizes go by any name."""
    g = Graph.parse("graph(%x: f32[N, 4]) where N in [1, 64]\n  %0: f32[N, 4] = aten.relu(%x)\n  return %0\n")
    g.set_result_type(g.nodes[0].result, parse_type(said))
    if sound:
        g.verify()
    else:
        with pytest.raises(VerificationError, match="is said to be"):
            g.verify()


def test_a_loop_is_checked_by_its_body() -> None:
    text = (
        "graph(%n: i64[], %x: f32[2], %y: f32[2])\n"
        "  %0: i64[], %1: f32[2] = higher_order.while_loop(^0, ^1, [%n, %x], [%y]) {\n"
        "    ^(%a: i64[], %b: f32[2], %c: f32[2])\n    %d: bool[] = aten.gt.Scalar(%a, 0)\n    return %d\n  } {\n"  # noqa: E501
        "    ^(%a: i64[], %b: f32[2], %c: f32[2])\n    %d: i64[] = aten.sub.Scalar(%a, 1)\n"
        "    %e: f32[2] = aten.mul.Tensor(%b, %c)\n    return %d, %e\n  }\n"
        "  return %1\n"
    )
    Graph.parse(text).verify()
    with pytest.raises(VerificationError, match="a region's parameter is f32"):
        Graph.parse(text.replace("%c: f32[2])", "%c: f32[3])", 1)).verify()
    with pytest.raises(VerificationError, match="%1 is said to be"):
        Graph.parse(text.replace("%1: f32[2] =", "%1: f32[3] =")).verify()


def test_an_unknown_region_op_is_taken_at_its_word() -> None:
    """Only scan knows what it stacks; its regions are checked all the same."""
    text = (
        "graph(%x: f32[5, 2])\n"
        "  %0: f32[5, 2] = higher_order.map_impl(^0, [%x], []) {\n"
        "    ^(%a: f32[2])\n    %b: f32[2] = aten.neg(%a)\n    return %b\n  }\n  return %0\n"
    )
    Graph.parse(text).verify()
    with pytest.raises(VerificationError, match="%b is said to be"):
        Graph.parse(text.replace("%b: f32[2]", "%b: f32[3]")).verify()


def test_a_size_known_at_the_node_is_known_in_its_region() -> None:
    text = (
        "graph(%x: f32[4])\n  %0: i64[u0, 1] = aten.nonzero(%x)\n"
        "  %1: f32[u0] = fusion.some() {\n    ^()\n    %a: f32[u0] = aten.ones([u0])\n    return %a\n  }\n"
        "  return %0, %1\n"
    )
    Graph.parse(text).verify()
    with pytest.raises(VerificationError, match="'u1' is used before"):
        Graph.parse(text.replace("u0]) ", "u1]").replace("aten.ones([u0])", "aten.ones([u1])")).verify()


def test_long_graphs_are_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 nodes: the list is walked a few times, whatever its length, and equal calls are made once."""
    g = Graph()
    g.dims["N"] = Range(1, 64)
    value = g.add_input("x", parse_type("f32[N, 8]"))
    weight = g.add_constant("w", parse_type("f32[8, 8]"))
    for i in range(5000):
        op, operands = (aten.linear.default, [value, weight]) if i % 2 else (aten.add.Tensor, [value, value])
        value = g.add_node(op, operands, types=[value.type]).result
    g.set_results([value])
    walks, calls = 0, 0
    iterate, fake_call = NodeList.__iter__, infer.fake_call

    def counted_walk(nodes: NodeList) -> Iterator[Node]:
        nonlocal walks
        walks += 1
        return iterate(nodes)

    def counted_call(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return fake_call(*args)

    monkeypatch.setattr(NodeList, "__iter__", counted_walk)
    monkeypatch.setattr(infer, "fake_call", counted_call)
    g.verify()
    assert walks <= 5
    assert calls == 2
