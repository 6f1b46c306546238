"""From a graph to a checked ONNX model, in memory or in a file."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as oir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from capture.errors import CaptureError, UsageError
from capture.ir import Graph
from capture.ir.graph import Constant
from codegen.onnx import lowerings  # noqa: F401 (fills the table)
from codegen.onnx.translate import translate

OPSETS = range(20, 25)
LIMIT = 2**31 - 2**22  # bytes: protobuf holds 2 GB, of which the nodes need some
SMALL = 1024  # bytes: smaller constants stay in the model always


def export_model(
    graph: Graph,
    path: str | os.PathLike[str] | None,
    *,
    opset: int,
    external_data: Any,
    weights: bool,
    keep_nan: bool,
) -> onnx.ModelProto:
    """What `codegen.onnx.export` does."""
    if external_data not in (True, False, "auto"):
        raise UsageError(f"external_data is {external_data!r}", hint='True, False or "auto"')
    target = None if path is None else Path(path)
    data = f"{'model.onnx' if target is None else target.name}.data"
    if not weights:
        proto, _ = export_parts(graph, opset=opset, location=data, keep_nan=keep_nan)
        if target is not None:
            _write(target, lambda place: onnx.save(proto, place))
        return proto
    model, constants = _translated(graph, opset, keep_nan)
    unbound = next((n for n, c in constants.items() if c.tensor is None), None)
    if unbound is not None:
        hint = "graph.bind(state_dict), or weights=False"
        raise CaptureError(f"the constant @{unbound} has no value", hint=hint)
    validate(structure(model, constants, data))
    large = sum(v.const_value.nbytes for v in model.graph.initializers.values()) > LIMIT
    if large and (target is None or external_data is False):
        hint = "a path, and external_data=True"
        raise UsageError("the weights exceed the 2 GB that one file can hold", hint=hint)
    if target is not None and (large or external_data is True):
        _write(target, lambda place: oir.save(model, place, external_data=data, size_threshold_bytes=SMALL))
        onnx.checker.check_model(os.fspath(target))
        return onnx.load(target, load_external_data=False)
    proto = oir.to_proto(model)
    if target is not None:
        _write(target, lambda place: onnx.save(proto, place))
    return proto


def export_parts(
    graph: Graph, *, opset: int = 23, location: str = "weights", keep_nan: bool = False
) -> tuple[onnx.ModelProto, dict[str, Constant]]:
    """The model with its large constants left out, and all constants by their name in it.

    For runtimes that take the weights from memory; `is_outside` tells which they have to be given.
    """
    model, constants = _translated(graph, opset, keep_nan)
    return validate(structure(model, constants, location)), constants


def is_outside(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's data is not in the model."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _translated(graph: Graph, opset: int, keep_nan: bool) -> tuple[oir.Model, dict[str, Constant]]:
    """The model without what nothing uses, and its constants by name."""
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not supported", hint=f"{OPSETS[0]} to {OPSETS[-1]}")
    model, constants = translate(graph, opset, keep_nan=keep_nan)
    RemoveUnusedNodesPass()(model)
    return model, {name: c for name, c in constants.items() if name in model.graph.initializers}


def structure(model: oir.Model, constants: dict[str, Constant], location: str) -> onnx.ModelProto:
    """The model, its large constants referring to a data file. Costs no copy of the weights."""
    values = {name: model.graph.initializers[name] for name in constants}
    before = {name: value.const_value for name, value in values.items()}
    offset = 0
    for name, value in values.items():
        assert value.dtype is not None
        assert value.shape is not None
        length = math.ceil(math.prod(value.shape.numpy()) * value.dtype.itemsize)
        if length <= SMALL and before[name] is not None:
            continue
        value.const_value = oir.ExternalTensor(
            location, offset, length, value.dtype, shape=value.shape, name=name
        )
        offset += length
    try:
        return oir.to_proto(model)
    finally:
        for name, value in values.items():
            value.const_value = before[name]


def validate(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Run the checker, and shape inference against the types that the graph declares. Returns the model.

    Large constants are looked at as inputs: nothing is lost by that, and a model of any size can be checked.

    Raises:
        CaptureError: the model is not valid ONNX: a lowering is wrong.
    """
    looked_at = onnx.ModelProto()
    looked_at.CopyFrom(proto)
    graph = looked_at.graph
    outside = [t for t in graph.initializer if is_outside(t)]
    kept = [t for t in graph.initializer if not is_outside(t)]
    known = {v.name for v in graph.input}
    for tensor in outside:
        if tensor.name not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    try:
        onnx.checker.check_model(looked_at, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CaptureError(
            "the ONNX model is not valid",
            why=str(error),
            hint="the lowering of the operator named above is wrong",
        ) from error
    return proto


def _write(target: Path, write: Callable[[Path], None]) -> None:
    """Write the model, and its data file where it has one, in a folder aside, then move both into place.

    Raises:
        CaptureError: the place cannot be written to.
    """
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            write(aside / target.name)
            data_first = sorted(aside.iterdir(), key=lambda file: file.name == target.name)
            for file in data_first:
                os.replace(file, target.parent / file.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise CaptureError(
            f"cannot write {target}", why=error.strerror or str(error), hint="another place: -o DIR"
        ) from error
