"""Settings of the whole process: a model that sets them does something that no graph can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _device

from capture.frontends.failures import UnsoundError

__all__ = ["GlobalStateError", "unchanged_globals"]

_SEED = 0x5EED_0F_CA97  # that of the random numbers while the model is traced: no model sets the same
_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch.set_default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    # None where none is set: setting the one that is then used would leave a mode switched on.
    "torch.set_default_device": (lambda: _device.CURRENT_DEVICE, torch.set_default_device),
    "torch.set_num_threads": (torch.get_num_threads, torch.set_num_threads),
    "torch.set_float32_matmul_precision": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "torch.use_deterministic_algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
}


class GlobalStateError(UnsoundError):
    """The model changes a setting of the process; no front end could keep that."""


@contextmanager
def unchanged_globals() -> Iterator[None]:
    """Refuse what changes PyTorch's settings, and put them and the state of the random numbers back.

    What is set back before the block ends, as by `torch.random.fork_rng`, is not seen.

    Raises:
        GlobalStateError: names the function that the model calls.
    """
    random = torch.get_rng_state()
    before = {name: get() for name, (get, _) in _SETTINGS.items()}
    torch.default_generator.manual_seed(_SEED)
    changed: list[str] = []
    try:
        yield
        changed += ["torch.manual_seed"] * (torch.initial_seed() != _SEED)
        changed += [name for name, value in before.items() if _SETTINGS[name][0]() != value]
    finally:
        torch.set_rng_state(random)
        for name, value in before.items():
            get, set_back = _SETTINGS[name]
            if get() != value:
                set_back(value)
    if changed:
        raise GlobalStateError(
            f"the model calls {changed[0]} in forward",
            why="It is a setting of the whole process; a graph holds computations on tensors only.",
            hint="call it before the model",
        )
