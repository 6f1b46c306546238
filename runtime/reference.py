"""What the model says: once in its own dtypes, once in fp64.

The fp64 side is a deep copy of the model in double precision, run under a mode that also turns casts and
factories inside the model (``x.float()``, ``torch.arange(..., dtype=torch.float32)``) to fp64. It owes
nothing to capture, which it is to judge. Where a model can be neither copied nor cast, its captured graph is
run in fp64 instead.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from capture.errors import CaptureError, ModelError
from capture.frontends.state import Kept, same_values
from capture.ir import Constant, Graph
from capture.wording import first_line

__all__ = [
    "Outcome",
    "Reference",
    "clone_inputs",
    "module_of",
    "observed_call",
    "reference",
    "undone",
]

LOWER = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Outcome:
    """What one call did: the leaves of what it returned, their paths, their structure, and what it wrote."""

    leaves: list[Any]
    paths: list[str]
    spec: Any
    written: dict[str, Tensor] = field(default_factory=dict)  # inputs and buffers that the call changed


@dataclass(frozen=True)
class Reference:
    """The model's outcome in its own dtypes and in fp64.

    `source` says where the fp64 side comes from; where it cannot be had it is None, and `problem` says why.
    `kept` holds the buffers that both started from.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    buffers: dict[str, Tensor]
    eager: Outcome
    fp64: Outcome | None
    source: str
    problem: str
    kept: Kept


def reference(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, graph: Graph | None = None
) -> Reference:
    """Run the model in its own dtypes and in fp64. Leaves model, inputs and random state as they were.

    Args:
        model: an nn.Module, an ExportedProgram, a Graph, or any callable.
        graph: the model's captured graph, for models that cannot be copied or cast.

    Raises:
        ModelError: the model raised on these inputs.
    """
    kwargs = dict(kwargs or {})
    graph = model if isinstance(model, Graph) else graph
    run = runnable(model)
    buffers = dict(run.named_buffers()) if isinstance(run, nn.Module) else {}
    kept = Kept(module_of(run), buffers.values())
    with torch.compiler.set_stance("force_eager"):  # what fails in fp64 must not stay failed in torch.compile
        double, problem = _double(run, graph, args, kwargs)  # before eager, which may write to buffers
    try:
        eager = observed_call(run, args, kwargs, buffers)
    except Exception as error:
        raise failed_forward(error) from error
    if double is not None and double.paths != eager.paths:
        double, problem = None, "the model in fp64 returns another structure"
    source = "" if double is None else ("fp64 graph" if graph is model else "fp64 model")
    if double is None and graph is not None:
        try:
            double = observed_call(
                lambda *a, **k: graph.run(*a, dtype=torch.float64, **k), args, kwargs, buffers
            )
            source = "fp64 graph"
        except Exception as error:
            problem = f"{problem}; the graph in fp64: {first_line(error)}"
    return Reference(tuple(args), kwargs, buffers, eager, double, source, "" if double else problem, kept)


def runnable(model: Any) -> Callable[..., Any]:
    """The callable for what the user gave: a module, an ExportedProgram, a graph or a function."""
    if isinstance(model, Graph):
        return model.run
    if isinstance(model, torch.export.ExportedProgram):
        return model.module()
    return model  # type: ignore[no-any-return]


def failed_forward(error: Exception) -> CaptureError:
    """The model's own error, with the user's line."""
    from capture._floors import user_line

    if isinstance(error, CaptureError):
        return error
    return ModelError(
        "the model raised on these inputs",
        where=user_line(error),
        why=f"{type(error).__name__}: {error}",
        hint="call model(*args) in plain PyTorch: it should fail in the same way.",
    )


def module_of(f: Any) -> nn.Module | None:
    """The module itself, or the one that `f` was compiled of; None for any other callable."""
    found = f if isinstance(f, nn.Module) else getattr(f, "module", None)
    return found if isinstance(found, nn.Module) else None


