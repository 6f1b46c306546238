"""--quantize, --calibration, --quant-config: the passes that they ask for, and what became of the answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from rich.text import Text

from capture.errors import UsageError
from capture.loading import Loaded
from capture.loading.inputs import inputs_from_file
from passes.base import Pass
from passes.quantize import QuantConfig, check_scheme, pipeline
from runtime.cli.pruning import plan
from runtime.cli.terminal import Terminal
from runtime.quantized import Noise, noise
from runtime.tuned import Configuration

__all__ = ["measure_noise", "prefix"]

MOST_SAMPLES = 32  # on which the error of the answers is measured
SHAPES = "[samples, *shape of the input], or batches of the input one after the other"


def prefix(options: SimpleNamespace, loaded: Loaded) -> list[str | Pass]:
    """The passes before those of the level; none without --quantize.

    Raises:
        UsageError: an option is given without --quantize, there is no calibration data, or it does not fit.
    """
    if options.quantize is None:
        for name in ("calibration", "quant_config"):
            if getattr(options, name):
                flag = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{flag} is of no use without --quantize", hint=f"--quantize int8 {flag} FILE"
                )
        return []
    check_scheme(options.quantize)
    given = Configuration.from_toml(options.quant_config) if options.quant_config else Configuration()
    config = given.quantize or QuantConfig()
    return pipeline(samples(options, loaded), scheme=options.quantize, config=config)


def samples(options: SimpleNamespace, loaded: Loaded) -> list[tuple[Any, ...]]:
    """The calibration data: of --calibration, else the model module's own."""
    if options.calibration:
        return from_arrays(options.calibration, loaded)
    if loaded.calibration_data is None:
        raise UsageError(
            "--quantize needs calibration data",
            hint="--calibration FILE.npz, or a function calibration_data() beside the factory",
        )
    given: Iterable[Any] = loaded.calibration_data()
    whole = [tuple(s) if isinstance(s, tuple | list) else (s,) for s in given]
    return [part for sample in whole for part in _batches(sample, loaded.args)]


def _batches(sample: tuple[Any, ...], example: Sequence[Any]) -> list[tuple[Any, ...]]:
    """A sample in batches of the example's size; as it is, where it does not come in whole ones."""
    pairs = list(zip(sample, example, strict=False))
    if len(sample) != len(example) or not all(_is_batch(given, wanted) for given, wanted in pairs):
        return [sample]
    return list(zip(*(given.split(len(wanted)) for given, wanted in pairs), strict=True))


def _is_batch(given: Any, example: Any) -> bool:
    """Whether a tensor is some of the example's size, one after the other."""
    tensors = isinstance(given, torch.Tensor) and isinstance(example, torch.Tensor)
    if not tensors or not example.dim() or given.shape[1:] != example.shape[1:]:
        return False
    return len(example) > 0 and len(given) % len(example) == 0


def from_arrays(path: str, loaded: Loaded) -> list[tuple[Any, ...]]:
    """The samples in an .npz file that holds an array for each input, by name.

    Raises:
        UsageError: the file cannot be read, a name is missing or unknown, or shapes do not fit.
    """
    arrays = inputs_from_file(path)
    names = _input_names(loaded)
    if set(arrays) != set(names):
        raise UsageError(
            f"{path} holds {', '.join(arrays) or 'nothing'}",
            why=f"the model's inputs are {', '.join(names)}",
            hint=f"np.savez(path, {', '.join(f'{n}=...' for n in names)})",
        )
    columns = [
        _split(path, name, arrays[name], example) for name, example in zip(names, loaded.args, strict=True)
    ]
    if len({len(column) for column in columns}) > 1:
        counts = ", ".join(f"{len(c)} of {n}" for n, c in zip(names, columns, strict=True))
        raise UsageError(f"{path} holds unlike numbers of samples: {counts}")
    return list(zip(*columns, strict=True))


def _split(path: str, name: str, array: torch.Tensor, example: Any) -> Sequence[torch.Tensor]:
    """The samples of one input."""
    if array.shape[1:] == example.shape:
        return list(array)
    if not _is_batch(array, example):
        shapes = f"{list(array.shape)}, the input {list(example.shape)}"
        raise UsageError(f"{path}: {name} is {shapes}", hint=SHAPES)
    return list(array.split(len(example)))


def _input_names(loaded: Loaded) -> list[str]:
    """The parameters of forward that the example inputs are for."""
    forward: Callable[..., Any] = getattr(loaded.module, "forward", loaded.module)
    tensors = all(isinstance(a, torch.Tensor) for a in loaded.args)
    if loaded.kwargs or not tensors:
        raise UsageError(
            "--calibration takes models whose inputs are tensors by position",
            hint="a function calibration_data() beside the factory",
        )
    return list(inspect.signature(forward).parameters)[: len(loaded.args)]


def measure_noise(
    terminal: Terminal, options: SimpleNamespace, loaded: Loaded, compiled: Any
) -> dict[str, Any] | None:
    """Tell how far the answers are off from the float model's on the calibration data; None without it."""
    if compiled.backend == "eager" or (options.quantize is None and plan(options) is None):
        return None
    if options.quantize is None and not loaded.calibration_data:
        return None
    given = samples(options, loaded)[:MOST_SAMPLES]
    terminal.say("measuring the error against the float model")
    found = noise(loaded.module, compiled, given)
    scheme = options.quantize or "float"
    terminal.line(*describe(found), label=scheme)
    note = "on calibration data: a proxy for the accuracy of the task, which was not measured"
    terminal.line(Text(note, style="dim"), indent=11)
    return {"scheme": scheme, **found.to_dict()}


def describe(found: Noise) -> list[str]:
    """``relative L2 error 0.032``, ``29.8 dB``, ``top-1 agrees in 98.4%``, as far as they mean anything."""
    parts = [f"relative L2 error {found.relative_l2:.2g}"]
    parts += [] if found.sqnr_db is None else [f"{found.sqnr_db:.1f} dB"]
    parts += [] if found.top1 is None else [f"top-1 agrees in {found.top1:.1%}"]
    return [*parts, f"{found.samples} samples"]
