"""Bytes to plan for where sizes are symbolic: the most that a size expression can be."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import sympy
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from capture.ir import Graph, Range, TensorType
from capture.ir.dims import Dim


class Sizes:
    """The upper bounds of a graph's sizes: each dim at the size given for it, else anywhere in its range.

    An expression's bound is found by interval arithmetic, so that N rows and 64 - N rows are both planned
    for.
    """

    def __init__(self, graph: Graph, sizes: Mapping[str, int] | None = None, alignment: int = 1) -> None:
        given = dict(sizes or {})
        ranges = {
            name: Range(given[name], given[name]) if name in given else r for name, r in graph.dims.items()
        }
        self.given = {name: given[name] for name in graph.dims if name in given}
        self.ranges = tuple(ranges.items())
        self.alignment = alignment

    def __call__(self, nbytes: Dim) -> int | None:
        """Bytes as planned, rounded up to the alignment; None where there is no bound."""
        most = nbytes if isinstance(nbytes, int) else _upper(nbytes, self.ranges)
        return None if most is None else -(-most // self.alignment) * self.alignment


@lru_cache(maxsize=4096)
def _upper(expr: sympy.Expr, ranges: tuple[tuple[str, Range], ...]) -> int | None:
    known = {name: ValueRanges(r.lower, int_oo if r.upper is None else r.upper) for name, r in ranges}
    free = {s: known.get(s.name, ValueRanges(0, int_oo)) for s in expr.free_symbols}
    upper = bound_sympy(expr, free).upper
    return int(upper) if isinstance(upper, (int, sympy.Integer)) else None


def default_alignment(graph: Graph) -> int:
    """256 bytes where a result of the graph's nodes lies on a GPU, else 64: a cache line."""
    types = (v.type for node in graph.nodes for v in node.results)
    return 256 if any(isinstance(t, TensorType) and t.device.type == "cuda" for t in types) else 64


__all__ = ["Sizes", "default_alignment"]
