"""ONNX Runtime: sessions, and torch tensors as its values and back, sharing memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from torch.utils.dlpack import from_dlpack

from capture.errors import CaptureError
from codegen.onnx.widen import uses_bfloat16, widen_bfloat16

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

# numpy has no such types: ONNX Runtime takes the bytes and the type's number (TensorProto.DataType).
_NOT_IN_NUMPY = {
    torch.bfloat16: (torch.int16, 16),
    torch.float8_e4m3fn: (torch.uint8, 17),
    torch.float8_e5m2: (torch.uint8, 19),
}
_BOOL = 9


def open_session(
    model: onnx.ModelProto | str | os.PathLike[str],
    options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[str] = (CPU,),
) -> onnxruntime.InferenceSession:
    """A session for a model or a file.

    Where only the CPU is to run it, which has few kernels for bfloat16, that is computed in float32.

    Raises:
        CaptureError: there is no such provider; the file cannot be read; ONNX Runtime refuses the model.
    """
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    available = onnxruntime.get_available_providers()
    missing = next((p for p in providers if p not in available), None)
    if missing is not None:
        raise CaptureError(
            f"ONNX Runtime has no {missing}", why=f"this installation has {', '.join(available)}"
        )
    try:
        return onnxruntime.InferenceSession(
            _source(model, options, list(providers) == [CPU]), options, providers=list(providers)
        )
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError("ONNX Runtime refuses the model", why=str(error)) from error


def _source(
    model: onnx.ModelProto | str | os.PathLike[str], options: onnxruntime.SessionOptions, on_cpu: bool
) -> bytes | str:
    """What the session reads: the model's bytes, or the file's name where it can be taken as it is."""
    if isinstance(model, onnx.ModelProto):
        return (widen_bfloat16(model) if on_cpu and uses_bfloat16(model) else model).SerializeToString()
    path = Path(model)
    try:
        proto = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise CaptureError(f"cannot load the model {path}", why=str(error)) from error
    if not (on_cpu and uses_bfloat16(proto)):
        return os.fspath(path)
    folder = os.fspath(path.parent.resolve())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    return widen_bfloat16(proto).SerializeToString()


def run(session: onnxruntime.InferenceSession, feeds: dict[str, Any]) -> list[torch.Tensor]:
    """All outputs, for tensors and numbers by input name.

    Raises:
        CaptureError: ONNX Runtime refuses the inputs, or fails.
    """
    values = {name: to_ort(v) for name, v in feeds.items()}
    try:
        return [from_ort(v) for v in session.run_with_ort_values(None, values)]
    except Exception as error:
        raise CaptureError("ONNX Runtime cannot run the model", why=str(error)) from error


def as_tensor(value: Any) -> torch.Tensor:
    """Tensors as they are; numbers as our ONNX models take and return them: int64, float64, bool."""
    return torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def to_ort(value: Any) -> onnxruntime.OrtValue:
    """A value on a tensor's memory, or on a copy where that is not contiguous or not on the CPU; a number."""
    tensor = as_tensor(value).detach().cpu().contiguous()
    if tensor.dtype in _NOT_IN_NUMPY:
        bytes_as, number = _NOT_IN_NUMPY[tensor.dtype]
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(tensor.view(bytes_as).numpy(), number)
    return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy())


def from_ort(value: onnxruntime.OrtValue) -> torch.Tensor:
    """A tensor on the value's memory."""
    tensor: torch.Tensor = from_dlpack(value._get_c_value().to_dlpack())
    return tensor.view(torch.bool) if value.element_type() == _BOOL else tensor  # DLPack gives them as bytes