@contextlib.contextmanager
def undone(f: Any) -> Iterator[None]:
    """Call `f` inside at will: afterwards its buffers, and what its graph writes to, are as they were.

    Args:
        f: a module, or what was compiled of one; any other callable keeps nothing.
    """
    module = module_of(f)
    buffers = list(module.buffers()) if module is not None else []
    graphs = [g for name in ("captured", "graph") if isinstance(g := getattr(f, name, None), Graph)]
    targets = [c.tensor for graph in graphs for c in graph.writebacks if isinstance(c, Constant)]
    kept = Kept(module, {id(t): t for t in (*buffers, *targets) if t is not None}.values())
    try:
        yield
    finally:
        kept.restore()


def observed_call(
    f: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], buffers: Mapping[str, Tensor]
) -> Outcome:
    """Call `f` on copies of the inputs with a fixed seed, note what it wrote, and put the buffers back."""
    given, given_kw = clone_inputs((tuple(args), dict(kwargs)))
    watched = {**input_names(given, given_kw), **{f"buffer {name}": b for name, b in buffers.items()}}
    before = {name: t.detach().clone() for name, t in watched.items()}
    kept = Kept(module_of(f), buffers.values())
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            returned = f(*given, **given_kw)
        named = dict(named_leaves("out", returned))
        leaves = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in named.values()]
        assigned = {f"buffer {name}": buffer for name, buffer in kept.buffers.items() if name in buffers}
        after = {**watched, **assigned}
        written = {n: t.detach().clone() for n, t in after.items() if not same_values(t, before[n])}
    finally:
        kept.restore()
    return Outcome(leaves, list(named), pytree.tree_structure(returned), written)


def named_leaves(name: str, value: Any, seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Tensors and plain values in what a model returned, by path; objects that are no pytree are looked into.

    Such an object (a cache of keys and values, say) stands as its class, and after it the data it holds.
    """
    for path, leaf in pytree.tree_flatten_with_path(value)[0]:
        place = name + pytree.keystr(path)
        if leaf is None or isinstance(leaf, (Tensor, bool, int, float, complex, str)):
            yield place, leaf
        elif isinstance(leaf, (torch.dtype, torch.device)):
            yield place, str(leaf)
        else:
            yield place, type(leaf).__qualname__
            held = {} if callable(leaf) or id(leaf) in seen else getattr(leaf, "__dict__", {})
            for key, inner in held.items():
                yield from named_leaves(f"{place}.{key}", inner, seen | {id(leaf)})


def input_names(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among the inputs, as ``input [0]``, ``input mask``."""
    flat = pytree.tree_flatten_with_path(tuple(args))[0] + pytree.tree_flatten_with_path(dict(kwargs))[0]
    return {f"input {pytree.keystr(path)}": leaf for path, leaf in flat if isinstance(leaf, Tensor)}


def clone_inputs(tree: Any) -> Any:
    """A copy of every tensor in a tree, layout kept; a tensor given twice stays one tensor."""
    copies: dict[int, Tensor] = {}

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in copies:
            copies[id(value)] = value.detach().clone()
        return copies[id(value)]

    return pytree.tree_map(leaf, tree)


def to_double(value: Any) -> Any:
    """Floating tensors as fp64, complex ones as complex128; anything else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    if isinstance(value, Tensor) and value.dtype == torch.complex64:
        return value.to(torch.complex128)
    return value


class _Double(TorchDispatchMode):
    """Every op under it computes in fp64, whatever dtype the model asks for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        lift = _to_double_dtype if func._schema.is_mutable else lambda v: to_double(_to_double_dtype(v))
        args, kwargs = pytree.tree_map(lift, (args, kwargs or {}))
        return func(*args, **kwargs)


def _to_double_dtype(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in LOWER else value


@contextlib.contextmanager
def _default_double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(before)


def _double(
    run: Callable[..., Any], graph: Graph | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Outcome | None, str]:
    """The outcome of the model in fp64, or None and the reason."""
    if not isinstance(run, nn.Module):
        return None, f"{type(run).__name__} is no nn.Module, and cannot be cast to fp64"
    try:
        model = copy.deepcopy(run).double()
        args, kwargs = pytree.tree_map(to_double, (tuple(args), dict(kwargs)))
        with _default_double():
            return observed_call(model, args, kwargs, dict(model.named_buffers())), ""
    except (
        Exception
    ) as error:  # a model may refuse fp64 in any way it likes; eager shows whether it works at all
        return None, f"the model in fp64: {first_line(error)}"
