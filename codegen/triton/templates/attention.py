"""Flash attention, forward: scores never leave the chip.

The online softmax of Milakov and Gimelshein (2018) over blocks of keys, as in Dao et al., FlashAttention
(2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from capture.ir import Node, Range, TensorType, Value
from capture.ir.types import CONTIGUOUS
from codegen.triton.configs import attention_configs
from codegen.triton.file import KernelFile
from codegen.triton.piece import Piece
from codegen.triton.templates.sizes import captured_shape
from codegen.triton.templates.text import fill

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD = 256


@dataclass(frozen=True)
class Attention:
    """softmax(q kᵀ * scale + mask) v.

    Attributes:
        sizes: captured (batch, heads, key heads, queries, keys, head size).
        mask: "" for none, "bool", or "float" for one that is added; it is broadcast.
        mask_shape, mask_dtype: of the mask: text over the names of `sizes`, and a dtype.
        causal: query i sees keys 0..i.
        window: with which only the keys i - window + 1 .. are seen; 0 for all.
        scale: text; the square root of the head size by default.
        transposed: the result lies in memory as [batch, queries, heads, head size].
    """

    dtype: torch.dtype
    sizes: tuple[int, int, int, int, int, int]
    mask: str = ""
    mask_shape: str = "batch, 1, queries, keys"
    mask_dtype: torch.dtype | None = None
    causal: bool = False
    window: int = 0
    scale: str = "q.shape[-1] ** -0.5"
    transposed: bool = False
    stands_for: tuple[str, ...] = ()

    def file(self) -> KernelFile:
        """The kernel file; its launch takes q, k, v and the mask, if any."""
        head, queries, itemsize = max(16, self.sizes[-1]), self.sizes[3], self.dtype.itemsize
        marks = ["causal"] * self.causal + [f"window of {self.window}"] * bool(self.window)
        marks += [f"{self.mask} mask"] * bool(self.mask) + ["grouped heads"] * (
            self.sizes[1] != self.sizes[2]
        )
        return fill(
            "attention",
            kind="attention",
            title=f"Flash attention{': ' if marks else ''}{', '.join(marks)}.",
            notes=_NOTES,
            parameters="q, k, v, mask" if self.mask else "q, k, v",
            configs=attention_configs(head, itemsize, queries, masked=bool(self.mask)),
            amd=attention_configs(head, itemsize, queries, masked=bool(self.mask), device="gfx942")[0],
            mask=self.mask,
            mask_shape=self.mask_shape,
            mask_dtype=str(self.mask_dtype or self.dtype),
            causal=self.causal,
            window=self.window,
            scale=self.scale,
            transposed=self.transposed,
            dtype=str(self.dtype),
            captured=", ".join(map(str, self.sizes)),
        ).for_more(self.stands_for)


_NOTES = """\
One program holds a block of queries of one head and goes over the keys, block by block, with the largest
score and the total so far; scores stay in registers. Blocks that need no mask have a loop of their own."""


def attention_file(node: Node, dims: Mapping[str, Range]) -> KernelFile | None:
    """The kernel file of a lone scaled_dot_product_attention; None where the template does not fit."""
    q, k, v = node.operands[:3]
    types = [x.tensor_type for x in (q, k, v)]
    alike = all(t.rank == 4 and t.dtype == types[0].dtype for t in types) and len({q, k, v}) == 3
    if not alike or types[0].dtype not in _DTYPES or node.arg("dropout_p"):
        return None
    shapes = [captured_shape(t.shape, dims) for t in types]
    (batch, heads, queries, size), (_, key_heads, keys, _) = shapes[:2]
    fits = shapes[1] == shapes[2] and shapes[1][3] == size <= MAX_HEAD and heads % max(key_heads, 1) == 0
    mask = node.arg("attn_mask")
    if not fits or any(not isinstance(t.shape[i], int) for t in types for i in (1, 3)):
        return None
    options: dict[str, object] = {}
    if isinstance(mask, Value):
        told = _mask(mask, (batch, heads, queries, keys), dims)
        if told is None or mask in (q, k, v):
            return None
        options |= told
    scale = node.arg("scale")
    if scale is not None:
        options["scale"] = repr(float(scale))
    return Attention(
        types[0].dtype,
        (batch, heads, key_heads, queries, keys, size),
        causal=bool(node.arg("is_causal")),
        transposed=node.results[0].tensor_type.memory_format != CONTIGUOUS,
        stands_for=(Piece.of(node).stands_for(),),
        **options,
    ).file()


def _mask(mask: Value, full: tuple[int, ...], dims: Mapping[str, Range]) -> dict[str, object] | None:
    if not isinstance(mask.type, TensorType) or mask.type.rank > 4:
        return None
    shape = captured_shape(mask.type.shape, dims)
    names = ("batch", "heads", "queries", "keys")[4 - len(shape) :]
    whole = full[4 - len(shape) :]
    text = ", ".join("1" if size == 1 else name for size, name in zip(shape, names, strict=True))
    if any(size not in (1, side) for size, side in zip(shape, whole, strict=True)):
        return None
    if mask.type.dtype != torch.bool and mask.type.dtype not in _DTYPES:
        return None
    kind = "bool" if mask.type.dtype == torch.bool else "float"
    return {"mask": kind, "mask_shape": text, "mask_dtype": mask.type.dtype}


__all__ = ["MAX_HEAD", "Attention", "attention_file"]
