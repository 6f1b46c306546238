"""Triton kernels, each a file that stands alone: printed from fusion regions, or from templates.

from codegen import triton
triton.emit(graph, "kernels/")
triton.register_lowering(torch.ops.mylib.swish.default, lambda k, x, beta: ...)
"""

from codegen.triton import functions  # noqa: F401  (fills the table)
from codegen.triton.lower import LowerTriton, pipeline
from codegen.triton.table import register_lowering
from codegen.triton.writing import emit

__all__ = ["LowerTriton", "emit", "pipeline", "register_lowering"]
