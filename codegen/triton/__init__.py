"""Triton kernels, each a file that stands alone: printed from fusion regions, or from templates."""
