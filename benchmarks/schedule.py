"""Peak memory of schedules, as a multiple of the optimum, on random graphs of three families.

    python -m benchmarks.schedule                     12 seeded graphs a family, and larger ones
    python -m benchmarks.schedule --graphs 3 --large 1000

Seconds are of this process, per graph. Where an optimum was not proven (the row says how many were), the
ratio is to the best lower bound. Ours is compared with: the graph's own order; of the tasks that can run,
always the one that takes least; the best of these, breadth first and depth first, which is how torch.compile
chooses; and the beam search alone.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import networkx

from passes.ordering import Problem, best_order
from passes.ordering.heuristics import by_need, depth_first, least_memory_first
from passes.ordering.search import Budget, Search

Order = Sequence[int]
ENOUGH = 200_000_000  # moves in search of an optimum


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


def family_rows(graphs: int) -> list[list[str]]:
    """Per family: how many optima are proven, then the ratio to the optimum, and seconds, of each method."""
    rows = []
    for name, make in FAMILIES.items():
        problems = [make(seed) for seed in range(graphs)]
        best = [optimum(p) for p in problems]
        row = [name, f"{sum(certain for _, certain in best)} of {graphs}"]
        for method in METHODS.values():
            found = measure(problems, method)
            ratio = geomean([peak / least for peak, (least, _) in zip(found.peaks, best, strict=True)])
            row.append(f"{ratio:.3f} ({found.seconds:.3f} s)")
        rows.append(row)
    return rows


def large_rows(counts: Sequence[int]) -> list[list[str]]:
    """Per family and size: peaks, and our seconds and proven lower bound."""
    rows = []
    for name, make in LARGE.items():
        for count in counts:
            graph = make(count, 0)
            rules = [measure([graph], METHODS[rule]).peaks[0] for rule in ("given", "best of four")]
            start = time.process_time()
            ours = best_order(graph)
            seconds = time.process_time() - start
            rows.append(
                [name, str(graph.count), *map(str, rules), str(ours.peak), str(ours.bound), f"{seconds:.2f}"]
            )
    return rows


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Peak memory of schedules of random graphs.")
    parser.add_argument("--graphs", type=int, default=12, help="graphs a family")
    parser.add_argument(
        "--large", type=int, nargs="*", default=[1000, 2000, 5000], help="tasks of larger graphs"
    )
    options = parser.parse_args()
    print(table(["peak / optimum (geomean)", "proven", *METHODS], family_rows(options.graphs)), flush=True)
    if options.large:
        header = ["bytes at the peak", "tasks", "given", "best of four", "ours", "lower bound", "seconds"]
        print("\n" + table(header, large_rows(options.large)))


if __name__ == "__main__":
    main()
