"""Memory of the model workloads as planned: in the captured order, and after scheduling and in-place reuse.

    python -m benchmarks.arena                     every model at full size, to benchmarks/results/arena.md
    python -m benchmarks.arena models.bert:build   some

Captured: the graph as captured, in its own order, every value in a buffer of its own that is reused after its
last reader; views and in-place results take memory like any other. Ours: the arena of level 2, which should
equal its lower bound; between the two, the captured order with views joined and results in place. Bytes are
of transient values: inputs, weights and results are not among them. Milliseconds are of this process.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.tables import Table, parser
from capture import Graph, capture
from capture.ir import TensorType, Value
from capture.ir.graph import values_in
from passes import optimize
from passes.buffers import buffers
from passes.memory import MemoryPlan, plan
from passes.memory.greedy import pack
from passes.memory.sizes import Sizes
from passes.memory_check import lower_bound

MODELS = (
    "models.resnet:build",
    "models.vit:build",
    "models.bert:build",
    "models.gpt2:build",
    "models.gpt2:with_cache",
    "models.llama:build",
    "models.mlp:build",
)
ALIGNMENT = 64
PLANS = 5  # of each graph; the fastest counts


@dataclass(frozen=True)
class Row:
    """A model's plans, in bytes; milliseconds to learn who shares memory, and to plan from that."""

    model: str
    captured: int
    joined: int
    ours: MemoryPlan
    sharing: float
    planning: float

    @property
    def saved(self) -> float:
        """Share of the captured order's arena that is saved."""
        return 1 - self.ours.arena_bytes / self.captured if self.captured else 0.0


def separate_arena(graph: Graph) -> int:
    """Bytes of an arena in which every value has its own buffer, from its node to its last reader."""
    order = {node: step for step, node in enumerate(graph.nodes)}
    returned, written = set(values_in(graph.results)), set(graph.writebacks.values())
    spans = []
    sizes = Sizes(graph, alignment=ALIGNMENT)
    for node, step in order.items():
        for value in node.results:
            nbytes = _bytes(value, sizes)
            last = max([step, *(order[user] for user in value.users)])
            if value in written:
                last = len(order) - 1
            if nbytes and value not in returned:
                spans.append((step, last + 1, nbytes))
    first, end, size = ([span[i] for span in spans] for i in range(3))
    return pack(first, end, size, bound=lower_bound(spans)).peak


def _bytes(value: Value, sizes: Sizes) -> int:
    return sizes(value.type.nbytes) or 0 if isinstance(value.type, TensorType) else 0


def measure(model: str) -> Row:
    """Capture, optimise and plan one model, given as ``module:factory``."""
    name, _, factory = model.partition(":")
    module = importlib.import_module(name)
    graph = capture(getattr(module, factory)(), module.example_inputs(1, factory))
    after = optimize(graph, level=2)
    joined = plan(graph.clone(), alignment=ALIGNMENT).arena_bytes
    seconds = [timed(after.clone()) for _ in range(PLANS)]
    sharing, planning = (1e3 * min(column) for column in zip(*seconds, strict=True))
    return Row(model, separate_arena(graph), joined, after.memory_plan, sharing, planning)


def timed(graph: Graph) -> tuple[float, float]:
    """Process seconds to learn who shares memory, which the scheduler has done before, and to plan."""
    start = time.process_time()
    buffers(graph)
    shared = time.process_time()
    plan(graph, alignment=ALIGNMENT)
    return shared - start, time.process_time() - shared


def cells(row: Row) -> tuple[str, ...]:
    ours, bound = row.ours, row.ours.lower_bound_bytes
    count = len(ours.buffers)
    return (
        row.model,
        f"{row.captured / 1e6:.2f}",
        f"{row.joined / 1e6:.2f}",
        f"{ours.arena_bytes / 1e6:.2f}",
        f"{ours.arena_bytes / bound:.3f}" if bound else "-",
        f"{-100 * row.saved:+.0f}%",
        str(count),
        f"{row.sharing:.1f}",
        f"{row.planning:.1f}",
        f"{row.planning * 500 / count:.1f}" if count else "-",
    )


COLUMNS = (
    "model", "captured, MB", "and joined, MB", "ours, MB", "ours / lower bound", "ours / captured - 1",
    "buffers", "sharing, ms", "planning, ms", "planning, ms per 500 buffers",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row a model, as each is done; write the table."""
    made = parser("arena", __doc__)
    made.add_argument("models", nargs="*", default=list(MODELS), help="module:factory")
    options = made.parse_args(arguments)
    about = "Transient values of one call, level 2; milliseconds are of one process."
    table = Table("arena", "Memory of the model workloads as planned", about, COLUMNS)
    rows = []
    for model in options.models:
        rows.append(measure(model))
        table.row(*cells(rows[-1]))
    table.note(f"Median saving: {100 * statistics.median(row.saved for row in rows):.0f}%.")
    table.not_asked(MODELS, options.models)
    table.write(options.output)


if __name__ == "__main__":
    main()
