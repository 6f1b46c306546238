"""What passes count, in words."""

from __future__ import annotations

import pytest

from runtime.wording import told


@pytest.mark.parametrize(
    ("name", "stats", "words"),
    [
        ("layout", {"conversions": 1}, "channels-last, 1 conversion left"),
        ("layout", {"conversions": 2}, "channels-last, 2 conversions left"),
        ("fold-batch-norm", {"folded": 53}, "53 folded into the layers before them"),
        (
            "eliminate-dead-code",
            {"removed": 1, "constants": 2},
            "1 unused op removed, 2 unused constants dropped",
        ),
        ("eliminate-dead-code", {"constants": 2}, "2 unused constants dropped"),
        ("simplify", {"changes nothing": 2}, "2 ops that change nothing"),
        ("lower", {"onednn.conv": 53, "onednn.linear": 1}, "53 conv, 1 linear on oneDNN"),
        ("lower", {"onednn": "not in this PyTorch"}, "oneDNN not in this PyTorch"),
        ("schedule", {"arena_bytes": 5_218_304, "saved_bytes": 0}, "arena 5.2 MB"),
        ("fuse", {"conv+relu": 33, "pointwise": 1}, "33 conv+relu, 1 pointwise chain"),
        ("a-pass-of-ones-own", {"recognised": 3, "freed_bytes": 12}, "3 recognised, 12 B freed"),
        ("fuse", {}, ""),
    ],
)
def test_counts_are_told_in_words(name: str, stats: dict[str, object], words: str) -> None:
    assert told(name, stats) == words
