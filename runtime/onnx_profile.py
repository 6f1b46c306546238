"""Per-op times of ONNX Runtime, mapped to module path and source line.

A session of its own records; ONNX Runtime names what it runs after the ONNX nodes that it stands for, which
carry module and source as metadata.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from capture.errors import CaptureError
from capture.ir.interpreter import flatten_inputs
from runtime.recorders import Event
from runtime.reference import clone_inputs

__all__ = ["record_onnx"]

Place = tuple[str, str, int]  # module, file, line


def record_onnx(f: Any, args: Sequence[Any], kwargs: Mapping[str, Any], runs: int) -> list[list[Event]]:
    """The kernels of each of `runs` calls, after one that is not kept.

    Args:
        f: what `runtime.compile` returned for the backend onnx.

    Raises:
        CaptureError: the calls ran different kernels, and cannot be told apart.
    """
    from codegen.onnx.exporting import export_parts
    from runtime.onnx_session import Session

    places = node_places(export_parts(f.graph)[0])
    given, given_kw = clone_inputs((tuple(args), dict(kwargs)))
    flat = flatten_inputs(f.captured, given, given_kw)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(f.graph, threads=f.recipe.threads, profile=str(Path(folder) / "calls"))
        for _ in range(runs + 1):
            session(*flat)
        records = json.loads(Path(session.end_profiling()).read_text())
    kernels = [r for r in records if r.get("cat") == "Node" and r["name"].endswith("_kernel_time")]
    kernels.sort(key=lambda record: record["ts"])
    each, rest = divmod(len(kernels), runs + 1)
    if rest:
        raise CaptureError("ONNX Runtime ran different kernels in different calls")
    calls = [kernels[i : i + each] for i in range(each, len(kernels), max(1, each))]
    return [[event(record, call[0]["ts"], places) for record in call] for call in calls]


def event(record: Mapping[str, Any], start: float, places: Mapping[str, Place]) -> Event:
    name = record["name"].removesuffix("_kernel_time")
    module, file, line = place_of(name, places)
    return Event(
        name, record["args"]["op_name"], module, file, line, record["ts"] - start, float(record["dur"])
    )


def place_of(name: str, places: Mapping[str, Place]) -> Place:
    """The place of the ONNX node with the longest name that `name` begins with: fusions only add to names."""
    name = name.removeprefix("fused ")
    for end in range(len(name), 0, -1):
        if name[:end] in places and (end == len(name) or not name[end].isalnum()):
            return places[name[:end]]
    return "", "", 0


def node_places(model: Any) -> dict[str, Place]:
    """Module and first source line of each node of an ONNX model, by the node's name."""
    found: dict[str, Place] = {}
    for node in model.graph.node:
        told = {entry.key: entry.value for entry in node.metadata_props}
        file, _, line = told.get("source", "").partition(",")[0].rpartition(":")
        found[node.name] = (told.get("module", ""), file, int(line) if line.isdigit() else 0)
    return found
