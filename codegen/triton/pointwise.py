"""Pointwise kernels: one program works on a block of elements, whatever the rank and the broadcasting.

fusion.pointwise(x [N, C, H, W], bias [C, 1, 1]) { relu(x + bias) }

index = program * BLOCK + 0 .. BLOCK-1
x = load(x_ptr + index)     bias = load(bias_ptr + index // D1 % D0)     store(out_ptr + index, ...)
"""

from __future__ import annotations

from collections.abc import Mapping

from capture.ir import Node, Range, Value
from capture.ir.dims import Dim, format_dim
from capture.ir.types import CHANNELS_LAST, CONTIGUOUS, DTYPE_NAMES
from codegen.triton.file import NAME, KernelFile
from codegen.triton.launching import Tensors, spread
from codegen.triton.ops import HALVES, Body, Term, check_dtypes
from codegen.triton.piece import Piece
from codegen.triton.space import Operand, Space, place, text_of

BLOCK = 1024  # elements of a program: 8 a thread of 4 warps, so 16 bytes and more a load


def pointwise_file(node: Node, dims: Mapping[str, Range]) -> KernelFile:
    """The kernel file of a fusion of pointwise operators, or of a lone one.

    Raises:
        UnsupportedOpError: an operator, dtype or layout has no Triton form; names it.
    """
    piece = Piece.of(node)
    shape = piece.results[-1].tensor_type.shape
    for each in piece.nodes:
        check_dtypes(each)
        if any(v.tensor_type.shape != shape for v in each.results):
            raise piece.unsupported("its operators' results differ in shape")
    tensors = tensors_of(piece, shape, dims)
    kernel = _Kernel(piece, tensors)
    return KernelFile(
        kind="pointwise",
        title=f"{piece.ops} on {described(tensors)}.",
        notes=f"{tensors.moved()}\nA program works on {BLOCK} elements of the result.",
        kernels=kernel.text(),
        launch=kernel.launch(),
        reference=piece.reference(),
        examples=tensors.example_function(),
        captured=tensors.captured_function(),
        work=tensors.work_function(len(piece.nodes)),
        stands_for=(piece.stands_for(),),
    )


def tensors_of(piece: Piece, shape: tuple[Dim, ...], dims: Mapping[str, Range]) -> Tensors:
    """Inputs and results in the space of `shape`, walked in the order of the last result's memory."""
    inputs = [operand(piece.names[v], v, shape) for v in piece.inputs]
    names = ["out"] if len(piece.results) == 1 else [f"out{i}" for i in range(len(piece.results))]
    results = [operand(name, v, shape) for name, v in zip(names, piece.results, strict=True)]
    order = range(len(shape))
    if piece.results[-1].tensor_type.memory_format == CHANNELS_LAST:
        order = (0, 2, 3, 1)
    space = Space(shape, (tuple(order),), (*inputs, *results))
    return Tensors(space, inputs, results, dims, {}, {})


def operand(name: str, value: Value, shape: tuple[Dim, ...]) -> Operand:
    return Operand(name, value.tensor_type, place(value.tensor_type, shape))


