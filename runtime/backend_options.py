"""What a user may say to the torch.compile backend: ``mode=`` and ``options=``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from capture.errors import UsageError
from passes import PIPELINES, make_pass
from passes.base import Pass

__all__ = ["MODES", "BackendOptions"]


@dataclass(frozen=True)
class BackendOptions:
    """The settings of `torch.compile(model, backend="capture", options={...})`.

    Attributes:
        level: optimisation level 0-3.
        backend: what runs the graphs, as in `runtime.compile`: a name, or auto, which measures.
        disable: names of passes to leave out.
        passes: a pipeline in place of the level's.
        threads: threads of ONNX Runtime; PyTorch's own are `torch.set_num_threads`.
        freeze: fold and pack the weights in graphs for inference.
        activation_memory_budget: in training, the share of the activations that may be kept for the backward
            graph, from 0 (all that can be is computed again) to 1; None: what torch._functorch.config says.
    """

    level: int = 2
    backend: str = "aten"
    disable: tuple[str, ...] = ()
    passes: tuple[str | Pass, ...] | None = None
    threads: int | None = None
    freeze: bool = True
    activation_memory_budget: float | None = None

    @classmethod
    def parse(cls, mode: str | None, options: Mapping[str, Any] | None) -> BackendOptions:
        """From what torch.compile hands over.

        Raises:
            UsageError: an unknown mode or option, or a value that it cannot have.
        """
        if mode is not None and mode not in MODES:
            raise UsageError(f"there is no mode {mode!r}", hint=", ".join(MODES))
        given = {**MODES[mode or "default"], **(options or {})}
        known = [f.name for f in fields(cls)]
        for name, value in given.items():
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                raise UsageError(f"there is no option {name!r}", hint=", ".join(close or known))
            given[name] = _checked(name, value)
        return cls(**given)


# For torch.compile's names. There is nothing to reduce for reduce-overhead: a call costs microseconds.
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "reduce-overhead": {},
    "max-autotune": {"level": 3, "backend": "auto"},
    "max-autotune-no-cudagraphs": {"level": 3, "backend": "auto"},
}


def _checked(name: str, value: Any) -> Any:
    """The value of an option, in the form that it is kept in."""
    from runtime.compile import BACKENDS

    if name == "level" and (isinstance(value, bool) or value not in PIPELINES):
        raise _wrong(name, value, ", ".join(map(str, PIPELINES)))
    if name == "backend" and value not in BACKENDS:
        raise _wrong(name, value, ", ".join(BACKENDS))
    if name == "freeze" and not isinstance(value, bool):
        raise _wrong(name, value, "True or False")
    if name == "activation_memory_budget" and not _is_share(value):
        raise _wrong(name, value, "a number from 0 to 1, or None")
    if name == "threads" and not (value is None or (type(value) is int and value > 0)):
        raise _wrong(name, value, "a number of threads, or None")
    if name not in ("disable", "passes") or value is None:
        return value
    if isinstance(value, str) or not all(isinstance(each, (str, Pass)) for each in value):
        raise _wrong(name, value, 'names of passes, as in ["fuse"]')
    for each in value:
        make_pass(each)
    return tuple(value)


def _is_share(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


def _wrong(name: str, value: Any, wanted: str) -> UsageError:
    return UsageError(f"the option {name!r} cannot be {value!r}", hint=wanted)
