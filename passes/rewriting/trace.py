"""Trace a rule's function at given operand types, into the form that captured graphs have after clean-up.

    def pattern(x, s): return torch.sigmoid(x * s) * x        x: f32[N, 8], s = 1.702

    ==>  graph(%x: f32[N, 8]) { mul, sigmoid, mul }

Sizes are those of the graph that is rewritten, symbolic where its are. Tracing is before dispatch, on fake
tensors, and takes some milliseconds; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from capture.errors import CaptureError
from capture.frontends.fake_inputs import FakeInputs
from capture.frontends.place import Place
from capture.frontends.sizes import Sizes
from capture.frontends.trace import trace
from capture.ir import Graph, Range, TensorType, Value, op_name
from capture.ir.infer import FakeContext
from capture.ir.ops import is_pure_call
from passes.base import make_pass
from passes.pipelines import CLEAN

__all__ = ["traced"]

NORMAL_FORM = ("recompose", *CLEAN)


class _Operands(FakeInputs):
    """Fakes of a rule's tensor operands, their sizes named as in the graph that is rewritten."""

    def __init__(
        self, names: Sequence[str], types: Sequence[TensorType], ranges: Mapping[str, Range], place: Place
    ) -> None:
        # As in capture, a size that may be 1 is traced as one that is not.
        self.context = FakeContext({name: _above_one(bounds) for name, bounds in ranges.items()})
        self.ranges = ranges
        fakes = [self.context.value(t) for t in types]
        super().__init__(names, fakes, [{} for _ in fakes], place)

    def sizes(self, graph: Graph) -> Sizes:
        """The names that the rewritten graph has for them."""
        found = Sizes(graph)
        found.names.update(self.context._names)
        graph.dims.update(self.ranges)
        return found

    def check_guards(self, sizes: Sizes) -> None:
        """Make sure that the function does the same for every size.

        Raises:
            CaptureError: it does not.
        """
        for guard in self.context.shape_env.guards:
            if guard.expr.free_symbols and not sizes.holds_always(guard.expr):
                raise CaptureError(f"it depends on {guard.expr.xreplace(sizes.names)}, which sizes may break")


def _above_one(bounds: Range) -> Range:
    if bounds.upper is not None and bounds.upper < 2:
        return bounds
    return Range(max(2, bounds.lower), bounds.upper)


def traced(
    function: Callable[..., Any],
    names: Sequence[str],
    operands: Sequence[Any],
    ranges: Mapping[str, Range] | None = None,
) -> Graph:
    """The function's graph; its inputs are the operands that are `TensorType`s, the rest are passed on.

    Args:
        ranges: of the symbolic sizes in the types.

    Raises:
        CaptureError: the function cannot be traced, returns what is no tensor, or is not pure.
    """
    types = {n: t for n, t in zip(names, operands, strict=True) if isinstance(t, TensorType)}

    def call(*tensors: Any) -> Any:
        given = iter(tensors)
        return function(*(next(given) if isinstance(v, TensorType) else v for v in operands))

    module = nn.Module()
    place = Place(module)
    inputs = _Operands(list(types), list(types.values()), ranges or {}, place)
    try:
        graph = trace(module, call, tuple(inputs.fakes), {}, inputs=inputs, place=place)
    except CaptureError:
        raise
    except Exception as error:  # whatever torch or the function raises
        raise CaptureError(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error
    if graph.writebacks:
        raise CaptureError("it writes to its operands; rules are functional")
    for result in graph.results:
        if not isinstance(result, Value) or not isinstance(result.type, TensorType):
            raise CaptureError(f"it returns {result!r}, which is no tensor")
    for name in NORMAL_FORM:
        make_pass(name).run(graph)
    for node in graph.nodes:
        if node.regions or not is_pure_call(node.op, node.operands, node.kwargs):
            raise CaptureError(f"{op_name(node.op)} is not pure, and is never rewritten")
    return graph
