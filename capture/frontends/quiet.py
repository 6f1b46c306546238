"""Tracing without noise: torch's own logs and warnings about a try that the caller will explain better."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch._C import _DisableAutocast
from torch.fx import traceback as fx_traceback

__all__ = ["announced", "as_in_training", "noting_assignments", "silence", "without_own_notes"]

_FLAGS = ("_is_compiling_flag", "_is_exporting_flag")  # what torch.export itself sets; there is no public way


@contextlib.contextmanager
def as_in_training() -> Iterator[None]:
    """Trace with gradients on and autocast off, whatever the caller has set, and without torch's warnings.

    With gradients off, torch.nn swaps whole Transformer layers for opaque fast paths.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad(), _DisableAutocast():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


@contextlib.contextmanager
def announced() -> Iterator[None]:
    """Let `torch.compiler.is_exporting()` be true: libraries ask it before they look at a tensor's values."""
    flags = {name: getattr(torch.compiler, name, None) for name in _FLAGS}
    try:
        for name in flags:
            setattr(torch.compiler, name, True)
        yield
    finally:
        for name, value in flags.items():
            setattr(torch.compiler, name, value)


@contextlib.contextmanager
def without_own_notes() -> Iterator[None]:
    """Keep torch's notes on its own functions off the nodes, which its non-strict export may trip over.

    Nodes share the dict of the notes, so one made by a meta kernel shows on placeholders; which kernels run
    depends on what torch's cache of fake tensors holds from captures before.
    """
    annotate = fx_traceback.annotate

    def users_only(notes: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if "_torchdynamo_disable" in notes else annotate(notes)

    try:
        fx_traceback.annotate = users_only  # type: ignore[assignment]
        yield
    finally:
        fx_traceback.annotate = annotate


@contextlib.contextmanager
def noting_assignments() -> Iterator[list[str]]:
    """Gives the attributes that torch.export has seen the model assign, and only warns about."""
    paths: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield paths
    for warning in caught:
        text = str(warning.message)
        if found := re.match(r"The tensor attributes? (.+) (?:was|were) assigned during", text):
            paths += [path.removeprefix("self.") for path in found[1].split(", ")]
        elif found := re.match(r"While compiling, we found certain side effects.*?(\[.*\])", text, re.DOTALL):
            paths.append(found[1])
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop what torch logs, and what is printed where the block raises. TORCH_LOGS lets all through."""
    if os.environ.get("TORCH_LOGS"):
        yield
        return
    printed = io.StringIO()
    handlers = _torch_handlers()
    for handler in handlers:
        handler.addFilter(_nothing)
    try:
        with contextlib.redirect_stderr(printed):
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_nothing)
    sys.stderr.write(printed.getvalue())


def _nothing(_record: logging.LogRecord) -> bool:
    return False


def _torch_handlers() -> list[logging.Handler]:
    """The handlers that write torch's logs to the terminal."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]
    handlers = [h for name in names for h in logging.getLogger(name).handlers]
    return list({h for h in handlers if type(h) is logging.StreamHandler})
