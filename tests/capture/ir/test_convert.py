"""Graph -> torch.fx and networkx: what runs there is what the interpreter runs."""

from __future__ import annotations

import copy
from typing import Any

import networkx
import pytest
import torch

from capture.errors import CaptureError
from capture.ir import Graph, Node

aten = torch.ops.aten


def bound(text: str) -> Graph:
    graph = Graph.parse(text).verify()
    generator = torch.Generator().manual_seed(0)
    shapes = {name: c.tensor_type.concrete({}) for name, c in graph.constants.items()}
    return graph.bind({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def same(graph: Graph, *args: Any) -> None:
    """The module returns what the interpreter does, and writes back the same."""
    module = graph.to_fx()
    theirs, ours = copy.deepcopy(args), copy.deepcopy(args)
    wanted = graph.clone().run(*ours) if not graph.writebacks else Graph.run(_deep(graph), *ours)
    found = module(*theirs)
    assert isinstance(found, tuple)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert len(found) == len(wanted)
    for a, b in zip((*found, *theirs), (*wanted, *ours), strict=True):
        torch.testing.assert_close(a, b) if isinstance(a, torch.Tensor) else pytest.approx(b) == a


def _deep(graph: Graph) -> Graph:
    """A clone with constants of its own."""
    clone = graph.clone()
    for constant in clone.constants.values():
        constant.tensor = None if constant.tensor is None else constant.tensor.clone()
    return clone


def test_operators_constants_and_several_results() -> None:
    graph = bound(
        "graph(%x: f32[2, 4], %if: f32[2, 3], %a.b: i64[2], %a_b: f32[2, 3])\n"
        "  @fc.weight: f32[3, 4]\n"
        '  @"0 bias": f32[3]\n'
        '  %0: f32[2, 3] = aten.linear(%x, @fc.weight, @"0 bias")\n'
        "  %1: f32[2], %2: i64[2] = aten.max.dim(%0, 1)\n"
        "  %3: f32[2, 3] = aten.add.Tensor(%0, %if, alpha=2)\n"
        "  %4: f32[1, 3], %5: f32[1, 3] = aten.split.Tensor(%a_b, 1)\n"
        "  %6: f32[1, 3] = aten.add.Tensor(%4, %5)\n"
        "  return %1, %2, %3, %6, %a.b, None, 3\n"
    )
    same(graph, torch.randn(2, 4), torch.randn(2, 3), torch.arange(2), torch.randn(2, 3))


def test_a_node_carries_its_origin() -> None:
    graph = bound("graph(%x: f32[2])\n  %0: f32[2] = aten.exp(%x)   # act  models/m.py:3,4\n  return %0\n")
    (node,) = (n for n in graph.to_fx().graph.nodes if n.op == "call_function")
    assert node.meta["origin"] == graph.nodes[0].origin
    assert node.meta["stack_trace"] == (
        '  File "models/m.py", line 3, in forward\n  File "models/m.py", line 4, in forward'
    )


@pytest.mark.parametrize("n", [3, 6])
def test_sizes_are_computed_from_whatever_tells_them(n: int) -> None:
    graph = bound(
        "graph(%x: f32[2*N + M], %y: f32[M*N, M]) where N in [1, 64], M in [1, 64]\n"
        "  %0: f32[N + 1, M] = aten.ones([N + 1, M])\n"
        "  %1: i64[max(N, M)] = aten.arange(max(N, M))\n"
        "  %2: i64[min(4, N)] = aten.arange(min(4, N))\n"
        "  %3: f32[N//2, M % 4] = aten.zeros([N//2, M % 4])\n"
        "  %4: f32[(N*N + 5)//2, 2*M - 1] = aten.zeros([(N*N + 5)//2, 2*M - 1])\n"
        "  return %0, %1, %2, %3, %4, N, 7//(M + 1), 9 % M\n"
    )
    same(graph, torch.randn(2 * n + 5), torch.randn(5 * n, 5))


def test_size_inputs_and_sizes_that_data_decide() -> None:
    graph = bound(
        "graph(%n: int(N), %x: f32[4]) where N in [1, 64]\n"
        "  %0: i64[u0, 1] = aten.nonzero(%x)\n"
        "  %1: i64[] = aten.sum(%0)\n"
        "  %2: int(u1) = aten.item(%1)\n"
        "  %3: f32[N*u0 + u1] = aten.ones([N*u0 + u1])\n"
        "  return %3, %2\n"
    )
    same(graph, 3, torch.tensor([1.0, 0.0, 2.0, 3.0]))


def test_regions_become_submodules() -> None:
    graph = bound(
        "graph(%x: f32[N, 2], %m: f32[M]) where N in [1, 64], M in [1, 64]\n"
        "  %0: f32[N, 2] = fusion.pointwise(%x) {\n"
        "    ^(%a: f32[N, 2])\n"
        "    %b: f32[M, 2] = aten.ones([M, 2])\n"
        "    %c: f32[2] = aten.sum.dim_IntList(%b, [0])\n"
        "    %d: f32[N, 2] = fusion.inner(%a, %c) {\n"
        "      ^(%a: f32[N, 2], %b: f32[2])\n"
        "      %c: f32[N, 2] = aten.mul.Tensor(%a, %b)\n"
        "      %d: f32[N, 2] = aten.full([N, 2], 0.5)\n"
        "      %e: f32[N, 2] = aten.add.Tensor(%c, %d)\n"
        "      return %e\n    }\n"
        "    return %d\n  }\n"
        "  %1: f32[N, 2], %2: f32[N, 2] = fusion.two(%0) {\n"
        "    ^(%a: f32[N, 2])\n    %b: f32[N, 2] = aten.neg(%a)\n    return %b, %a\n  }\n"
        "  return %1, %2\n"
    )
    module = graph.to_fx()
    assert sum(isinstance(m, torch.fx.GraphModule) for m in module.modules()) == 4
    same(graph, torch.randn(3, 2), torch.randn(5))


COND = (
    "graph(%p: bool[], %x: f32[N]) where N in [1, 9]\n"
    "  %0: f32[N], %1: f32[2*N] = higher_order.cond(%p, ^0, ^1, [%x]) {\n"
    "    ^(%a: f32[N])\n    %b: f32[2*N] = aten.full([2*N], 1.0)\n"
    "    %c: f32[N] = aten.neg(%a)\n    return %c, %b\n"
    "  } {\n"
    "    ^(%a: f32[N])\n    %b: f32[2*N] = aten.zeros([2*N])\n"
    "    %c: f32[N] = aten.exp(%a)\n    return %c, %b\n"
    "  }\n  return %0, %1\n"
)


@pytest.mark.parametrize("flag", [True, False])
def test_cond_keeps_both_branches(flag: bool) -> None:
    same(bound(COND), torch.tensor(flag), torch.randn(3))


def test_a_branch_that_needs_a_size_it_is_not_told_says_so() -> None:
    text = COND.replace("%x: f32[N])", "%x: f32[N], %y: f32[M])").replace(
        "where N in", "where M in [1, 9], N in"
    )
    with pytest.raises(CaptureError, match="nothing tells the size M"):
        bound(text.replace("2*N", "2*M")).to_fx()


def test_while_loop() -> None:
    graph = bound(
        "graph(%n: i64[], %x: f32[2], %y: f32[2])\n"
        "  %0: i64[], %1: f32[2] = higher_order.while_loop(^0, ^1, [%n, %x], [%y]) {\n"
        "    ^(%a: i64[], %b: f32[2], %c: f32[2])\n    %d: bool[] = aten.gt.Scalar(%a, 0)\n    return %d\n"
        "  } {\n"
        "    ^(%a: i64[], %b: f32[2], %c: f32[2])\n    %d: i64[] = aten.sub.Scalar(%a, 1)\n"
        "    %e: f32[2] = aten.mul.Tensor(%b, %c)\n    return %d, %e\n  }\n"
        "  return %0, %1\n"
    )
    same(graph, torch.tensor(3), torch.ones(2), torch.tensor([2.0, 3.0]))


def test_write_backs_give_old_values_and_leave_old_results() -> None:
    graph = bound(
        "graph(%x: f32[2, 2], %y: f32[2, 2])\n"
        "  @seen: f32[2, 2]\n"
        "  %0: f32[2, 2] strided = aten.t(%x)\n"
        "  %1: f32[2, 2] = aten.add.Tensor(@seen, %y)\n"
        "  return %0, %x, @seen, %1\n"
        "  write %x = %y\n"
        "  write %y = %0\n"
        "  write @seen = %1\n"
    )
    same(graph, torch.randn(2, 2), torch.randn(2, 2))
    module, x, y = graph.to_fx(), torch.randn(2, 2), torch.randn(2, 2)
    before = next(iter(module.buffers())).clone()
    module(x, y)
    assert not torch.equal(next(iter(module.buffers())), before)


def test_nodes_without_results_are_called() -> None:
    graph = bound('graph(%p: bool[])\n  aten._assert_async.msg(%p, "it\'s \\"false\\"")\n  return\n')
    assert graph.to_fx()(torch.tensor(True)) == ()
    with pytest.raises(RuntimeError, match='it\'s "false"'):
        graph.to_fx()(torch.tensor(False))


def test_unbound_constants_are_refused() -> None:
    with pytest.raises(CaptureError, match="the constant @w has no value"):
        Graph.parse("graph()\n  @w: f32[2]\n  return @w\n").to_fx()


def test_networkx_is_an_acyclic_graph_of_what_flows_where() -> None:
    graph = Graph.parse(
        "graph(%x: f32[N, 4], %p: bool[]) where N in [1, 9]\n"
        "  @w: f32[4, 4]\n"
        "  %0: f32[N, 4] = aten.linear(%x, @w)   # fc  m.py:3\n"
        "  %1: f32[N], %2: i64[N] = aten.max.dim(%0, 1)\n"
        '  aten._assert_async.msg(%p, "")\n'
        "  %3: f32[N, 4] = aten.mul.Tensor(%0, %0)\n"
        "  return 3, %3, %2\n"
        "  write @w = @w\n"
    )
    out = graph.to_networkx()
    assert networkx.is_directed_acyclic_graph(out)
    kinds = dict(out.nodes(data="kind"))
    assert kinds == {
        "%x": "input", "%p": "input", "@w": "constant", "%0": "node", "%1": "node",
        "aten._assert_async.msg#2": "node", "%3": "node",
        "result 0": "result", "result 1": "result", "result 2": "result", "write @w": "write",
    }  # fmt: skip
    assert sorted(out.edges()) == [
        ("%0", "%1"), ("%0", "%3"), ("%0", "%3"), ("%1", "result 2"), ("%3", "result 1"),
        ("%p", "aten._assert_async.msg#2"), ("%x", "%0"), ("@w", "%0"), ("@w", "write @w"),
    ]  # fmt: skip
    node = out.nodes["%0"]
    assert isinstance(node["node"], Node)
    assert (node["op"], node["origin"]) == ("aten.linear", "fc  m.py:3")
    edge = out.edges["%1", "result 2", 0]
    assert (edge["value"], edge["type"], str(edge["bytes"])) == ("%2", "i64[N]", "8*N")
    assert out.nodes["@w"]["type"] == "f32[4, 4]"
    order = [n for n in networkx.topological_sort(out) if kinds[n] == "node"]
    assert order.index("%0") < order.index("%3")


def test_graphs_without_nodes() -> None:
    graph = bound("graph(%x: f32[2])\n  return %x\n")
    same(graph, torch.ones(2))
    assert list(graph.to_networkx().edges()) == [("%x", "result 0")]
    assert bound("graph()\n  return\n").to_fx()() == ()
