"""Save and load a graph: one safetensors file, weights as tensors, structure as text and JSON in its header.

Loading reads text and tensors; it executes nothing and unpickles nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from capture.errors import CaptureError
from capture.files import write_aside, written_aside
from capture.ir import graph as ir
from capture.ir.copying import constants_of
from capture.ir.memory import identity
from capture.ir.origin import CapturedOp, Origin
from capture.ir.parse import parse
from capture.ir.specs import dump_spec, load_spec
from capture.ir.text import format_graph

FORMAT = "torch-capture graph 1"


def save(graph: ir.Graph, path: str | os.PathLike[str]) -> None:
    """Write the graph: structure, origins and weights. The file appears whole or not at all.

    Constants that are one tensor are written once. What passes have left (history, fates, analyses) is not
    saved, nor is the structure of inputs or results where it holds classes that cannot be read back safely:
    a graph loaded without it takes flat inputs and returns flat results.

    Raises:
        CaptureError: the file cannot be written, or a constant has no plain memory of its own to save.
    """
    from safetensors.torch import save_file

    tensors, keys, orders = _tensors(graph)
    header = {
        "format": FORMAT,
        "text": format_graph(graph),
        "name": graph.name,
        "frontend": graph.frontend,
        "attempts": json.dumps(graph.attempts),
        "captured": json.dumps([vars(c) for c in graph.captured.values()]),
        "origins": json.dumps([node.origin.ids for node in _nodes(graph)]),
        "constants": json.dumps(keys),
        "orders": json.dumps(orders),
        "in_spec": dump_spec(graph.in_spec),
        "out_spec": dump_spec(graph.out_spec),
    }
    with written_aside(path) as aside:
        save_file(tensors, aside, metadata=header)


def load(path: str | os.PathLike[str]) -> ir.Graph:
    """Read what `save` wrote. Weights come to their device, or stay on the CPU where there is no such device.

    Raises:
        CaptureError: the file is missing, corrupt, or not a saved graph.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError("its header does not say that it is a graph's")
            graph = parse(header["text"])
            keys, orders = _list(header["constants"]), dict(json.loads(header["orders"]))
            loaded: dict[Any, torch.Tensor] = {}
            for key, constant in zip(keys, constants_of(graph), strict=True):
                if key is not None:
                    if key not in loaded:
                        loaded[key] = _restored(file.get_tensor(key), constant, orders.get(key))
                    constant.tensor = _fitting(loaded[key], constant)
        _restore(graph, header)
        return graph
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, RuntimeError) as error:
        why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise CaptureError(
            f"cannot load the graph {os.fspath(path)}", why=why, hint="save it again with graph.save(path)"
        ) from error
    except CaptureError as error:
        raise CaptureError(f"cannot load the graph {os.fspath(path)}", why=str(error)) from error


Keys = list[str | None]  # under which name each constant is written; None if it is unbound


def _tensors(graph: ir.Graph) -> tuple[dict[str, torch.Tensor], Keys, dict[str, list[int]]]:
    """The tensors to write, the key of each constant, and how axes lie in memory where not in their order."""
    tensors: dict[str, torch.Tensor] = {}
    orders: dict[str, list[int]] = {}
    keys: Keys = []
    written: dict[Any, str] = {}
    storages: set[int] = set()
    for constant in constants_of(graph):
        held = constant.tensor
        if held is None:
            keys.append(None)
            continue
        plain = _plain(constant.name, held)
        same = identity(held)
        if same not in written:
            key, n = constant.name, 1
            while key in tensors:  # a region's constant may be named like another one
                key, n = f"{constant.name}.{n}", n + 1
            storage = plain.untyped_storage()
            if storage.data_ptr() in storages or storage.nbytes() != plain.numel() * plain.itemsize:
                plain = plain.clone()  # safetensors wants each tensor on memory of its own
            storages.add(plain.untyped_storage().data_ptr())
            written[same], tensors[key] = key, plain
            order = sorted(range(held.dim()), key=lambda axis: -held.stride()[axis])
            if not held.is_contiguous() and order != sorted(order):
                orders[key] = order
        keys.append(written[same])
    return tensors, keys, orders


def _plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous and in main memory; complex numbers as pairs of reals."""
    tensor = tensor.detach()
    kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
    if kind != "torch.strided" or type(tensor) is not torch.Tensor:
        what = f"a {type(tensor).__name__}" if kind == "torch.strided" else kind.removeprefix("torch.")
        raise CaptureError(
            f"cannot save the constant @{name}", why=f"its tensor is {what}, which has no plain memory"
        )
    tensor = tensor.resolve_conj().resolve_neg().cpu()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).contiguous()


def _restored(tensor: torch.Tensor, constant: ir.Constant, order: Any) -> torch.Tensor:
    if constant.tensor_type.dtype.is_complex:
        tensor = torch.view_as_complex(tensor)
    if order is not None:
        tensor = torch.empty_permuted(tensor.shape, order, dtype=tensor.dtype).copy_(tensor)
    if constant.tensor_type.device.type != "cpu":
        try:
            return tensor.to(constant.tensor_type.device)
        except (RuntimeError, AssertionError):  # there is no such device here; the graph can still be read
            return tensor
    return tensor


def _fitting(tensor: torch.Tensor, constant: ir.Constant) -> torch.Tensor:
    wanted = constant.tensor_type
    if (tensor.dtype, tuple(tensor.shape)) != (wanted.dtype, wanted.shape):
        raise ValueError(f"@{constant.name} is {wanted}, the file holds {tensor.dtype} {list(tensor.shape)}")
    return tensor


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes of a graph and of its regions."""
    for node in graph.nodes:
        yield node
        for region in node.regions:
            yield from _nodes(region)


def _restore(graph: ir.Graph, header: Mapping[str, str]) -> None:
    """What text does not hold: names, the ledger of captured ops, origins, pytree structures."""
    graph.name, graph.frontend = header["name"], header["frontend"]
    graph.attempts = [(str(name), str(reason)) for name, reason in _list(header["attempts"])]
    for row in _list(header["captured"]):
        op = CapturedOp(**row)
        kinds = (int, str, str, str, int, str)
        if not all(isinstance(v, kind) for v, kind in zip(vars(op).values(), kinds, strict=True)):
            raise ValueError(f"{row} is no captured op")
        graph.captured[op.id] = op
    for node, ids in zip(_nodes(graph), _list(header["origins"]), strict=True):
        node.origin = Origin(tuple(int(i) for i in ids), node.origin.modules, node.origin.locations)
    graph.in_spec, graph.out_spec = load_spec(header["in_spec"]), load_spec(header["out_spec"])
    for spec, leaves in ((graph.in_spec, graph.inputs), (graph.out_spec, graph.results)):
        if spec is not None and spec.num_leaves != len(leaves):
            raise ValueError("the structure of inputs or results has another number of leaves")


def _list(text: str) -> list[Any]:
    value = json.loads(text)
    if not isinstance(value, list):
        raise ValueError("a list was expected")
    return value


__all__ = ["load", "save", "write_aside", "written_aside"]
