"""Where in the model an op is called: the module that is running, and the user's line."""

from __future__ import annotations

import linecache
import sys
from typing import Any

import torch
from torch import nn
from torch.fx import traceback as fx_traceback
from torch.overrides import TorchFunctionMode

from capture.frontends.source import Frame, format_stack, is_user_file

__all__ = ["LineRecorder", "Place"]

_MODULE_CALL = nn.Module._call_impl.__code__


class Place:
    """Reads the place off Python's stack while a model runs.

    Attributes:
        boundary: the code object that runs the model; frames above it belong to the caller.
        module, frame: what to answer where the stack does not tell, or in its place (a line of an fx node).
    """

    def __init__(self, model: nn.Module) -> None:
        self._paths = {id(module): path for path, module in model.named_modules()}
        self.boundary: Any = None
        self.module = ""
        self.frame: Frame | None = None

    def here(self) -> tuple[str, Frame | None]:
        """The path of the innermost module that is running, and the innermost line of the user's."""
        module, line = None, self.frame
        frame = sys._getframe(1)
        while frame is not None and frame.f_code is not self.boundary:
            code = frame.f_code
            if module is None and code is _MODULE_CALL:
                module = self._paths.get(id(frame.f_locals.get("self")))
            elif line is None and is_user_file(code.co_filename):
                text = linecache.getline(code.co_filename, frame.f_lineno).strip()
                line = Frame(code.co_filename, frame.f_lineno, text)
            if module is not None and line is not None:
                break
            frame = frame.f_back
        return self.module if module is None else module, line

    def observe(self) -> None:
        """Tell torch.fx's tracers what to write on the nodes they make next."""
        module, line = self.here()
        meta = fx_traceback.current_meta
        meta["stack_trace"] = format_stack(line)
        meta["nn_module_stack"] = {module: (module, "")}


class LineRecorder(TorchFunctionMode):
    """Has torch.export note the user's innermost line; it only looks at functions named forward."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not torch.compiler.is_dynamo_compiling():  # inside torch.cond, say
            fx_traceback.current_meta["stack_trace"] = format_stack(self._place.here()[1])
        return func(*args, **(kwargs or {}))
