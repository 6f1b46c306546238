"""Optimise a graph, or take what was made of the same graph before.

The key is a hash of the graph's text, the captured ops that it tells of, its weights, the passes and rules,
the versions of what has a say, and the processor. A cached graph holds the constants that passes have made;
those that are still the model's own, or views of these, are taken from the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensor

from capture.ir import Graph, Node, TensorType
from capture.logs import logger
from passes import PIPELINES, Fate, Pass, PassRecord, make_pass, rules, run_pass
from runtime.cache import GraphStore, is_on
from runtime.machine import machine, versions

__all__ = ["cached", "key_of"]

FLOORS = ("capture", "passes", "codegen")  # whose code decides what an optimised graph is
log = logger("runtime")


def cached(
    captured: Graph,
    level: int,
    disable: Iterable[str],
    passes: Sequence[str | Pass] | None,
    optimize: Callable[[], Graph],
) -> Graph:
    """The optimised graph from the cache, else from `optimize`, which is then kept.

    Passes and rules that are not the toolkit's own have no version to tell: with them nothing is cached.

    Args:
        level, disable, passes: what `optimize` does, as `passes.optimize` takes it.
    """
    if not is_on():
        return optimize()
    steps = _steps(level, disable, passes)
    key = key_of(captured, level, steps)
    if key is None:
        return optimize()
    store = GraphStore()
    if (found := store.load(key)) is not None:
        try:
            return _restored(*found, captured, steps)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            log.info("the cache entry %s is passed over: %s", key, error)
    made = optimize()
    store.save(key, *_kept(made, captured))
    return made


def _steps(level: int, disable: Iterable[str], passes: Sequence[str | Pass] | None) -> list[Pass]:
    left_out = {make_pass(name).name for name in disable}
    steps = [make_pass(step) for step in (PIPELINES.get(level, ()) if passes is None else passes)]
    return [step for step in steps if step.name not in left_out]


# -- the key ---------------------------------------------------------------------------------------------


def key_of(graph: Graph, level: int, steps: Sequence[Pass]) -> str | None:
    """The hash of all that decides what these passes make of a graph; None where it cannot be told."""
    known = rules()
    ours = all(type(s).__module__.startswith("passes.") for s in steps) and all(
        r.is_ours for r in known.values()
    )
    tensors = [constant.tensor for constant in graph.constants.values()]
    if not ours or not all(t is None or _is_plain(t) for t in tensors):
        return None
    told = {
        "versions": versions(),
        "code": _code_digest(),
        "device": _device(graph),
        "level": level,
        "passes": [repr(step) for step in steps],
        "rules": sorted(known),
        "graph": str(graph),
        "captured": [vars(op) for op in graph.captured.values()],
        "origins": [node.origin.ids for node in _nodes(graph)],
        "constants": [(name, *_form(t)) for name, t in zip(graph.constants, tensors, strict=True)],
        "sharing": _sharing(tensors),
        "contents": _contents(tensors),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


@cache
def _code_digest() -> str:
    """A hash of the toolkit's own code: in a checkout it changes without a new version."""
    root = Path(__file__).parent.parent
    found = hashlib.sha256()
    for file in sorted(
        f for floor in FLOORS for f in (root / floor).rglob("*") if f.suffix in (".py", ".jinja")
    ):
        found.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def _device(graph: Graph) -> dict[str, Any]:
    """What passes ask of the machine."""
    values = (*graph.inputs, *graph.constants.values(), *(v for n in graph.nodes for v in n.results))
    kinds = {v.type.device.type for v in values if isinstance(v.type, TensorType)}
    told: dict[str, Any] = {"capability": machine()["capability"], "mkldnn": torch.backends.mkldnn.enabled}
    told["matmul"] = torch.get_float32_matmul_precision()
    if "cuda" in kinds and torch.cuda.is_available():
        told["cuda"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return told


def _nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        yield node
        for region in node.regions:
            yield from _nodes(region)


def _is_plain(tensor: torch.Tensor) -> bool:
    plain = tensor.layout is torch.strided and tensor.device.type != "meta" and not tensor.is_quantized
    return plain and not isinstance(tensor, FakeTensor) and not tensor.is_conj() and not tensor.is_neg()


def _form(tensor: torch.Tensor | None) -> tuple[Any, ...]:
    if tensor is None:
        return ()
    return str(tensor.dtype), tuple(tensor.shape), tensor.stride(), str(tensor.device)


def _sharing(tensors: Sequence[torch.Tensor | None]) -> list[tuple[int, int]]:
    """For each tensor the number of the memory that it lies in, and where in it."""
    numbers: dict[int, int] = {}
    found = []
    for tensor in tensors:
        if tensor is not None:
            memory = tensor.untyped_storage().data_ptr()
            found.append((numbers.setdefault(memory, len(numbers)), int(tensor.storage_offset())))
    return found


def _contents(tensors: Sequence[torch.Tensor | None]) -> list[str]:
    """A hash of what each tensor holds. Several are hashed at once."""
    with torch.no_grad():
        flat = [
            t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            for t in tensors
            if t is not None and t.numel()
        ]
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(lambda data: hashlib.sha256(data).hexdigest(), flat))


