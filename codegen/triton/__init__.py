"""Triton kernels, each a file that stands alone: printed from fusion regions, or from templates."""

from codegen.triton import functions  # noqa: F401  (fills the table)
from codegen.triton.table import register_lowering

__all__ = ["register_lowering"]
