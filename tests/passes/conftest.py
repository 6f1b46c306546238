"""Fixtures of the tests of passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import passes
from tests.passes.rules import Make, X


@pytest.fixture
def rule() -> Iterator[Make]:
    """Registers a rule for one test; gives the pass that runs this rule alone."""
    made: list[str] = []

    def make(pattern: Any, replacement: Any, *args: Any, name: str = "tested", **more: Any) -> str:
        passes.register_rule(name, pattern, replacement, args or (X,), **more)
        made.append(name)
        return "rewrite{rules=" + "+".join(made) + "}"

    yield make
    for name in made:
        passes.remove_rule(name)
