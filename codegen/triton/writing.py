"""A lowered graph as files: its kernels, each once, and the Python module that calls them."""

from __future__ import annotations

import os
from pathlib import Path

from capture.files import write_aside
from capture.ir import Graph, Node, op_name
from codegen.python.module import Writer
from codegen.triton.file import KernelFile
from codegen.triton.lower import PREFIX, LowerTriton, kernel_file
from passes.fuse import Fuse

_AFTER = "\naten = torch.ops.aten\n"


def lowered(graph: Graph) -> Graph:
    """The graph itself where it has Triton recipes, else a copy cut into regions for a GPU and lowered."""
    if any(_file_name(node) for node in graph.nodes):
        return graph
    made = graph.clone()
    Fuse(target="gpu").run(made)
    LowerTriton().run(made)
    return made


def files(graph: Graph) -> dict[str, KernelFile]:
    """The kernel files of a lowered graph by name; equal kernels are one file that stands for all of them."""
    found: dict[str, KernelFile] = {}
    for node in graph.nodes:
        name = _file_name(node)
        if name is None:
            continue
        file = found[name] if name in found else kernel_file(node, graph.dims)
        found[name] = file.for_more([_stands_for(node)])
    return found


def emit(graph: Graph, folder: str | os.PathLike[str]) -> list[Path]:
    """Write the graph's kernels to a folder, each a file that stands alone; sorted paths.

    A graph that was not optimised for Triton is cut into regions and lowered first (a copy of it).

    Raises:
        CaptureError: jinja2 is missing, or a file cannot be written.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, file in sorted(files(lowered(graph)).items()):
        paths.append(place / f"{name}.py")
        write_aside(paths[-1], file.source)
    return paths


def module(graph: Graph, *, title: str = "") -> str:
    """The graph as a Python module that takes its kernels from a folder ``kernels`` beside it.

    Raises:
        UnsupportedOpError: an operator that has no Python form.
    """
    return _Module(graph, title).module()


class _Module(Writer):
    """Calls of kernels beside calls of PyTorch."""

    def __init__(self, graph: Graph, title: str = "") -> None:
        super().__init__(graph, title)
        self.kernels: set[str] = {n for node in graph.nodes if (n := _file_name(node)) is not None}
        self.taken |= self.kernels

    def _node(self, node: Node) -> list[str]:
        name = _file_name(node)
        if name is None:
            return super()._node(node)
        given = ", ".join(self.text(v) for v in dict.fromkeys(node.operand_values))
        return [f"{self.targets(node)}{name}.launch({given})"]

    def module(self) -> str:
        imports = "".join(f"from kernels import {name}\n" for name in sorted(self.kernels))
        return super().module().replace(_AFTER, f"\n{imports}{_AFTER}" if imports else _AFTER, 1)


def _file_name(node: Node) -> str | None:
    if node.impl is None or not node.impl.kernel.startswith(PREFIX):
        return None
    return str(node.impl.options["file"])


def _stands_for(node: Node) -> str:
    """``encoder.layer.3 (models/bert.py:71): mul, add, softmax``"""
    inner = list(node.region.nodes) if node.region is not None else [node]
    return f"{node.origin or 'graph'}: {', '.join(op_name(n.op).split('.')[1] for n in inner)}"


__all__ = ["emit", "files", "lowered", "module"]
