"""`capture`: from a model to its Graph, by the first front end that can take it.

torch.export (non-strict)  ->  torch.export (strict)  ->  torch.fx  ->  dispatch tracing
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._guards import TracingContext
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from capture.errors import CaptureError, ModelError, UsageError
from capture.frontends.attribute_names import assigned_numbers, attribute_names
from capture.frontends.dispatch import capture_with_dispatch
from capture.frontends.export import capture_exported, capture_with_export
from capture.frontends.failures import Failure, UnsoundError, combined_error, user_frame
from capture.frontends.fx import capture_graph_module, capture_with_fx
from capture.frontends.global_state import GlobalStateError, unchanged_globals
from capture.frontends.quiet import noting_assignments, silence
from capture.frontends.sharing import apart, blame, check_writes
from capture.frontends.soundness import agrees, check_layouts, equal, is_real, lost_write, run_aside
from capture.frontends.state import ModelState, StateGuard
from capture.ir import Graph
from capture.logs import logger
from capture.wording import dotted

__all__ = ["FRONTENDS", "capture"]

FrontEnd = Callable[[Any, tuple[Any, ...], Mapping[str, Any], Any], Graph]

_LADDER: dict[str, tuple[str, FrontEnd]] = {
    "export": ("torch.export (non-strict)", capture_with_export),
    "export (strict)": ("torch.export (strict)", lambda *given: capture_with_export(*given, strict=True)),
    "fx": ("torch.fx", capture_with_fx),
    "dispatch": ("dispatch tracing", capture_with_dispatch),
}
_UNSURE = ("torch.fx", "dispatch tracing")  # what these trace is run, and compared with the model
log = logger("frontends")
FRONTENDS = ("auto", "export", "fx", "dispatch")


def capture(
    model: nn.Module | ExportedProgram | Callable[..., Any],
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    frontend: str = "auto",
) -> Graph:
    """Capture the graph of one call of `model`.

    Args:
        model: an `nn.Module`; a `GraphModule`, also as a torch.compile backend is given it; a function of
            tensors; or an `ExportedProgram`, which needs no arguments. It is captured as it is, in training
            or eval mode.
        args, kwargs: example arguments of the call. Only shapes, dtypes and devices of tensors matter.
        dynamic_shapes: which sizes vary, as `torch.export.export` takes it.
        frontend: ``auto`` walks the ladder; ``export``, ``fx`` and ``dispatch`` keep to their part of it.

    Returns:
        The graph; its `frontend` names the step taken, its `attempts` why earlier ones failed. Constants
        share memory with the model's parameters and buffers. A graph returns values: where the model returns
        a view of an input or of a buffer, the graph may return a copy, which later writes do not change.
        Where the model writes to an input, the graph is for inputs with the example's memory layout, or
        contiguous ones.

    Raises:
        UsageError: the call itself is wrong.
        ModelError: the model raises on these arguments.
        GlobalStateError: the model sets the seed, the default dtype or another setting of the process.
        CaptureError: no front end can take the model; the message names the user's line.
    """
    if frontend not in FRONTENDS:
        raise UsageError(f"there is no front end {frontend!r}", hint=", ".join(FRONTENDS))
    if isinstance(model, ExportedProgram):
        return capture_exported(model)
    module, given = _checked(model, args)
    given, named = apart(module, given, dict(kwargs or {}))
    failures: list[Failure] = []
    for name, step in _steps(module, frontend):
        try:
            graph = _attempt(name, step, module, given, named, dynamic_shapes)
        except (UsageError, GlobalStateError):
            raise
        except Exception as error:
            failures.append(Failure(name, error, user_frame(error)))
            log.info("%s failed: %s", name, failures[-1].reason)
            if len(failures) == 1:
                _run_eagerly(module, given, named)
            continue
        log.info("%s took the model: %d nodes", name, len(graph.nodes))
        graph.attempts = [*((f.frontend, f.reason) for f in failures), (name, "taken")]
        return graph
    raise combined_error(failures) from failures[0].error


def _checked(model: Any, args: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    if isinstance(args, (torch.Tensor, Mapping, str)):
        raise UsageError(
            f"args is a {type(args).__name__}",
            why="It holds the call's positional arguments.",
            hint="args=(x,)",
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError("the model is a TorchScript module", hint="the nn.Module that it was made from")
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise UsageError(f"the model is a {type(model).__name__}, not an nn.Module")
        model = _Function(model)
    return model, tuple(args or ())


class _Function(nn.Module):
    """A function of tensors, as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function  # its own signature stays visible


