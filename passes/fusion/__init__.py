"""What goes into one region: partition.py and anchors.py choose, target.py says what pays where."""

from __future__ import annotations

from passes.fusion.anchors import ANCHORS, anchored_groups, epilogue
from passes.fusion.partition import partition
from passes.fusion.target import Target, is_fusable, target_of

__all__ = ["ANCHORS", "Target", "anchored_groups", "epilogue", "is_fusable", "partition", "target_of"]
