"""A checkpoint into a model: every tensor finds its place, or nothing is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import ModuleType

import torch
from torch import nn

from capture.errors import CaptureError, UsageError

__all__ = ["load_weights"]

_SHOWN = 5


def load_weights(model: nn.Module, path: str | os.PathLike[str], module: ModuleType | None = None) -> None:
    """Load a safetensors file into the model, in place.

    A tensor that the model ties to another one need not be in the file. Where the names or shapes do not fit
    and `module` has a function ``from_checkpoint(state)``, what that makes of the file is loaded.

    Raises:
        UsageError: there is no such file, or it is not a safetensors file.
        CaptureError: tensors are missing, unexpected, or of another shape.
    """
    state = _read(path)
    problems = _problems(model, state)
    convert = getattr(module, "from_checkpoint", None)
    if problems and convert is not None:
        converted = convert(state)
        if not (left := _problems(model, converted)):
            state, problems = converted, left
    if problems:
        raise CaptureError(
            f"the weights in {path} do not fit {type(model).__name__}",
            why="\n".join(problems),
            hint="the checkpoint of this very architecture and size",
        )
    model.load_state_dict(state, strict=False)  # what is missing is tied to what is there


def _read(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = os.fspath(path)
    if not os.path.isfile(name):
        raise UsageError(f"there is no file {name}")
    if not name.endswith(".safetensors"):
        raise UsageError(
            f"{name} is not a .safetensors file",
            why="Other checkpoints are unpickled, which runs code that they hold.",
            hint="safetensors.torch.save_file(state_dict, path)",
        )
    try:
        return load_file(name)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"cannot read the weights in {name}", why=f"{type(error).__name__}: {error}"
        ) from error


def _problems(model: nn.Module, state: Mapping[str, torch.Tensor]) -> list[str]:
    """What does not fit, a line a kind."""
    wanted = model.state_dict(keep_vars=True)
    held = {id(wanted[key]) for key in state if key in wanted}
    missing = [key for key, tensor in wanted.items() if key not in state and id(tensor) not in held]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} {list(state[key].shape)}, not {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    rows = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return [f"{kind}: {_listed(keys)}" for kind, keys in rows if keys]


def _listed(keys: list[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