def _steps(model: nn.Module, frontend: str) -> list[tuple[str, FrontEnd]]:
    if frontend != "auto":
        return [step for key, step in _LADDER.items() if key.partition(" ")[0] == frontend]
    steps = list(_LADDER.values())
    if isinstance(model, torch.fx.GraphModule):
        own = ("torch.fx (GraphModule)", capture_graph_module)
        return [own] if TracingContext.try_get() else [own, *steps]
    return steps


def _attempt(
    name: str, step: FrontEnd, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: Any
) -> Graph:
    """One front end; refuses what it has taken where the graph would not do what the model does."""
    guard = StateGuard(model)
    try:
        with unchanged_globals(), guard, silence(), noting_assignments() as assigned:
            graph = step(model, args, kwargs, shapes)
    except (AssertionError, RuntimeError) as error:
        blame(error, model)
        raise
    check_writes(graph, pytree.tree_leaves((args, kwargs)))
    check_layouts(graph, model, args, kwargs)
    changed = [*guard.changed, *assigned]
    unsure = name in _UNSURE or ModelState(model).shares_memory
    numbers = assigned_numbers(model)
    rebound = _assigned_buffers(model)
    if (changed or numbers or rebound or unsure) and is_real(args, kwargs):
        first = _check_calls(model, args, kwargs, changed, numbers)
        if lost := lost_write(graph, model, first):
            raise _lost(name, lost)
        if (rebound or unsure) and not agrees(graph, model, first, args, kwargs):
            why = "Symbolic tracing sees no tensors: isinstance(x, torch.Tensor), say, is false in it."
            raise UnsoundError(
                f"{name} traced something else than the model does on the example inputs",
                why=why if name == "torch.fx" else "It does not see every write to a tensor.",
            )
    elif rebound and name == "torch.export (strict)":  # it drops assignments, and nothing can be run
        raise _lost(name, rebound[0])
    return graph


def _assigned_buffers(model: nn.Module) -> list[str]:
    """The paths of the buffers that forward assigns, by its code: ``self.cache = torch.roll(...)``."""
    return [
        dotted(path, name)
        for path, part in model.named_modules()
        if part._buffers
        for name in sorted(attribute_names(type(part))[1] & part._buffers.keys())
    ]


def _lost(name: str, path: str) -> CaptureError:
    return CaptureError(
        f"{name} loses what the model writes to its buffer {path}",
        hint=f"write to it in place, as in self.{path.rpartition('.')[2]}.copy_(new)",
    )


def _check_calls(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    changed: Sequence[str],
    numbers: Sequence[str],
) -> Any:
    """Run the model twice; returns what it did. Raises UnsoundError where the calls differ."""
    first, second = run_aside(model, args, kwargs, times=2)
    if not equal(first, second, exact=True):
        plain = [path for path in changed or numbers if "[" not in path]
        what = "tensor" if changed or not numbers else "number"
        raise UnsoundError(
            f"the model keeps a {what} from one call to the next",
            where=f"in its attribute {plain[0]}" if plain else None,
            why="Only registered buffers may carry a value over.",
            hint="self.register_buffer(name, tensor) in __init__",
        )
    return first


def _run_eagerly(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """See whether the model itself fails on these arguments.

    Raises:
        ModelError: it does.
    """
    if not is_real(args, kwargs):
        return
    try:
        run_aside(model, args, kwargs)
    except Exception as error:
        frame = user_frame(error)
        shown = ", ".join(map(_shown, pytree.tree_leaves((args, kwargs))))
        raise ModelError(
            "the model raises on the given input",
            where=frame and f"{frame.file}:{frame.line}   {frame.code}",
            why=f"{type(error).__name__}: {error}\ninput: {shown}",
            hint="inputs that the model takes in plain PyTorch",
        ) from error


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value)
