"""Graph -> a readable Python module that runs: one line a kernel call, `load(state)` and `forward(...)`."""

from codegen.python.module import emit
from codegen.python.ops import register_lowering

__all__ = ["emit", "register_lowering"]
