"""Linear layers with weights of 8 or 4 bits and a scale for each group of a row; activations keep theirs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from capture.errors import UsageError
from codegen.triton.configs import matmul_configs
from codegen.triton.file import KernelFile
from codegen.triton.templates.text import fill


@dataclass(frozen=True)
class WeightOnly:
    """x @ dequantised(w)ᵀ.

    A weight stands for (w - zero) * scale; without zeros, 4-bit weights stand for (w - 8) * scale.

    Attributes:
        lead, n, k: captured sizes: x [*lead, k], result [*lead, n].
        bits: 8 (int8 [n, k]) or 4 (uint8 [n, k / 2], even columns in the low half of a byte).
        group: weights of a row that share a scale; a multiple of 32 that divides k.
        zeros: each group has a zero point.

    Raises:
        UsageError: other bits, or a group that does not fit.
    """

    dtype: torch.dtype
    lead: tuple[int, ...]
    n: int
    k: int
    bits: int = 8
    group: int = 128
    zeros: bool = False
    bias: bool = False
    stands_for: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UsageError(f"there is no kernel for weights of {self.bits} bits", hint="8 or 4")
        if self.group % 32 or self.k % self.group:
            raise UsageError(
                f"groups of {self.group} do not fit rows of {self.k} weights",
                hint="a multiple of 32 that divides the row",
            )

    def file(self) -> KernelFile:
        """The kernel file; its launch takes x, w, scales, then zeros and bias where there are any."""
        exact = self.dtype == torch.float32
        rows = torch.Size(self.lead).numel()
        found = matmul_configs(
            1, rows, self.n, self.k, self.dtype.itemsize, exact=exact, gathered=self.bits == 4, limit=40
        )
        tiles = [c for c in found if c.schedule == "tiles" and self.group % c.block_k == 0]
        options = ("schedule", "GROUP_M")
        parameters = ["x", "w", "scales"] + ["zeros"] * self.zeros + ["bias"] * self.bias
        return fill(
            "weight_only",
            kind=f"linear_w{self.bits}",
            title=f"Linear layer with {self.bits}-bit weights in groups of {self.group}.",
            notes=_NOTES,
            parameters=", ".join(parameters),
            configs=[{k: v for k, v in c.options().items() if k not in options} for c in tiles[:4]],
            bits=self.bits,
            group=self.group,
            zeros=self.zeros,
            bias=self.bias,
            dtype=str(self.dtype),
            lead=self.lead,
            n=self.n,
            groups=self.k // self.group,
        ).for_more(self.stands_for)


_NOTES = """\
Weights are read in their 8 or 4 bits and widened on the chip, so that few rows, as in decoding, read a half
or a quarter of the bytes. The product runs in the dtype of x, sums in float32."""


__all__ = ["WeightOnly"]
