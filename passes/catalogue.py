"""All passes of ours: importing this module registers them."""

from __future__ import annotations

from passes import (
    cse,
    dce,
    fold_batch_norm,
    fold_constants,
    fuse,
    layout,
    lower,
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
    "attach", "cse", "dce", "fold_batch_norm", "fold_constants", "fuse", "layout", "lower", "merge_linear",
    "recompose", "recompute", "reinplace", "rewrite", "schedule", "simplify",
]  # fmt: skip
