"""Random small graphs for property tests: a hypothesis strategy, and the comparison of two graphs' results.

    @given(cases())
    def test_my_pass(case: Case) -> None:
        after = optimize(case.graph, passes=["my-pass"], verify=True)
        assert_same_results(case, after)

A case's graph has bound constants, origins and a ledger of captured ops; its values are finite and below
`LIMIT`, so that no overflow hides a difference. Everything is drawn by hypothesis, which therefore shrinks a
failure to few nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from capture.ir import Graph, TensorType
from tests.random_builder import FLOATS, LIMIT, Builder, random_tensor
from tests.random_ops import FAMILIES, unary

DTYPES = (*FLOATS, torch.int64)
EPSILON = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class Case:
    """A graph with bound constants, and the seed of its inputs."""

    graph: Graph
    seed: int

    def args(self, **sizes: int) -> list[torch.Tensor]:
        """Fresh inputs, the same each time; `sizes` gives the symbolic dims (default 3)."""
        generator = torch.Generator().manual_seed(self.seed)
        env = dict.fromkeys(self.graph.dims, 3) | sizes
        types = [v.tensor_type for v in self.graph.inputs]
        return [random_tensor(t.concrete(env), t.dtype, generator) for t in types]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints of a failure."""
        printer.text(f"Case(seed={self.seed})\n{self.graph}")


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    max_nodes: int = 12,
    dtypes: Sequence[torch.dtype] = DTYPES,
    families: Sequence[str] | None = None,
    dynamic: bool = False,
) -> Case:
    """Graphs of 1 to about `max_nodes` nodes.

    Args:
        dtypes: of the first input; casts lead to others.
        families: keys of `FAMILIES` to draw from; None means all.
        dynamic: whether the first size of the inputs is the symbol ``N`` in [1, 64].
    """
    seed = draw(st.integers(0, 2**16))
    builder = Builder(draw, draw(st.sampled_from(list(dtypes))), seed, dynamic)
    chosen = [FAMILIES[name] for name in (families or FAMILIES)]
    for _ in range(draw(st.integers(1, max_nodes))):
        draw(st.sampled_from(chosen))(builder)
        if len(builder.graph.nodes) >= max_nodes:
            break
    if not len(builder.graph.nodes):
        unary(builder)
    return Case(builder.finish(), seed)


def assert_same_results(
    case: Case, after: Graph, *, exact: bool = False, folds: torch.dtype | None = None, **sizes: int
) -> None:
    """The graph and its rewritten form agree, in their own dtype and in fp64, and in what shares memory.

    Args:
        exact: results must be equal to the last bit (0.0 and -0.0 apart) in their own dtype.
        folds: the dtype in which the rewrite has rounded constants; the fp64 runs may then differ by as much.
        sizes: of the symbolic dims.
    """
    args = case.args(**sizes)
    want, got = flat_run(case.graph, args), flat_run(after, args)
    assert len(want) == len(got)
    own = EPSILON[coarsest(case.graph)]
    for a, b in zip(want, got, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        same = torch.equal(a, b) if exact or not a.dtype.is_floating_point else close(a, b, own)
        assert same, f"{a}\n{b}\n{after}"
    want, got = (flat_run(g, args, dtype=torch.float64) for g in (case.graph, after))
    for a, b in zip(want, got, strict=True):
        assert close(a, b, EPSILON[folds or torch.float64]), f"in fp64: {a}\n{b}\n{after}"
    assert shared_memory(after, args) <= shared_memory(case.graph, args), f"results share memory\n{after}"


def flat_run(graph: Graph, args: Sequence[torch.Tensor], **options: Any) -> list[torch.Tensor]:
    """The graph's results on copies of the arguments, as a list."""
    results = graph.run(*(a.clone() for a in args), **options)
    return list(results) if isinstance(results, (list, tuple)) else [results]


def shared_memory(graph: Graph, args: Sequence[torch.Tensor]) -> set[tuple[str, str]]:
    """Pairs of results that lie in the same memory, or in that of an input or a constant."""
    given = [a.clone() for a in args]
    results = graph.run(*given)
    results = list(results) if isinstance(results, (list, tuple)) else [results]
    named = [(f"result {i}", t) for i, t in enumerate(results)]
    constants = [c.tensor for c in graph.constants.values() if c.tensor is not None]
    held = [("outside", t) for t in (*given, *constants)]
    found = set()
    for i, (name, tensor) in enumerate(named):
        for other, there in (*named[:i], *held):
            if tensor.numel() and tensor.untyped_storage().data_ptr() == there.untyped_storage().data_ptr():
                found.add((name, other))
    return found


def coarsest(graph: Graph) -> torch.dtype:
    """The floating dtype with the largest rounding error in the graph."""
    values = [*graph.inputs, *graph.constants.values(), *(v for n in graph.nodes for v in n.results)]
    seen = {v.type.dtype for v in values if isinstance(v.type, TensorType) and v.type.dtype in EPSILON}
    return max(seen, key=EPSILON.__getitem__, default=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor, epsilon: float) -> bool:
    """Whether two tensors agree up to `epsilon`, relative to values as large as these graphs hold."""
    return torch.allclose(a.double(), b.double(), rtol=epsilon, atol=epsilon * LIMIT)
