"""Words for what passes count: what people read in place of the keys that programs do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capture.wording import human_size

__all__ = ["told"]

# Pass | key: what one is called | what several are; {n} is how many, or a size.
_TABLE = """
eliminate-common-subexpressions | merged: {n} repeated op merged | {n} repeated ops merged
eliminate-common-subexpressions | constants: {n} equal constant merged | {n} equal constants merged
eliminate-dead-code | removed: {n} unused op removed | {n} unused ops removed
eliminate-dead-code | constants: {n} unused constant dropped | {n} unused constants dropped
fold-batch-norm | folded: {n} folded into the layer before it | {n} folded into the layers before them
fold-constants | folded: {n} op computed once and for all | {n} ops computed once and for all
fold-constants | constants: {n} new constant | {n} new constants
fold-constants | selections: {n} choice by a constant mask | {n} choices by constant masks
fuse | pointwise: {n} pointwise chain | {n} pointwise chains
fuse | reduction: {n} reduction with its neighbours | {n} reductions with their neighbours
layout | conversions: channels-last, {n} conversion left | channels-last, {n} conversions left
merge-linear | merged: {n} linear layer of a shared input | {n} linear layers of shared inputs
recompose | product: {n} product with a weight as linear | {n} products with a weight as linear
recompute | recomputed: {n} value computed again | {n} values computed again
recompute | extra_flops: {n} more FLOPs
recompute | extra_bytes: {n} more moved
recompute | arena_bytes: arena {n}
recompute | saved_bytes: saves {n}
reinplace | updates: {n} update written in place | {n} updates written in place
reinplace | not_copied_bytes: {n} not copied at each call
schedule | arena_bytes: arena {n}
schedule | bound_bytes: no order needs less than {n}
schedule | saved_bytes: saves {n}
simplify | changes nothing: {n} op that changes nothing | {n} ops that change nothing
simplify | arithmetic that changes nothing: {n} neutral operation | {n} neutral operations
simplify | undoes the operation before it: {n} undoes the op before it | {n} undo the op before them
simplify | repeats the operation before it: {n} repeats the op before it | {n} repeat the op before them
simplify | joined with the operation before it: {n} joined with the op before
simplify | dropout outside training: {n} dropout outside training | {n} dropouts outside training
simplify | joins one tensor alone: {n} cat of one tensor | {n} cats of one tensor
simplify | joins tensors of which some are empty: {n} cat of empty tensors | {n} cats of empty tensors
simplify | division by a power of two: {n} division by a power of two | {n} divisions by powers of two
simplify | a product with a transposed weight: {n} product with a weight | {n} products with weights
"""
_PHRASES = {
    tuple(key.split(" | ")): phrases.split(" | ")
    for key, _, phrases in (line.partition(": ") for line in _TABLE.strip().splitlines())
}
_KERNELS = {"onednn": "oneDNN"}


def told(name: str, stats: Mapping[str, Any]) -> str:
    """What the pass `name` did: ``{"folded": 53}`` as ``53 folded into the layers before them``."""
    words, kernels = [], dict[str, list[str]]()
    for key, value in stats.items():
        library, _, kind = key.partition(".")
        if library in _KERNELS and kind:
            kernels.setdefault(_KERNELS[library], []).append(f"{value} {kind}")
        else:
            words.append(_phrase(name, key, value))
    words += [f"{', '.join(kinds)} on {library}" for library, kinds in kernels.items()]
    return ", ".join(filter(None, words))


def _phrase(name: str, key: str, value: Any) -> str:
    """One count in words; empty for a count of nothing."""
    if not value or isinstance(value, (list, tuple)):
        return ""
    if not isinstance(value, (int, float)):
        return f"{_KERNELS.get(key, key.replace('_', ' '))} {value}"
    shown = human_size(value) if key.endswith("_bytes") else f"{value:g}"
    if (name, key) in _PHRASES:
        one, *many = _PHRASES[name, key]
        return (many[0] if many and value != 1 else one).format(n=shown)
    return f"{shown} {key.removesuffix('_bytes').replace('_', ' ')}"
