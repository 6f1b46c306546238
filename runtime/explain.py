"""`runtime.explain`: what the torch.compile backend did with a model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from capture.errors import UsageError
from runtime.backend_records import GraphBreak, GraphRecord, owner_of, records_of

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True)
class Explanation:
    """The graphs of one compiled model, in the order in which Dynamo cut them out.

    `print` it to read it; `to_dict` and `to_json` are for programs.

    Attributes:
        title: the class of the module, or the name of the function.
        graphs: copies of the records, as they were when asked; see `runtime.backend_records.GraphRecord`.
    """

    title: str
    graphs: tuple[GraphRecord, ...]

    @property
    def graph_breaks(self) -> tuple[GraphBreak, ...]:
        """Where Dynamo cut the program, each place once, and why."""
        return tuple(dict.fromkeys(g.ended_by for g in self.graphs if g.ended_by is not None))

    @property
    def recompiles(self) -> tuple[GraphRecord, ...]:
        """The graphs that were compiled because a guard of an earlier one failed."""
        return tuple(g for g in self.graphs if g.recompiled)

    @property
    def fallbacks(self) -> tuple[GraphRecord, ...]:
        """The graphs that run in eager, though another backend was asked for."""
        return tuple(g for g in self.graphs if g.fell_back)

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent per stage, all graphs together."""
        total: Counter[str] = Counter()
        for graph in self.graphs:
            total.update(graph.seconds)
        return dict(total)

    def to_dict(self) -> dict[str, Any]:
        graphs = [{**asdict(g), "events": list(g.events)} for g in self.graphs]
        return {"title": self.title, "seconds": self.seconds, "graphs": graphs}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def __str__(self) -> str:
        if not self.graphs:
            return f"{self.title}: no graphs yet; they are compiled when it is called"
        counts = [
            _count(len(self.graphs), "graph"),
            _count(len(self.graph_breaks), "graph break"),
            _count(len(self.recompiles), "recompile"),
            f"{len(self.fallbacks)} in eager",
        ]
        spent = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        lines = [f"{self.title}: {', '.join(counts)}", *([f"  {spent}"] if spent else [])]
        for graph in self.graphs:
            lines += ["", *_told(graph)]
        return "\n".join(lines)


def explain(compiled: Any) -> Explanation:
    """What became of a model or function that was compiled with `torch.compile(..., backend="capture")`.

    Kept are the last 256 graphs; `torch._dynamo.reset()` forgets them. Modules of one class may share
    compiled code: one for which none was compiled is told of that of the others.

    Args:
        compiled: what torch.compile returned, or what it was given.

    Raises:
        UsageError: it cannot be compiled: neither a module nor a function.
    """
    if not callable(compiled):
        raise UsageError(
            f"a {type(compiled).__name__} cannot be explained",
            hint="what torch.compile returned, or was given",
        )
    owner = owner_of(compiled)
    title = getattr(owner, "__qualname__", type(owner).__name__)
    return Explanation(title, tuple(record.copy() for record in records_of(compiled)))


def _told(graph: GraphRecord) -> list[str]:
    lines = [graph.summary()]
    if graph.recompiled:
        lines.append(f"  recompiled: {graph.recompiled}")
    if graph.fell_back:
        lines.append(f"  in eager: {graph.fell_back}")
    lines += [f"  {event}" for event in graph.events]
    if graph.ended_by is not None:
        lines.append(f"  graph break: {graph.ended_by.what}")
        lines += [f"    {graph.ended_by.where}"] * bool(graph.ended_by.where)
        lines += [f"    try: {graph.ended_by.hint}"] * bool(graph.ended_by.hint)
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
