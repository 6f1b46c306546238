"""What runs a graph on generated Triton kernels, between calls of PyTorch's own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from capture.errors import CaptureError
from capture.files import write_aside
from capture.ir import Graph, TensorType
from runtime.executables import bound_constants, load_module

_PACKAGE = "capture_kernels"  # the loaded kernels, as modules of one package


class TritonExecutable:
    """The generated Python module, whose regions run as Triton kernels.

    The kernels are files in the cache folder (``CAPTURE_CACHE_DIR``), named by their content: Triton reads
    their source, and a traceback or a profile names them.

    Attributes:
        device: where the graph lies; "cpu" means Triton's interpreter.
        kernels: names of the kernels, each a file of that name.

    Raises:
        CaptureError: Triton is not installed, or the graph lies on a CPU and Triton's interpreter is off.
    """

    backend = "triton"

    def __init__(self, graph: Graph, title: str = "") -> None:
        self.device = _device_of(graph)
        _require(self.device)
        from codegen.triton import writing

        graph = writing.lowered(graph)
        self.kernels = sorted(writing.files(graph))
        for name, file in writing.files(graph).items():
            _load_kernel(name, file.source)
        self.source: str | None = writing.module(graph, title=title)
        loaded = self.source.replace("from kernels import ", f"from {_PACKAGE} import ")
        self._module = load_module(loaded, graph.name)
        self.reload(graph)

    def reload(self, graph: Graph) -> None:
        """Take the graph's constants anew."""
        self._module.load(bound_constants(graph))
        self._forward: Callable[..., list[Any]] = self._module.forward

    def __call__(self, *flat: Any) -> Sequence[Any]:
        with self._on_device():
            return self._forward(*flat)

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Triton launches on the current device, wherever the tensors lie."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    @property
    def module(self) -> types.ModuleType:
        return self._module


def cache_folder() -> Path:
    """Where generated kernels are kept."""
    return Path(os.environ.get("CAPTURE_CACHE_DIR") or Path.home() / ".cache" / "torch-capture") / "kernels"


def _device_of(graph: Graph) -> torch.device:
    values = (*graph.inputs, *graph.constants.values(), *(v for n in graph.nodes for v in n.results))
    devices = [v.type.device for v in values if isinstance(v.type, TensorType)]
    return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))


def _require(device: torch.device) -> None:
    if importlib.util.find_spec("triton") is None:
        raise CaptureError('backend="triton" needs Triton, which is not installed', hint="pip install triton")
    import triton

    if device.type == "cpu" and not triton.knobs.runtime.interpret:
        raise CaptureError(
            'backend="triton" runs on a GPU, and the model is on the CPU',
            why="Triton compiles for GPUs; on a CPU its kernels run in its interpreter only, slowly",
            hint='model.to("cuda"), backend="aten", or TRITON_INTERPRET=1 to try the kernels out',
        )


def _load_kernel(name: str, source: str) -> None:
    """Make a kernel a module of the package, from a file, which Triton reads the source of."""
    package = sys.modules.setdefault(_PACKAGE, types.ModuleType(_PACKAGE))
    if hasattr(package, name):  # the same name is the same content
        return
    path = cache_folder() / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, source)
    spec = importlib.util.spec_from_file_location(f"{_PACKAGE}.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    setattr(package, name, module)


__all__ = ["TritonExecutable", "cache_folder"]
