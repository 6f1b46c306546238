"""The table of lowerings that users extend, and the check of what came out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from capture import Graph
from capture.errors import CaptureError, UnsupportedOpError, UsageError
from codegen import onnx


@torch.library.custom_op("onnx_test::swish", mutates_args=())
def own_swish(x: torch.Tensor, beta: float = 1.0, *, flip: bool = False) -> torch.Tensor:
    """An operator of a user's own."""
    return x * torch.sigmoid(beta * x) * (-1 if flip else 1)


@own_swish.register_fake
def _(x: torch.Tensor, beta: float = 1.0, *, flip: bool = False) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.fixture
def swish() -> Iterator[Any]:
    yield torch.ops.onnx_test.swish
    onnx.register_lowering(torch.ops.onnx_test.swish, None)
    onnx.register_lowering(torch.ops.onnx_test.swish.default, None)


def test_users_extend_the_table(swish: Any, trace: Callable[..., Graph]) -> None:
    args = (torch.randn(5),)
    graph = trace(lambda x: swish(x, 2.0), args)
    with pytest.raises(UnsupportedOpError, match=r"no ONNX lowering for onnx_test\.swish"):
        onnx.export(graph)
    onnx.register_lowering(
        swish, lambda op, x, beta: op.Mul(x, op.Sigmoid(op.Mul(x, op.cast(beta, x.type.dtype))))
    )
    assert onnx.check(onnx.export(graph), graph, args) < 1e-6


def test_a_keyword_that_the_lowering_lacks(swish: Any, trace: Callable[..., Graph]) -> None:
    onnx.register_lowering(swish, lambda op, x, beta: op.Mul(x, op.Sigmoid(x)))
    with pytest.raises(UnsupportedOpError, match=r"does not take these operands: .*'flip'"):
        onnx.export(trace(lambda x: swish(x, flip=True), (torch.randn(5),)))


def test_nodes_of_another_domain(swish: Any, trace: Callable[..., Graph]) -> None:
    onnx.register_lowering(
        swish.default, lambda op, x, beta: op.call("Swish", x, beta=beta, domain="com.acme")
    )
    model = onnx.export(trace(lambda x: swish(x, 2.0) + 1, (torch.randn(5),)))
    assert [(n.domain, n.op_type) for n in model.graph.node] == [("com.acme", "Swish"), ("", "Add")]
    assert {o.domain: o.version for o in model.opset_import} == {"": 23, "com.acme": 1}


def test_a_registered_lowering_goes_before_a_built_in_one(trace: Callable[..., Graph]) -> None:
    graph = trace(lambda x: x.relu(), (torch.randn(5),))
    onnx.register_lowering(torch.ops.aten.relu, lambda op, x: op.Max(x, op.cast(0, x.type.dtype)))
    try:
        assert [n.op_type for n in onnx.export(graph).graph.node] == ["Max"]
    finally:
        onnx.register_lowering(torch.ops.aten.relu, None)
    assert [n.op_type for n in onnx.export(graph).graph.node] == ["Relu"]


def test_a_wrong_lowering_is_found(trace: Callable[..., Graph]) -> None:
    onnx.register_lowering(torch.ops.aten.relu, lambda op, x: op.Cast(x, to=torch.int64))
    try:
        with pytest.raises(CaptureError, match="the ONNX model is not valid"):
            onnx.export(trace(lambda x: x.relu().sum(), (torch.randn(5),)))
    finally:
        onnx.register_lowering(torch.ops.aten.relu, None)


def test_only_operators_have_lowerings() -> None:
    with pytest.raises(UsageError, match="is not an operator"):
        onnx.register_lowering("aten.relu", lambda op, x: x)


def test_check_sees_a_difference(trace: Callable[..., Graph]) -> None:
    graph = trace(lambda x: x + 1, (torch.zeros(3),))
    other = trace(lambda x: x + 1.5, (torch.zeros(3),))
    wider = trace(lambda x: (x + 1).double(), (torch.zeros(3),))
    args = (torch.zeros(3),)
    assert onnx.check(onnx.export(other), graph, args) == 0.5
    assert onnx.check(onnx.export(wider), graph, args) == float("inf")
    assert onnx.check(onnx.export(graph), graph, (torch.full((3,), torch.nan),)) == 0
