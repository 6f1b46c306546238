"""Types of values: tensors with possibly symbolic shapes, scalars, and literals baked in by capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch.utils._sympy import functions as tsf

from capture.ir import dims
from capture.ir.dims import Dim

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8e4m3",
    torch.float8_e5m2: "f8e5m2",
    torch.float8_e4m3fnuz: "f8e4m3fnuz",
    torch.float8_e5m2fnuz: "f8e5m2fnuz",
    torch.float8_e8m0fnu: "f8e8m0fnu",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.uint16: "u16",
    torch.uint32: "u32",
    torch.uint64: "u64",
    torch.bool: "bool",
    torch.complex32: "c32",
    torch.complex64: "c64",
    torch.complex128: "c128",
}
for _name, _dtype in vars(torch).items():  # quantised, packed and bit types go by torch's own names
    if isinstance(_dtype, torch.dtype):
        DTYPE_NAMES.setdefault(_dtype, _name)
DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in DTYPE_NAMES.items()}

CONTIGUOUS = "contiguous"
CHANNELS_LAST = "channels_last"
CHANNELS_LAST_3D = "channels_last_3d"
STRIDED = "strided"  # any other order or spacing: a transposed or sliced view
TORCH_FORMATS: dict[str, torch.memory_format] = {
    CONTIGUOUS: torch.contiguous_format,
    CHANNELS_LAST: torch.channels_last,
    CHANNELS_LAST_3D: torch.channels_last_3d,
}
MEMORY_FORMATS = (*TORCH_FORMATS, STRIDED)
SCALAR_KINDS = ("int", "float", "bool", "none")


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a symbolic dim; `upper` None means unbounded."""

    lower: int = 1
    upper: int | None = None

    def __contains__(self, value: int) -> bool:
        return self.lower <= value and (self.upper is None or value <= self.upper)

    def __str__(self) -> str:
        return f"[{self.lower}, {'inf' if self.upper is None else self.upper}]"


@dataclass(frozen=True)
class TensorType:
    """dtype, shape (ints or symbolic sizes), memory format and device of a tensor."""

    dtype: torch.dtype
    shape: tuple[Dim, ...]
    memory_format: str = CONTIGUOUS
    device: torch.device = torch.device("cpu")

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    @property
    def numel(self) -> Dim:
        return dims.product(self.shape)

    @property
    def nbytes(self) -> Dim:
        """Bytes of the dense tensor."""
        return dims.product((*self.shape, self.dtype.itemsize))

    def concrete(self, env: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with each dim's value put in."""
        return tuple(dims.evaluate(d, env) for d in self.shape)

    def with_(self, **changes: Any) -> TensorType:
        return replace(self, **changes)

    def same_value_as(self, other: ValueType) -> bool:
        """Equal but for the memory format, which carries no meaning, only a layout."""
        return isinstance(other, TensorType) and (self.dtype, self.shape, self.device) == (
            other.dtype,
            other.shape,
            other.device,
        )

    def __str__(self) -> str:
        text = f"{DTYPE_NAMES[self.dtype]}[{', '.join(dims.format_dim(d) for d in self.shape)}]"
        if self.memory_format != CONTIGUOUS:
            text += f" {self.memory_format}"
        if self.device != torch.device("cpu"):
            text += f" @{self.device}"
        return text


@dataclass(frozen=True)
class ScalarType:
    """A Python number computed by the graph. `kind` is int, float, bool or none.

    `expr` names the symbolic size that the value defines (``u0`` of an ``item()``), if it does.
    """

    kind: str
    expr: Dim | None = None

    def same_value_as(self, other: ValueType) -> bool:
        return self == other

    def __str__(self) -> str:
        return self.kind if self.expr is None else f"{self.kind}({dims.format_dim(self.expr)})"


@dataclass(frozen=True)
class LiteralType:
    """An input that capture baked in: the graph holds for this value only, and callers are guarded on it."""

    value: Any

    def same_value_as(self, other: ValueType) -> bool:
        return self == other

    def __str__(self) -> str:
        from capture.ir.text import format_literal

        return f"={format_literal(self.value)}"


ValueType: TypeAlias = TensorType | ScalarType | LiteralType


def type_names(type: ValueType) -> set[str]:
    """Names of the symbolic sizes in a type."""
    if isinstance(type, TensorType):
        return dims.free_names(type.shape)
    return dims.free_names(type.expr) if isinstance(type, ScalarType) else set()


def format_of(shape: Sequence[Dim], strides: Sequence[Dim]) -> str:
    """The memory format that strides amount to; sizes are compared as expressions, without guards."""
    if _nested(shape, strides, range(len(shape))):
        return CONTIGUOUS
    for format_, order in ((CHANNELS_LAST, (0, 2, 3, 1)), (CHANNELS_LAST_3D, (0, 2, 3, 4, 1))):
        if len(shape) == len(order) and _nested(shape, strides, order):
            return format_
    return STRIDED


def _nested(shape: Sequence[Dim], strides: Sequence[Dim], order: Sequence[int]) -> bool:
    """Whether the tensor is dense with its axes nested in that order; a size of 1 may have any stride."""
    if 0 in shape:
        return True
    expected: Dim = 1
    for axis in reversed(order):
        if shape[axis] != 1 and _unless_empty(strides[axis]) != expected:
            return False
        expected = _unless_empty(dims.normalise(dims.product((expected, shape[axis]))))
    return True


def _unless_empty(size: Dim) -> Dim:
    """Torch writes max(1, H//2) for the stride over H//2 elements: they differ where no stride matters."""
    if isinstance(size, int):
        return size
    return dims.canonical(
        size.replace(
            lambda e: isinstance(e, tsf.Max) and 1 in e.args,
            lambda e: tsf.Max(*(a for a in e.args if a != 1)),
        )
    )


def memory_format_of(tensor: torch.Tensor) -> str:
    """The memory format of a real tensor."""
    if tensor.layout is not torch.strided:
        return CONTIGUOUS
    return format_of(tuple(tensor.shape), tensor.stride())


def type_of(tensor: torch.Tensor) -> TensorType:
    """Type of a real tensor (static sizes)."""
    shape = tuple(int(d) for d in tensor.shape)
    return TensorType(tensor.dtype, shape, memory_format_of(tensor), tensor.device)
