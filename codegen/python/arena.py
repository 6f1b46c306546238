"""Where generated code puts values, as the memory plan says: views of an arena, or over a dying operand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from capture.ir import Graph, TensorType, Value
from capture.ir.types import CHANNELS_LAST, CHANNELS_LAST_3D, CONTIGUOUS
from capture.wording import human_size


@dataclass
class ArenaLayout:
    """The part of a memory plan that generated code follows; empty where the graph has no plan.

    `views` collects the views that the code asks for: attribute name -> the expression that makes it.
    """

    bytes: int = 0
    placements: Mapping[Value, int] = field(default_factory=dict)
    in_place: Mapping[Value, Value] = field(default_factory=dict)
    summary: str = ""
    views: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"

    @staticmethod
    def of(graph: Graph) -> ArenaLayout:
        plan = graph.memory_plan
        if plan is None:
            return ArenaLayout()
        summary = (
            f"{human_size(plan.arena_bytes)} of transient values at the peak "
            f"(lower bound {human_size(plan.lower_bound_bytes)}, "
            f"without reuse {human_size(plan.naive_bytes)}); "
            f"of it {human_size(plan.in_arena_bytes)} in the arena, the rest allocated by the kernels."
        )
        if plan.region_temporaries_bytes:
            more = human_size(plan.region_temporaries_bytes)
            summary += f" A fusion that runs as single calls takes up to {more} more."
        return ArenaLayout(plan.in_arena_bytes, plan.placements, plan.in_place, summary)

    def overwritten(self, value: Value) -> Value | None:
        """The operand over which the plan puts a result, if both look alike."""
        operand = self.in_place.get(value)
        return operand if operand is not None and operand.type == value.type else None

    def view(self, value: Value, name: str) -> str | None:
        """The arena's view for a value as an expression, or None where its kernel allocates it."""
        type_ = value.type
        if value not in self.placements or not isinstance(type_, TensorType) or not type_.is_static:
            return None
        start, self.device = self.placements[value], str(type_.device)
        flat = f"memory[{start}:{start + int(type_.nbytes)}].view({type_.dtype})"
        if type_.memory_format == CONTIGUOUS:
            self.views[name] = f"{flat}.view({list(type_.shape)})"
        elif type_.memory_format in (CHANNELS_LAST, CHANNELS_LAST_3D):
            batch, channels, *spatial = type_.shape
            axes = ", ".join(map(str, [0, type_.rank - 1, *range(1, type_.rank - 1)]))
            self.views[name] = f"{flat}.view({[batch, *spatial, channels]}).permute({axes})"
        else:
            return None
        return f"m.{name}"

    def source(self) -> list[str]:
        """The class whose objects hold the memory of one call each, or nothing where no value lies in it."""
        if not self.views:
            return []
        return [
            "",
            "",
            "class Arena:",
            '    """The memory of one call, and the views of it that the call writes to."""',
            "",
            "    def __init__(self):",
            "        with torch.inference_mode(False):  # so that calls in any mode may write to it",
            f'            memory = torch.empty({self.bytes}, dtype=torch.uint8, device="{self.device}")',
            *(f"            self.{name} = {view}" for name, view in self.views.items()),
            *self._pool(),
            "",
            "",
            "def take_arena():",
            "    try:",
            "        return arenas.pop()",
            "    except IndexError:  # none is free",
            "        return Arena()",
        ]

    def _pool(self) -> list[str]:
        """The free arenas. A GPU may still be at work when a call returns, on the call's own stream."""
        if not self.device.startswith("cuda"):
            return ["", "", "arenas = []  # free ones; each call in flight has one of its own", ""]
        return [
            "",
            "",
            "class Arenas:",
            '    """Free ones, by stream: what one is still at work on is no other\'s."""',
            "",
            "    def __init__(self):",
            "        self.free = {}",
            "",
            "    def here(self):",
            f'        stream = torch.cuda.current_stream("{self.device}").cuda_stream',
            "        return self.free.setdefault(stream, [])",
            "",
            "    def pop(self):",
            "        return self.here().pop()",
            "",
            "    def append(self, arena):",
            "        self.here().append(arena)",
            "",
            "",
            "arenas = Arenas()",
            "",
        ]

    def comment(self) -> list[str]:
        return [f"# {self.summary}"] if self.summary else []
