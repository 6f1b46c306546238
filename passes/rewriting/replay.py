"""Replay a rewrite: run the matched piece and its replacement on the same operands, and compare.

Operands are those recorded from the example inputs, and random ones, at several sizes where sizes vary:
usual numbers, then some that are large, infinite or NaN. Each pair runs in its own dtype, judged against the
matched piece in fp64 as `runtime.compare` judges a model, and in fp64, where the two must agree: rounding
cannot hide a wrong formula there, nor fp64 a lost cast here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from capture.errors import CaptureError
from capture.ir import Constant, Graph, Node, Range, ScalarType, Value, symbol
from capture.ir.binding import bind_dims, bind_inputs
from capture.ir.graph import free_dims, map_operand
from capture.ir.interpreter import flatten_inputs, run_flat
from capture.ir.types import type_names
from capture.tolerances import tolerance
from passes.queries import fixed_tensor, is_pure_node
from passes.rewriting.match import Match
from passes.rewriting.operands import EXTREMES, draw, has_extremes, is_safe_to_spread

__all__ = ["Recording", "record", "replay"]

_SIZES = ((2, 3, 5, 7, 11), (5, 2, 7, 3, 13), (1, 1, 1, 1, 1))  # of varying dims, in turn
_LARGEST_CONE = 64  # nodes that compute an operand from constants


@dataclass
class Recording:
    """The values of a graph in one run on example inputs, and the sizes that it was run with."""

    values: dict[Value, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Trial:
    """Operands for the two sides. `kind` is "recorded", "random" or one of EXTREMES."""

    kind: str
    operands: list[torch.Tensor]
    sizes: Mapping[str, int]


def record(graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Recording:
    """Run the graph once on example inputs and keep every value; nothing is written back.

    Raises:
        CaptureError: the graph does not run on them.
    """
    flat = flatten_inputs(graph, args, kwargs)
    made = Recording(dict(zip(graph.inputs, flat, strict=True)), bind_inputs(graph, flat))

    def observe(node: Node, _: Sequence[Any], results: Sequence[Any]) -> None:
        for value, result in zip(node.results, results, strict=True):
            made.values[value] = result
            bind_dims(value, result, made.sizes)

    with torch.random.fork_rng(devices=[]):
        run_flat(graph, flat, observe=observe)
    return made


def replay(match: Match, made: Graph, recording: Recording | None) -> tuple[str | None, dict[Value, Any]]:
    """Run both sides of a rewrite and compare.

    Returns:
        Why it must not be done, None where the sides agree; and the recorded run's values of `made`.
    """
    names = sorted(_names(match))
    piece, after = _with_sizes(_matched(match), names), _with_sizes(made, names)
    recorded: dict[Value, Any] = {}
    problems: list[str] = []
    compared = False
    for choices in _trials(match, names, recording):
        kept: dict[Value, Any] = {}
        suited = _first_that_suits(piece, choices, problems)
        if suited is None:
            continue
        trial, reference, before = suited
        try:
            found, wide = _run(after, trial, keep=kept), _run(after, trial, torch.float64)
        except CaptureError as error:
            return f"the replacement fails on {trial.kind} operands: {error.what}", {}
        compared = True
        for old, new, exact, other in zip(before, found, reference, wide, strict=True):
            large = trial.kind == "large"
            reason = _differs(old, new, exact, rounds=not large)
            reason = reason or _differs(exact, other, exact, floor=1e-6 if large else None)
            if reason:
                return f"differs on {trial.kind} operands: {reason}", {}
        if trial.kind == "recorded":
            copies = zip(made.nodes, after.nodes, strict=True)
            pairs = (pair for one, other in copies for pair in zip(one.results, other.results, strict=True))
            recorded = {value: kept[copy] for value, copy in pairs}
    if not compared:
        return f"cannot be checked ({'; '.join(problems) or 'no operands'})", {}
    return None, recorded


# -- operands


def _first_that_suits(
    piece: Graph, choices: Sequence[_Trial], problems: list[str]
) -> tuple[_Trial, list[Any], list[Any]] | None:
    """The first trial that the matched piece takes, and what it gives in fp64 and in its own dtype."""
    for trial in choices:
        try:
            return trial, _run(piece, trial, torch.float64), _run(piece, trial)
        except CaptureError as error:  # these operands do not suit the pattern: indices out of range, say
            problems.append(f"{trial.kind}: {error.what}")
    return None


def _trials(match: Match, names: Sequence[str], recording: Recording | None) -> Iterator[list[_Trial]]:
    """Trials, each with others to take in its place where the pattern refuses the operands."""
    if recording is not None:
        held = [_recorded(match, value, recording) for value in match.leaves]
        if all(isinstance(t, torch.Tensor) for t in held):
            yield [_Trial("recorded", held, {n: recording.sizes.get(n, 1) for n in names})]
    extremes = [kind for kind in EXTREMES if kind not in match.rule.excused and has_extremes(match)]
    rows = [("random", sizes) for sizes in _SIZES[: 3 if names else 1]]
    for number, (kind, sizes) in enumerate([*rows, *((kind, _SIZES[0]) for kind in extremes)]):
        env = {n: _within(match.graph.dims.get(n, Range(0)), sizes[i % 5]) for i, n in enumerate(names)}
        yield [
            _Trial(kind, [drawn[v] for v in match.leaves], env)
            for spread in ((True, False) if is_safe_to_spread(match) else (False,))
            for drawn in [_all_drawn(match, env, recording, kind, spread, number)]
        ]


def _all_drawn(
    match: Match,
    env: Mapping[str, int],
    recording: Recording | None,
    kind: str,
    spread: bool,
    seed: int,
) -> dict[Value, torch.Tensor]:
    """Random operands; two parameters may stand for one value."""
    generator = torch.Generator().manual_seed(seed)
    values = dict.fromkeys(match.leaves)
    return {v: _drawn(match, v, env, recording, kind, spread, generator) for v in values}


def _recorded(match: Match, value: Value, recording: Recording) -> Any:
    fixed = fixed_tensor(match.graph, value)
    return recording.values.get(value) if fixed is None else fixed


def _names(match: Match) -> set[str]:
    """Names of the sizes that the piece depends on."""
    found = set().union(*(type_names(v.type) for v in match.leaves), *map(free_dims, match.nodes))
    return found.union(*(type_names(v.type) for node in match.nodes for v in node.results))


def _within(bounds: Range, size: int) -> int:
    size = max(bounds.lower, size)
    return size if bounds.upper is None else min(bounds.upper, size)


def _drawn(
    match: Match,
    value: Value,
    env: Mapping[str, int],
    recording: Recording | None,
    kind: str,
    spread: bool,
    generator: torch.Generator,
) -> torch.Tensor:
    """A constant as it is; else random numbers, integers like those recorded."""
    fixed = fixed_tensor(match.graph, value)
    if fixed is None:
        fixed = _from_constants(match.graph, value, env)  # a guard may know what it is
    if fixed is not None:
        return fixed
    seen = None if recording is None else recording.values.get(value)
    known = isinstance(seen, torch.Tensor) and seen.numel() and not seen.is_complex()
    between = (int(seen.min()), int(seen.max())) if known and not seen.is_floating_point() else None
    return draw(value.tensor_type, env, kind, generator, between=between, spread=spread)


# -- the two sides


def _matched(match: Match) -> Graph:
    """The matched nodes as a graph of their own."""
    return _cut(match.graph, match.nodes, match.leaves, match.results)


def _from_constants(graph: Graph, value: Value, env: Mapping[str, int]) -> torch.Tensor | None:
    """What a value is that depends on constants and sizes alone; None for any other."""
    cone: set[Node] = set()
    waiting = [value]
    while waiting:
        node = waiting.pop().producer
        if node is None or node in cone:
            continue
        cone.add(node)
        inputs = [v for v in node.operand_values if v.producer is None and fixed_tensor(graph, v) is None]
        if inputs or node.regions or not is_pure_node(node) or len(cone) > _LARGEST_CONE:
            return None
        waiting += node.operand_values
    nodes = sorted(cone, key=graph.order().__getitem__)
    names = sorted(
        set().union(*map(free_dims, nodes), *(type_names(v.type) for n in nodes for v in n.results))
    )
    if not nodes or not set(names) <= set(env):
        return None
    piece = _with_sizes(_cut(graph, nodes, (), (value,)), names)
    try:
        found: torch.Tensor = run_flat(piece, [env[name] for name in names])[0][0]
    except CaptureError:
        return None
    return found


def _cut(graph: Graph, nodes: Sequence[Node], leaves: Sequence[Value], results: Sequence[Value]) -> Graph:
    """Some nodes of a graph as a graph of their own; `leaves` are its inputs."""
    made = Graph("piece")
    made.dims.update(graph.dims)
    mapping: dict[Value, Value] = {v: made.add_input(f"x{i}", v.type) for i, v in enumerate(leaves)}

    def leaf(operand: Any) -> Any:
        return mapping[operand] if isinstance(operand, Value) else operand

    for node in nodes:
        for value in node.operand_values:
            if value not in mapping and isinstance(value, Constant):
                data = value.tensor_type if value.tensor is None else value.tensor
                mapping[value] = made.add_constant(value.name, data)
        kwargs = {k: map_operand(v, leaf) for k, v in node.kwargs.items()}
        types = [v.type for v in node.results]
        copy = made.add_node(node.op, map_operand(node.operands, leaf), kwargs, types=types)
        mapping.update(zip(node.results, copy.results, strict=True))
    made.set_results([mapping[v] for v in results])
    return made


def _with_sizes(graph: Graph, names: Sequence[str]) -> Graph:
    """The graph, taking the varying sizes as inputs too: operands may have only products of them."""
    graph = graph.clone()
    for name in names:
        graph.dims.setdefault(name, Range(0))
        graph.add_input(f"size_{name}", ScalarType("int", symbol(name)))
    return graph


def _run(
    graph: Graph, trial: _Trial, dtype: torch.dtype | None = None, keep: dict[Value, Any] | None = None
) -> list[Any]:
    """The results for a trial; `keep` is given every value on the way.

    Raises:
        CaptureError: an operator refuses the operands.
    """

    def observe(node: Node, _: Sequence[Any], results: Sequence[Any]) -> None:
        if keep is not None:
            keep.update(zip(node.results, results, strict=True))

    return run_flat(graph, [*trial.operands, *trial.sizes.values()], dtype=dtype, observe=observe)[0]


# -- the verdict


def _differs(
    old: torch.Tensor,
    new: torch.Tensor,
    exact: torch.Tensor,
    *,
    rounds: bool = True,
    floor: float | None = None,
) -> str:
    """How the replacement's result differs from the matched piece's, given the latter in fp64; else "".

    Where the piece overflows on the way, which it does not in fp64, the replacement need not.

    Args:
        rounds: compare the errors of rounding, too.
        floor: the error that is allowed in any case, relative to the largest number; the dtype's if None.
    """
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return f"{new.dtype}{list(new.shape)} for {old.dtype}{list(old.shape)}"
    if not (old.is_floating_point() or old.is_complex()):
        wrong = int((old != new).sum())
        return f"{wrong} of {old.numel()} elements" if wrong else ""
    judged = ~(exact.isfinite() & ~old.isfinite() & new.isfinite())
    if not torch.equal(old.isnan() & judged, new.isnan() & judged):
        return "NaN in other places"
    infinite = (old.isinf() | new.isinf()) & judged
    if not torch.equal(old[infinite], new[infinite]):
        return "infinite in other places"
    wide = torch.complex128 if old.is_complex() else torch.float64
    kept = old.isfinite() & exact.isfinite()
    if not rounds or not kept.any():
        return ""
    target = exact.to(wide)[kept]
    scale = float(target.abs().max()) or 1.0
    theirs, ours = (float((t.to(wide)[kept] - target).abs().max()) / scale for t in (old, new))
    limit = max(2 * theirs, tolerance(old.dtype).floor if floor is None else floor)
    return "" if ours <= limit else f"error {ours:.1e} against fp64, {limit:.1e} allowed"
