"""Random small graphs, as they are and optimised: ONNX Runtime agrees with the interpreter."""

from __future__ import annotations

import torch
from hypothesis import given, reject, settings

import passes
from capture import Graph
from capture.errors import CaptureError
from capture.ir import Trait, has
from codegen import onnx
from tests.random_graphs import EPSILON, LIMIT, Case, cases

EPSILON_OF_NORMS = 1e-8  # ONNX holds the epsilon of a norm in single precision, also for doubles


def agrees(graph: Graph, case: Case, **sizes: int) -> None:
    floats = [v.tensor_type.dtype for n in graph.nodes for v in n.results if v.tensor_type.dtype in EPSILON]
    coarsest = max((EPSILON[dtype] for dtype in floats), default=0.0)
    if any(has(n.op, Trait.NORM) for n in graph.nodes):
        coarsest = max(coarsest, EPSILON_OF_NORMS)
    try:
        error = onnx.check(onnx.export(graph), graph, case.args(**sizes))
    except CaptureError as refused:
        # ONNX Runtime's CPU provider lacks some functions of doubles.
        if "Could not find an implementation" in str(refused) and torch.float64 in floats:
            reject()
        raise
    assert error <= coarsest * LIMIT


@settings(max_examples=150)
@given(cases())
def test_static(case: Case) -> None:
    agrees(case.graph, case)


@settings(max_examples=60)
@given(cases(dynamic=True))
def test_dynamic(case: Case) -> None:
    for size in (1, 2, 5):
        agrees(case.graph, case, **dict.fromkeys(case.graph.dims, size))


@settings(max_examples=60)
@given(cases())
def test_optimized(case: Case) -> None:
    agrees(passes.optimize(case.graph, level=2), case)
