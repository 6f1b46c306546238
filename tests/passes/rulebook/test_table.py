"""The built-in rules as a whole: sound, listed, and free of charge where nothing is to be found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import passes
from capture import capture
from passes.rulebook import BUILT_IN
from passes.rulebook.__main__ import page

ROOT = Path(__file__).parents[3]
NAMES = [name for families in BUILT_IN.values() for names in families.values() for name in names]


def test_the_page_lists_them() -> None:
    shown = (ROOT / "docs" / "built-in-rules.md").read_text()
    assert shown == page(), "run `python -m passes.rulebook > docs/built-in-rules.md`"


def test_they_are_registered_once() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert set(NAMES) <= set(passes.rules())


def test_none_is_traced_for_a_graph_without_their_operators() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.LayerNorm(4)).eval()
    known = passes.rules()
    before = {name for name in NAMES if "skeleton" in vars(known[name])}
    passes.optimize(capture(model, (torch.randn(2, 4),)), level=2)
    assert {name for name in NAMES if "skeleton" in vars(known[name])} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pattern_and_replacement_agree(name: str) -> None:
    assert passes.rules()[name].sound
