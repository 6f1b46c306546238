"""MODEL of the command line: a module with a factory, a Python file, or an exported program."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from capture._floors import import_model_module, user_imports, user_line
from capture.errors import CaptureError, ModelError, UsageError
from capture.loading.archive import load_program
from capture.loading.inputs import inputs_from_file
from capture.loading.weights import load_weights

__all__ = ["Loaded", "load"]

Inputs = Mapping[str, torch.Tensor] | str | os.PathLike[str] | None


@dataclass(frozen=True)
class Loaded:
    """A model and how to call it.

    Attributes:
        module: in eval mode; or an exported program.
        args, kwargs: the example inputs.
        name: a short name, fit for a folder: ``resnet``, ``resnet-small``.
        factory: the name of the function that made it; empty for a .pt2 file.
        source: the file that it comes from.
        evaluate, calibration_data: what the model's module offers under these names, or None.
        was_training: it was made in training mode, and switched to eval.
    """

    module: nn.Module | ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    factory: str = ""
    source: str = ""
    evaluate: Callable[..., float] | None = None
    calibration_data: Callable[..., Any] | None = None
    was_training: bool = False


def load(
    spec: str,
    *,
    batch: int = 1,
    weights: str | os.PathLike[str] | None = None,
    inputs: Inputs = None,
    allow_pickle: bool = False,
) -> Loaded:
    """Load what `spec` names: ``models.resnet``, ``pkg.mod:factory``, ``file.py:factory`` or ``file.pt2``.

    Args:
        batch: handed to the module's ``example_inputs`` and, where it takes one, to the factory.
        weights: a safetensors file with a state dict for the model.
        inputs: example inputs by name, or an .npz file of them, in place of the module's.
        allow_pickle: let a .pt2 file unpickle, which runs code that it holds.

    Raises:
        UsageError: something named here does not exist, or does not fit.
        ModelError: the module, its factory or its example inputs raised.
        CaptureError: the weights do not fit, or the .pt2 file is damaged or would run code.
    """
    if batch < 1:
        raise UsageError(f"a batch of {batch} holds nothing", hint="--batch 1")
    given = inputs if inputs is None or isinstance(inputs, Mapping) else inputs_from_file(inputs)
    if spec.endswith(".pt2"):
        return _load_program(spec, batch, weights, given, allow_pickle)
    place, _, chosen = spec.partition(":")
    module = _import(place)
    factory = chosen or "build"
    model = _build(module, factory, batch)
    was_training = model.training
    model.eval()
    if weights is not None:
        load_weights(model, weights, module)
    args, kwargs = _named_inputs(model, given) if given else _example_inputs(module, factory, batch)
    stem = module.__name__.rpartition(".")[2]
    return Loaded(
        module=model,
        args=args,
        kwargs=kwargs,
        name=stem if factory == "build" else f"{stem}-{factory}",
        factory=factory,
        source=module.__file__ or "",
        evaluate=getattr(module, "evaluate", None),
        calibration_data=getattr(module, "calibration_data", None),
        was_training=was_training,
    )


def _load_program(
    path: str, batch: int, weights: Any, inputs: Mapping[str, torch.Tensor] | None, allow_pickle: bool
) -> Loaded:
    if weights is not None:
        raise UsageError("a .pt2 file holds its own weights", hint="without --weights")
    if batch != 1:
        raise UsageError("a .pt2 file holds its own example inputs", hint="--input x=8x3x224x224:float32")
    program = load_program(path, allow_pickle=allow_pickle)
    args, kwargs = program.example_inputs or ((), {})
    if inputs:
        known = list(program.graph_signature.user_inputs)
        args, kwargs = tuple(_pick(inputs, [str(name) for name in known])), {}
    elif program.example_inputs is None:
        raise UsageError(f"{path} holds no example inputs", hint="--input x=1x3x224x224:float32")
    return Loaded(program, tuple(args), dict(kwargs), Path(path).stem, "", path)


# -- the module ------------------------------------------------------------------------------------------


def _import(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return import_model_module(place)
    file = Path(place)
    if not file.is_file():
        raise UsageError(f"there is no file {place}", hint="a module such as models.resnet, or a .pt2 file")
    file = file.resolve()
    if file.is_relative_to(Path.cwd()):
        dotted = ".".join(file.relative_to(Path.cwd()).with_suffix("").parts)
        if all(part.isidentifier() for part in dotted.split(".")):
            return import_model_module(dotted)
    return _import_file(file)


def _import_file(file: Path) -> ModuleType:
    """A file that lies outside the working directory, or whose path is no module's name."""
    name = "".join(c if c.isalnum() else "_" for c in file.stem)
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None  # it is a .py file
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(file.parent))
    sys.modules[name] = module
    try:
        with user_imports(file.parent):
            found.loader.exec_module(module)
    except CaptureError:
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ModelError(
            f"the file {file} cannot be imported",
            where=user_line(error),
            why=f"{type(error).__name__}: {error}",
            hint=_as_module(file) if "relative import" in str(error) else None,
        ) from error
    finally:
        sys.path.remove(str(file.parent))
    return module


