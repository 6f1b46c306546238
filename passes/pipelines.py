"""Pipelines are data: which passes run at each level, in which order, and why."""

from __future__ import annotations

CLEAN = (
    "simplify",  # identities first: what they leave behind is found equal, constant or dead below
    "eliminate-common-subexpressions",  # before folding: equal nodes are found, equal constants are not
    "fold-constants",
    "eliminate-dead-code",
)

PIPELINES: dict[int, tuple[str, ...]] = {
    0: (),
    1: (
        "recompose",  # lift decomposed ops, so that every later pass sees one vocabulary
        *CLEAN,
        "rewrite",  # rules are written in that vocabulary, and in the form that clean-up leaves
        "simplify",  # what replacements leave between each other
        "fold-constants",  # the weights that they join
        "fold-batch-norm",  # after clean-up: dropout between, or computed statistics, would hide the pair
        "eliminate-dead-code",  # the weights from before the folding
    ),
}
PIPELINES[2] = (
    *PIPELINES[1],
    "merge-linear",  # before fusion, which would give each layer an epilogue of its own
    "layout",  # before fusion: conversions then stand between regions, never inside
    "fuse-quantized",  # before fusion, which would take the operators of integer regions apart
    "fuse",
    "lower-int8",  # recipes for regions of integers
    "lower",  # recipes for regions and lone ops; meaning stays
    "reinplace",  # before scheduling, which keeps reads of old content ahead of the write
    "schedule",  # after fusion: fewer nodes to order
    "memory",  # last: a plan holds for one order of one graph
)
PIPELINES[3] = PIPELINES[2]
