"""torch tensors as ONNX Runtime's values and back, sharing memory."""

from __future__ import annotations

from typing import Any

import onnxruntime
import torch
from torch.utils.dlpack import from_dlpack

# numpy has no such types: ONNX Runtime takes the bytes and the type's number (TensorProto.DataType).
_NOT_IN_NUMPY = {
    torch.bfloat16: (torch.int16, 16),
    torch.float8_e4m3fn: (torch.uint8, 17),
    torch.float8_e5m2: (torch.uint8, 19),
}
_BOOL = 9


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
