"""Where buffers lie in an arena: the plan of a graph, and the planner by itself, which needs no PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capture._lazy import lazy_names

if TYPE_CHECKING:
    from passes.memory.attach import Memory
    from passes.memory.plan import Buffer, MemoryPlan, plan

__all__ = ["Buffer", "Memory", "MemoryPlan", "plan"]

_HOMES = {
    **dict.fromkeys(["Buffer", "MemoryPlan", "plan"], "passes.memory.plan"),
    "Memory": "passes.memory.attach",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
