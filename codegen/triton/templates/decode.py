"""Flash decoding: one query a sequence against a cache of keys and values, plain or paged.

The keys are split over programs and the parts joined (Flash-Decoding, Dao et al. 2023); a block table says
where the pages lie (PagedAttention, Kwon et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from codegen.triton.file import KernelFile
from codegen.triton.templates.text import fill


@dataclass(frozen=True)
class Decode:
    """softmax(q kᵀ * scale) v for one query a sequence, over the first `lengths[i]` keys of its cache.

    Attributes:
        sizes: captured (batch, heads, key heads, keys at most, head size).
        paged: k and v are [pages, key heads, page size, head size]; `blocks` names the pages of a sequence.
        scale: text; the square root of the head size by default.
    """

    dtype: torch.dtype
    sizes: tuple[int, int, int, int, int]
    paged: bool = False
    scale: str = "q.shape[-1] ** -0.5"
    stands_for: tuple[str, ...] = ()

    def file(self) -> KernelFile:
        """The kernel file; its launch takes q, k, v, lengths and, where it is paged, blocks."""
        head, itemsize = max(16, self.sizes[-1]), self.dtype.itemsize
        block = 64 if head * itemsize <= 256 else 32 if head * itemsize <= 512 else 16
        warps = 8 if itemsize > 2 and head > 64 else 4  # exact products take registers along the head
        return fill(
            "decode",
            kind="decode_paged" if self.paged else "decode",
            title=f"Attention of one query a sequence over a {'paged ' * self.paged}key-value cache.",
            notes=_NOTES,
            parameters="q, k, v, lengths, blocks" if self.paged else "q, k, v, lengths",
            configs=[
                {"BLOCK_N": block, "num_warps": warps, "num_stages": 2},
                {"BLOCK_N": max(16, block // 2), "num_warps": warps, "num_stages": 2},
                {"BLOCK_N": block, "num_warps": 12 - warps, "num_stages": 2},
            ],
            paged=self.paged,
            scale=self.scale,
            dtype=str(self.dtype),
            captured=", ".join(map(str, self.sizes)),
        ).for_more(self.stands_for)


_NOTES = """\
Keys and values are read once: a program takes a part of the keys for all query heads that share them, as rows
of one small product; a second kernel joins the parts. The tail of a cache is never read."""


__all__ = ["Decode"]
