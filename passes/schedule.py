"""Order the nodes so that less memory is alive at once.

    %0 = big(%x)                         %0 = big(%x)
    %1 = big(%x)                         %2 = small(%0)      %0 is free before %1 is made
    %2 = small(%0)             ==>       %1 = big(%x)
    %3 = small(%1)                       %3 = small(%1)

Candidates are one order searched segment by segment, exactly where the budget allows, and the
least-memory-first (from either end) and depth-first orders. The one with the smallest planned arena wins; no
order whatever needs less than `bound_bytes`.
Does not fire where no candidate's arena is smaller than the given order's. Nodes with effects or random
numbers keep their order among themselves, and nodes that write into memory their place among those that touch
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from capture.ir import Graph
from passes.base import Pass, PassResult, register_pass
from passes.buffers import buffers
from passes.liveness import liveness_of
from passes.memory.plan import arena_bytes
from passes.memory.sizes import Sizes, default_alignment
from passes.ordering import Problem, best_order, problem_of
from passes.ordering.heuristics import heuristics


@register_pass
@dataclass(frozen=True)
class Schedule(Pass):
    name = "schedule"
    beam: int = 64  # states that the beam search keeps
    moves: int = 1_000_000  # budget of the searches: single moves looked at

    def run(self, graph: Graph) -> PassResult:
        nodes = list(graph.nodes)
        shared = buffers(graph)
        sizes = Sizes(graph, alignment=default_alignment(graph))
        before, _ = arena_bytes(shared, liveness_of(shared, nodes, graph), sizes)
        problem = problem_of(graph, shared, sizes)
        best, arena = nodes, before
        bound, orders = self._candidates(problem) if before > problem.floor else (problem.floor, ())
        for order in orders:
            candidate = [nodes[task] for task in order]
            found, _ = arena_bytes(shared, liveness_of(shared, candidate, graph), sizes, limit=arena)
            if found < arena:
                best, arena = candidate, found
        if best is nodes:
            return PassResult(False, {"arena_bytes": before, "bound_bytes": bound})
        graph.reorder(best)
        graph.attach("buffers", replace(shared, version=graph.version))
        stats = {"arena_bytes": arena, "bound_bytes": bound, "saved_bytes": before - arena}
        return PassResult(True, stats)

    def _candidates(self, problem: Problem) -> tuple[int, Iterator[list[int]]]:
        """A lower bound of every order's peak, and orders to try."""
        found = best_order(problem, beam=self.beam, moves=self.moves)
        return found.bound, chain([found.order], heuristics(problem))
