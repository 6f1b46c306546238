"""Save and load a graph: one safetensors file, weights as tensors, structure as text and JSON in its header.

Loading reads text and tensors; it executes nothing and unpickles nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from capture.errors import CaptureError
from capture.ir import graph as ir
from capture.ir.origin import CapturedOp, Origin
from capture.ir.parse import parse
from capture.ir.text import format_graph
from capture.ir.types import TORCH_FORMATS

FORMAT = "torch-capture graph 1"


def save(graph: ir.Graph, path: str | os.PathLike[str]) -> None:
    """Write the graph. The file appears whole or not at all.

    Raises:
        CaptureError: the file cannot be written.
    """
    from safetensors.torch import save as to_bytes

    tensors = {n: _plain(c.tensor) for n, c in graph.constants.items() if c.tensor is not None}
    header = {
        "format": FORMAT,
        "text": format_graph(graph),
        "name": graph.name,
        "frontend": graph.frontend,
        "captured": json.dumps([vars(c) for c in graph.captured.values()]),
        "origins": json.dumps([list(n.origin.ids) for n in graph.nodes]),
        "in_spec": _spec_text(graph.in_spec),
        "out_spec": _spec_text(graph.out_spec),
    }
    write_aside(path, to_bytes(tensors, metadata=header))


def load(path: str | os.PathLike[str]) -> ir.Graph:
    """Read what `save` wrote.

    Raises:
        CaptureError: the file is missing, corrupt, or not a saved graph.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise CaptureError(f"{path} is not a saved graph", why="its header does not say so")
            graph = parse(header["text"])
            for name, constant in graph.constants.items():
                if name in file.keys():  # noqa: SIM118 (a safetensors handle is no dict)
                    constant.tensor = _restored(file.get_tensor(name), constant)
        graph.name, graph.frontend = header["name"], header["frontend"]
        graph.captured = {row["id"]: CapturedOp(**row) for row in json.loads(header["captured"])}
        for node, ids in zip(graph.nodes, json.loads(header["origins"]), strict=True):
            node.origin = Origin(tuple(ids), node.origin.modules, node.origin.locations)
        graph.in_spec, graph.out_spec = _spec(header["in_spec"]), _spec(header["out_spec"])
        return graph
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CaptureError(
            f"cannot load the graph {path}",
            why=f"{type(error).__name__}: {error}",
            hint="save it again with graph.save(path)",
        ) from error


def write_aside(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file under another name beside its place, then rename: no reader ever sees half of it.

    Raises:
        CaptureError: the place cannot be written to.
    """
    target = Path(path)
    payload = data.encode() if isinstance(data, str) else data
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(payload)
            os.chmod(aside, 0o644)
            os.replace(aside, target)
        except BaseException:
            os.unlink(aside)
            raise
    except OSError as error:
        raise CaptureError(
            f"cannot write {target}", why=error.strerror or str(error), hint="another place: -o DIR"
        ) from error


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous and on its own memory; complex numbers as pairs of reals."""
    tensor = tensor.detach().cpu()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.clone(memory_format=torch.contiguous_format)


def _restored(tensor: torch.Tensor, constant: ir.Constant) -> torch.Tensor:
    wanted = constant.tensor_type
    if wanted.dtype.is_complex:
        tensor = torch.view_as_complex(tensor)
    if (tensor.dtype, tuple(tensor.shape)) != (wanted.dtype, wanted.shape):
        raise ValueError(f"@{constant.name} is {wanted}, the file holds {tensor.dtype} {list(tensor.shape)}")
    format_ = TORCH_FORMATS.get(wanted.memory_format, torch.contiguous_format)
    return tensor.contiguous(memory_format=format_)


def _spec_text(spec: Any) -> str:
    """A pytree structure as JSON; one of unregistered classes is left out: the graph is then called flat."""
    if spec is None:
        return ""
    try:
        return pytree.treespec_dumps(spec)
    except NotImplementedError:
        return ""


def _spec(text: str) -> Any:
    try:
        return pytree.treespec_loads(text) if text else None
    except NotImplementedError as error:
        raise ValueError(f"{error} Import the package that defines the class first.") from error
