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

from capture.errors import UsageError
from capture.ir import Graph
from passes.base import Pass, PassResult, Setting, register_pass
from passes.memory.plan import plan
from passes.memory.search import SECOND
from passes.memory.sizes import default_alignment

LARGEST = 16  # bytes of an element: complex128


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
        if self.alignment < 0 or self.alignment % LARGEST:
            raise UsageError(
                f"memory{{alignment={self.alignment}}}: no place that every dtype may begin at",
                hint=f"a multiple of {LARGEST}, or 0 for what suits the device",
            )
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


__all__ = ["Memory"]
