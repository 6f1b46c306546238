"""ResNet-50, captured once, with its weights left out."""

from __future__ import annotations

import pytest

import passes
from capture import Graph, capture
from models import resnet


@pytest.fixture(scope="session")
def resnet50() -> tuple[Graph, Graph]:
    """(captured, optimised)"""
    captured = capture(resnet.build(), resnet.example_inputs())
    return captured, passes.optimize(captured, level=2)


@pytest.fixture(scope="session")
def small_resnet() -> tuple[Graph, Graph]:
    """(captured, optimised) of the small factory, in which one block repeats once."""
    captured = capture(resnet.small(), resnet.example_inputs(factory="small"))
    return captured, passes.optimize(captured, level=2)
