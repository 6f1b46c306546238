"""All passes of ours: importing this module registers them."""

from __future__ import annotations

from passes import (
    cse,
    dce,
    fold_batch_norm,
    fold_constants,
    fuse,
    fuse_quantized,
    layout,
    lower,
    lower_int8,
    merge_linear,
    recompose,
    recompute,
    reinplace,
    rewrite,
    schedule,
    simplify,
)
from passes.memory import attach

__all__ = [
    "attach", "cse", "dce", "fold_batch_norm", "fold_constants", "fuse", "fuse_quantized", "layout", "lower",
    "lower_int8", "merge_linear", "recompose", "recompute", "reinplace", "rewrite", "schedule", "simplify",
]  # fmt: skip