def _as_module(file: Path) -> str:
    """How to name a file that is part of a package: as a module, from the folder that holds the package."""
    parts, folder = [file.stem], file.parent
    while not parts[1:] or (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return f"{'.'.join(parts)} in the place of the file, from the folder {folder}"


def _build(module: ModuleType, name: str, batch: int) -> nn.Module:
    factory = getattr(module, name, None)
    if factory is None:
        raise _no_factory(module, name)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise UsageError(
            f"{module.__name__}:{name} is a {type(factory).__name__}, not a function that makes a model"
        )
    model = _call(f"{module.__name__}:{name}", factory, {"batch": batch})
    if not isinstance(model, nn.Module):
        raise UsageError(f"{module.__name__}:{name} returned a {type(model).__name__}, not an nn.Module")
    return model


def _no_factory(module: ModuleType, name: str) -> UsageError:
    what = f"{module.__name__} has no {name!r}"
    offered = [key for key, value in vars(module).items() if _may_be_factory(module, key, value)]
    if not offered:
        return UsageError(what, hint="a function that returns the model: def build(): ...")
    close = difflib.get_close_matches(name, offered, n=1) or offered
    return UsageError(what, why=f"It offers {', '.join(offered)}.", hint=f"{module.__name__}:{close[0]}")


def _may_be_factory(module: ModuleType, name: str, value: Any) -> bool:
    if not inspect.isfunction(value) or name.startswith("_") or value.__module__ != module.__name__:
        return False
    parameters = inspect.signature(value).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return name not in ("example_inputs", "calibration_data") and not required


def _call(what: str, function: Callable[..., Any], offered: Mapping[str, Any]) -> Any:
    """Call a function of the user's with those of the offered arguments that it takes.

    Raises:
        ModelError: it raised.
    """
    try:
        taken = inspect.signature(function).parameters
    except (TypeError, ValueError):
        taken = {}
    try:
        with user_imports():
            return function(**{k: v for k, v in offered.items() if k in taken})
    except CaptureError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{what} raised", where=user_line(error), why=f"{type(error).__name__}: {error}"
        ) from error


# -- its inputs ------------------------------------------------------------------------------------------


def _example_inputs(module: ModuleType, factory: str, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``example_inputs(batch, factory)``: a tensor, a tuple, a dict by name, or ``(args, kwargs)``."""
    function = getattr(module, "example_inputs", None)
    if not callable(function):
        raise UsageError(
            f"{module.__name__} gives no example inputs",
            hint="--input x=1x3x224x224:float32, or a function example_inputs(batch=1) beside the factory",
        )
    given = _call(f"{module.__name__}:example_inputs", function, {"batch": batch, "factory": factory})
    match given:
        case torch.Tensor():
            return (given,), {}
        case dict():
            return (), given
        case (tuple() | list() as args, dict() as kwargs) if all(isinstance(k, str) for k in kwargs):
            return tuple(args), kwargs
        case tuple() | list():
            return tuple(given), {}
    raise UsageError(
        f"{module.__name__}:example_inputs returned a {type(given).__name__}, not a tuple of tensors"
    )


def _named_inputs(
    model: nn.Module, inputs: Mapping[str, torch.Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs by name as the arguments of forward: positional as far as there is no gap."""
    parameters = inspect.signature(model.forward).parameters
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [n for n, p in parameters.items() if p.kind in plain and p.default is p.empty]
    if inputs.keys() <= parameters.keys() and not inputs.keys() >= set(needed):
        _pick(inputs, list(dict.fromkeys([*needed, *inputs])))
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        _pick(inputs, list(parameters), partly=True)
    args: list[torch.Tensor] = []
    for name, parameter in parameters.items():
        if name not in inputs or parameter.kind not in (
            parameter.POSITIONAL_ONLY,
            parameter.POSITIONAL_OR_KEYWORD,
        ):
            break
        args.append(inputs[name])
    taken = list(parameters)[: len(args)]
    return tuple(args), {k: v for k, v in inputs.items() if k not in taken}


def _pick(
    inputs: Mapping[str, torch.Tensor], known: list[str], *, partly: bool = False
) -> list[torch.Tensor]:
    unknown = [name for name in inputs if name not in known]
    missing = [] if partly else [name for name in known if name not in inputs]
    if unknown:
        meant = _nearest(unknown[0], [name for name in known if name not in inputs])
        why = f"its inputs are {', '.join(known)}" if known else "it takes no inputs"
        hint = f"--input {meant}={_written(inputs[unknown[0]])}" if meant else None
        raise UsageError(f"the model has no input {unknown[0]!r}", why=why, hint=hint)
    if missing:
        raise UsageError(
            f"the input {missing[0]!r} is not given",
            why=f"the model's inputs are {', '.join(known)}",
            hint=f"--input {missing[0]}=1x3x224x224:float32 as well",
        )
    return [inputs[name] for name in known if name in inputs]


def _nearest(name: str, known: list[str]) -> str:
    """The input that was meant: the nearest by name, or the first that is left; empty where none is."""
    return next(iter([*difflib.get_close_matches(name, known, n=1), *known]), "")


def _written(tensor: torch.Tensor) -> str:
    """A tensor's shape and dtype as --input takes them."""
    return f"{'x'.join(map(str, tensor.shape))}:{str(tensor.dtype).removeprefix('torch.')}"
