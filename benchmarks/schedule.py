"""Peak memory of schedules, as a multiple of the optimum, on random graphs of three families.

    python -m benchmarks.schedule     12 seeded graphs a family, and larger ones; to benchmarks/results
    python -m benchmarks.schedule --graphs 3 --large 1000

Seconds are of this process, per graph. Where an optimum was not proven (the row says how many were), the
ratio is to the best lower bound. Ours is compared with: the graph's own order; of the tasks that can run,
always the one that takes least; the best of these, breadth first and depth first, which is how torch.compile
chooses; and the beam search alone.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import networkx

from benchmarks.tables import Table, parser
from passes.ordering import Problem, best_order
from passes.ordering.heuristics import by_need, depth_first, least_memory_first
from passes.ordering.search import Budget, Search

Order = Sequence[int]
ENOUGH = 200_000_000  # moves in search of an optimum
COUNTS = (1000, 2000, 5000)  # tasks of larger graphs


def problem(edges: Sequence[tuple[int, int]], sizes: Sequence[int]) -> Problem:
    """One buffer a task, free after the last task that reads it; nothing is written in place.

    Args:
        edges: (maker, reader), each maker the lower number.
        sizes: bytes that each task makes.
    """
    before: list[list[int]] = [[] for _ in sizes]
    readers: list[list[int]] = [[task] for task in range(len(sizes))]
    for maker, reader in edges:
        before[reader].append(maker)
        readers[maker].append(reader)
    return Problem(
        before=tuple(map(tuple, before)),
        sizes=tuple(sizes),
        makes=tuple((task,) for task in range(len(sizes))),
        readers=tuple(map(tuple, readers)),
        kept=(False,) * len(sizes),
        reuses=((),) * len(sizes),
    )


def small_world(count: int, seed: int, *, largest: int = 1) -> Problem:
    """A randomly wired network: Watts and Strogatz's small world, edges directed by number.

    Parameters (4 neighbours, rewired with probability 0.75) are those of Xie et al., "Exploring Randomly
    Wired Neural Networks for Image Recognition" (2019). Task sizes are uniform in 1..largest.
    """
    rng = random.Random(seed)
    wiring = networkx.connected_watts_strogatz_graph(count, 4, 0.75, seed=seed)
    edges = sorted((min(e), max(e)) for e in wiring.edges)
    return problem(edges, [rng.randint(1, largest) for _ in range(count)])


def training_chain(layers: int, seed: int) -> Problem:
    """A chain of layers, its backward pass, the updates of all weights at the end: 4 tasks a layer, and 2.

    A layer keeps its activation, of 1..16 bytes, for its weight's gradient, of 1..32, which the update reads.
    """
    rng = random.Random(seed)
    sizes = [rng.randint(1, 16)]
    edges: list[tuple[int, int]] = []

    def task(size: int, *reads: int) -> int:
        edges.extend((made, len(sizes)) for made in reads)
        sizes.append(size)
        return len(sizes) - 1

    activations = [0]
    for _ in range(layers):
        activations.append(task(rng.randint(1, 16), activations[-1]))
    flowing = task(sizes[activations[-1]], activations[-1])
    gradients = []
    for before in reversed(activations[:-1]):
        gradients.append(task(rng.randint(1, 32), before, flowing))
        flowing = task(sizes[before], flowing)
    for gradient in gradients:
        task(0, gradient)
    return problem(edges, sizes)


FAMILIES: dict[str, Callable[[int], Problem]] = {
    "small world, n=34, equal sizes": lambda seed: small_world(34, seed),
    "small world, n=34, sizes 1-16": lambda seed: small_world(34, seed, largest=16),
    "training chain, n=98, updates last": lambda seed: training_chain(24, seed),
}
LARGE: dict[str, Callable[[int, int], Problem]] = {
    "small world, sizes 1-16": lambda count, seed: small_world(count, seed, largest=16),
    "training chain, updates last": lambda count, seed: training_chain((count - 2) // 4, seed),
}


def breadth_first(problem: Problem) -> list[int]:
    """Tasks by their distance from the inputs."""
    level = [0] * problem.count
    for task, needed in enumerate(problem.before):
        level[task] = max((level[other] + 1 for other in needed), default=0)
    return sorted(range(problem.count), key=lambda task: (level[task], task))


def least_first(problem: Problem) -> list[int]:
    return least_memory_first(problem, by_need)


def best_of_four(problem: Problem) -> Order:
    """The best of the given order, least memory first, breadth first and depth first."""
    orders = (range(problem.count), least_first(problem), breadth_first(problem), depth_first(problem))
    return min(orders, key=problem.peak)


def beam(problem: Problem) -> Order:
    """Beam search alone, 64 wide."""
    found = Search(problem, Budget(ENOUGH)).beam(64, 1 + sum(problem.sizes))
    assert found is not None  # below the sum of all sizes there is an order
    return found


METHODS: dict[str, Callable[[Problem], Order]] = {
    "given": lambda problem: range(problem.count),
    "least first": least_first,
    "best of four": best_of_four,
    "beam 64": beam,
    "ours": lambda problem: best_order(problem).order,
}


@dataclass(frozen=True)
class Measured:
    """A method on a family: peaks by graph, and process seconds per graph."""

    peaks: list[int]
    seconds: float


def measure(problems: Sequence[Problem], method: Callable[[Problem], Order]) -> Measured:
    start = time.process_time()
    orders = [method(p) for p in problems]
    seconds = (time.process_time() - start) / len(problems)
    return Measured([p.peak(order) for p, order in zip(problems, orders, strict=True)], seconds)


def optimum(problem: Problem) -> tuple[int, bool]:
    """(least peak of any order, whether it is proven); else a lower bound."""
    found = Search(problem, Budget(ENOUGH)).exact(1 + sum(problem.sizes))
    return found.bound, found.certain


def geomean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def family_rows(table: Table, graphs: int) -> None:
    """Per family: how many optima are proven, then the ratio to the optimum, and seconds, of each method."""
    for name, make in FAMILIES.items():
        problems = [make(seed) for seed in range(graphs)]
        best = [optimum(p) for p in problems]
        cells = [name, f"{sum(certain for _, certain in best)} of {graphs}"]
        for method in METHODS.values():
            found = measure(problems, method)
            ratio = geomean([peak / least for peak, (least, _) in zip(found.peaks, best, strict=True)])
            cells.append(f"{ratio:.3f} ({found.seconds:.3f} s)")
        table.row(*cells)


def large_rows(table: Table, counts: Sequence[int]) -> None:
    """Per family and size: peaks, and our seconds and proven lower bound."""
    for name, make in LARGE.items():
        for count in counts:
            graph = make(count, 0)
            rules = [measure([graph], METHODS[rule]).peaks[0] for rule in ("given", "best of four")]
            start = time.process_time()
            ours = best_order(graph)
            seconds = time.process_time() - start
            table.row(name, graph.count, *rules, ours.peak, ours.bound, f"{seconds:.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables row by row, and write them."""
    made = parser("schedule", __doc__)
    made.add_argument("--graphs", type=int, default=12, metavar="N", help="graphs a family")
    made.add_argument(
        "--large", type=int, nargs="*", default=list(COUNTS), metavar="N", help="tasks of larger graphs"
    )
    options = made.parse_args(arguments)
    about = "Peak over the least peak of any order, geometric mean; in brackets process seconds a graph."
    families = Table("schedule", "Peak memory of schedules", about, ("peak / optimum", "proven", *METHODS))
    family_rows(families, options.graphs)
    families.write(options.output)
    about = "Bytes at the peak; process seconds of ours."
    header = ("graph", "tasks", "given", "best of four", "ours", "lower bound", "seconds")
    large = Table("schedule", "Peak memory of larger schedules", about, header, file="schedule_large")
    large_rows(large, options.large)
    large.not_asked([str(count) for count in COUNTS], [str(count) for count in options.large])
    large.write(options.output)


if __name__ == "__main__":
    main()