class _Kernel:
    def __init__(self, piece: Piece, tensors: Tensors) -> None:
        self.piece, self.tensors, self.space = piece, tensors, tensors.space
        self.offsets = {o.name: self.space.offset(o, 0, "index") for o in (*tensors.inputs, *tensors.results)}
        self.sizes = self.space.sizes_used(self.offsets.values())
        self.strides = self.space.strides_used(self.offsets.values())

    def text(self) -> str:
        helpers: dict[str, str] = {}
        body = Body(helpers, self.piece.names.__getitem__)
        lines = [
            "start = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)",
            "index = start * BLOCK + tl.arange(0, BLOCK)",
            "mask = None if EVEN else index < n",
        ]
        for value, o in zip(self.piece.inputs, self.tensors.inputs, strict=True):
            lines.append(f"{o.name} = {self.load(o)}")
            body.terms[value] = Term(o.name, o.type.dtype, rank=o.type.rank)
        lines += [body.line(node) for node in self.piece.nodes]
        for value, o in zip(self.piece.results, self.tensors.results, strict=True):
            at = "index" if self.offsets[o.name] == 0 else text_of(self.offsets[o.name])  # for the mask
            lines.append(f"tl.store({o.name}_ptr + {at}, {body.terms[value]}, mask)")
        parameters = [f"{o.name}_ptr" for o in (*self.tensors.inputs, *self.tensors.results)]
        parameters += ["n", *(name for name, _ in self.strides)]
        parameters += [f"{name}{self.constexpr}" for name, _ in self.sizes]
        parameters += [f"{name}: tl.constexpr" for name in ("EVEN", "WIDE", "BLOCK")]
        head = spread(f"def {NAME}(", parameters, "):", 0)
        kernel = "\n".join(["@triton.jit", *head, *(f"    {line}" for line in lines)])
        functions = [*helpers.values(), kernel]
        return "\n\n\n".join(functions)

    @property
    def constexpr(self) -> str:
        """Sizes are constants of the kernel where the graph's are."""
        static = all(isinstance(size, int) for size in self.space.shape)
        return ": tl.constexpr" if static else ""

    def load(self, o: Operand) -> str:
        place = self.offsets[o.name]
        if place == 0:
            text = f"tl.load({o.name}_ptr)"
        else:
            text = f"tl.load({o.name}_ptr + {text_of(place)}, mask)"
        return f"{text}.to(tl.float32)" if o.type.dtype in HALVES else text

    def launch(self) -> str:
        t, names = self.tensors, [o.name for o in self.tensors.results]
        made = names[0] if len(names) == 1 else ", ".join(names)
        arguments = [o.name for o in (*t.inputs, *t.results)] + ["n", *(text for _, text in self.strides)]
        arguments += [f"{name}={' * '.join(t.size(a) for a in axes)}" for name, axes in self.sizes]
        strided = [f"extent({o.name})" for o in (*t.inputs, *t.results) if o.is_strided]
        wide = f"max({', '.join(['n', *strided])})" if strided else "n"
        arguments += [f"EVEN=n % {BLOCK} == 0", f"WIDE={wide} > 2**31 - {BLOCK}", f"BLOCK={BLOCK}"]
        lines = [
            f"def launch({', '.join(o.name for o in t.inputs)}, *, out=None):",
            *signature(t),
            *(f"    {line}" for line in (*t.unpacking(), *t.checks(), *t.dense())),
            "    if out is None:",
            *(f"        {line}" for line in t.allocations()),
        ]
        if len(names) > 1:
            lines += ["    else:", f"        {made} = out"]
        lines += [
            f"    n = {names[0]}.numel()",
            "    if n:",
            *spread(f"{NAME}[(triton.cdiv(n, {BLOCK}),)](", arguments, ")", 8),
            f"    return {made}",
        ]
        return "\n".join(lines)


def described(t: Tensors) -> str:
    """``f32 [8, 768]``: the last result."""
    type_ = t.results[-1].type
    return f"{DTYPE_NAMES[type_.dtype]} [{', '.join(map(format_dim, type_.shape))}]"


def signature(t: Tensors) -> list[str]:
    """The docstring of `launch`: what goes in and out."""

    def told(o: Operand) -> str:
        shape = t.shape(o).removeprefix("(").removesuffix(")").removesuffix(",")
        kind = "" if o.type.memory_format == CONTIGUOUS else f" {o.type.memory_format}"
        return f"{DTYPE_NAMES[o.type.dtype]}[{shape}]{kind}"

    given = [f"{o.name} {told(o)}" for o in t.inputs]
    made = [f"{o.name} {told(o)}" for o in t.results]
    lines = ['    """Launch the kernel; `out`, where given, is written to: a tensor, or one a result.', ""]
    lines += [f"    {text}" for text in (*given, "->", *made)]
    return [*lines, '    """']


__all__ = ["BLOCK", "described", "operand", "pointwise_file", "signature", "tensors_of"]
