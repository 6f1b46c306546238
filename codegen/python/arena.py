"""Where a generated module puts values: views of one arena, as the memory plan says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from capture.ir import Graph, TensorType, Value
from capture.ir.text import names


@dataclass
class ArenaLayout:
    """The part of a memory plan that generated code follows; empty where the graph has no plan."""

    size: int = 0
    plan: Any = None
    slots: dict[Value, tuple[int, TensorType]] = field(default_factory=dict)
    buffer_of: dict[Value, Any] = field(default_factory=dict)
    used: dict[Value, str] = field(default_factory=dict)

    @staticmethod
    def of(graph: Graph) -> ArenaLayout:
        plan = graph.memory_plan
        if plan is None:
            return ArenaLayout()
        by_name = {name: buffer for buffer in plan.buffers for name in buffer.values}
        layout = ArenaLayout(plan=plan)
        for value, name in names(graph).items():
            if name in by_name:
                layout.buffer_of[value] = by_name[name]
        return layout

    def shared(self, a: Value, b: Value) -> bool:
        """Whether both live in one buffer of the plan."""
        home = self.buffer_of.get(a)
        return home is not None and home is self.buffer_of.get(b)

    def view(self, value: Value) -> str | None:
        """The arena's view for a value, or None where its callee allocates it."""
        return None

    def source(self) -> list[str]:
        return []

    def comment(self) -> list[str]:
        return []
