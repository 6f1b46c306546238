"""Attach a memory plan: a place in one arena for each transient buffer.

    %0 = conv2d(%x, ...)         [0, 2)   offset 0
    %1 = max_pool2d(%0, ...)     [1, 3)   offset 3211264
    %2 = conv2d(%1, ...)         [2, 4)   offset 0             %0 is dead by then
    return linear(%2)                                          results are never in the arena

Changes no node; `graph.memory_plan` is the plan until the graph is edited. Values whose size has no upper
bound stay out of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from capture.ir import Graph
from passes.base import Pass, PassResult, Setting, register_pass
from passes.memory.plan import plan
from passes.memory.search import SECOND


@register_pass
@dataclass(frozen=True)
class Memory(Pass):
    name = "memory"
    alignment: int = 0  # bytes; 0: 64 on a CPU, 256 on a GPU
    effort: int = (
        SECOND  # of the search, where the greedy plan is above the lower bound; at level 3, 20 times it
    )

    def at(self, setting: Setting) -> Memory:
        return replace(self, effort=20 * self.effort) if setting.level >= 3 else self

    def run(self, graph: Graph) -> PassResult:
        alignment = self.alignment or default_alignment(graph)
        made = plan(graph, alignment=alignment, effort=self.effort)
        graph.attach("memory_plan", made)
        stats = {
            "arena_bytes": made.arena_bytes,
            "lower_bound_bytes": made.lower_bound_bytes,
            "naive_bytes": made.naive_bytes,
            "callee_allocated_bytes": made.callee_allocated_bytes,
        }
        return PassResult(False, stats)


def default_alignment(graph: Graph) -> int:
    """256 bytes where a result of the graph's nodes lies on a GPU, else 64: a cache line."""
    types = (v.type for node in graph.nodes for v in node.results)
    return 256 if any(getattr(t, "device", None) and t.device.type == "cuda" for t in types) else 64


__all__ = ["Memory", "default_alignment"]
