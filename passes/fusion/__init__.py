"""What goes into one region: partition.py, anchors.py and rope.py choose, target.py says what pays where."""

from __future__ import annotations

from passes.fusion.anchors import ANCHORS, anchored_groups, epilogue
from passes.fusion.partition import partition
from passes.fusion.rope import rope_groups
from passes.fusion.target import Target, is_fusable, target_of

__all__ = [
    "ANCHORS", "Target", "anchored_groups", "epilogue", "is_fusable", "partition", "rope_groups", "target_of",
]  # fmt: skip