# -- the value -------------------------------------------------------------------------------------------


def _kept(graph: Graph, captured: Graph) -> tuple[Graph, dict[str, Any]]:
    """The graph without the constants that the captured one has, and what a file of it does not hold."""
    views = _views(graph, captured)
    bare = graph.clone()
    for name in views:
        bare.constants[name].tensor = None
    beside = {
        "views": views,
        "planned": graph.memory_plan is not None,
        "history": [asdict(record) for record in graph.history],
        "fates": {str(number): asdict(fate) for number, fate in graph.fates.items()},
    }
    return bare, beside


def _views(graph: Graph, captured: Graph) -> dict[str, list[Any]]:
    """Constants that lie in the memory of captured ones: name -> captured name, shape, stride, offset."""
    owners: dict[tuple[int, torch.dtype], str] = {}
    for name, constant in captured.constants.items():
        if constant.tensor is not None and constant.tensor.numel():
            tensor = constant.tensor
            owners.setdefault((tensor.untyped_storage().data_ptr(), tensor.dtype), name)
    found: dict[str, list[Any]] = {}
    for name, constant in graph.constants.items():
        if constant.tensor is not None and constant.tensor.numel():
            tensor = constant.tensor
            owner = owners.get((tensor.untyped_storage().data_ptr(), tensor.dtype))
            if owner is not None:
                found[name] = [owner, list(tensor.shape), list(tensor.stride()), tensor.storage_offset()]
    return found


def _restored(graph: Graph, beside: dict[str, Any], captured: Graph, steps: Sequence[Pass]) -> Graph:
    """What `_kept` was given.

    Raises:
        LookupError, TypeError, ValueError, RuntimeError: the entry does not fit the captured graph.
    """
    if [str(v.type) for v in graph.inputs] != [str(v.type) for v in captured.inputs]:
        raise ValueError("its inputs are others")
    for name, (owner, shape, stride, offset) in beside["views"].items():
        graph.constants[name].tensor = _view(captured, owner, shape, stride, offset)
    graph.name, graph.frontend, graph.attempts = captured.name, captured.frontend, list(captured.attempts)
    graph.captured = dict(captured.captured)
    graph.in_spec, graph.out_spec = captured.in_spec, captured.out_spec
    if beside["planned"]:
        run_pass(graph, [step for step in steps if step.name == "memory"][-1])  # a plan is made anew
    graph.history = [_record(row) for row in beside["history"]]
    graph.fates = {int(number): Fate(**row) for number, row in beside["fates"].items()}
    return graph


def _view(captured: Graph, owner: str, shape: list[int], stride: list[int], offset: int) -> torch.Tensor:
    tensor = captured.constants[owner].tensor
    if tensor is None:
        raise ValueError(f"@{owner} is unbound")
    if (list(tensor.shape), list(tensor.stride()), tensor.storage_offset()) == (shape, stride, offset):
        return tensor
    with torch.no_grad():
        return tensor.detach().as_strided(shape, stride, offset)


def _record(row: dict[str, Any]) -> PassRecord:
    return PassRecord(**{**row, "notes": tuple(row["notes"])})
