"""The built-in rules as a whole: sound, listed, and free of charge where nothing is to be found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import passes
from capture import capture
from passes.pipelines import CLEAN
from passes.rewrite import Rewrite
from passes.rulebook import BUILT_IN
from passes.rulebook.__main__ import page
from tests.passes.rulebook.found import Spelled, refusals

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


# -- every rule at its own pattern

CONTEXT = ("passes.rulebook.batch_norm", "passes.rulebook.losses", "passes.rulebook.scores")
ALONE = [
    n for module in BUILT_IN if module not in CONTEXT for names in BUILT_IN[module].values() for n in names
]
NUMBERS = {"gelu.": math.sqrt(0.5), "gelu-tanh.": math.sqrt(2 / math.pi), "hardsigmoid.": 1 / 6}
OTHER = {torch.float32: torch.float64, torch.bfloat16: torch.float16}


def number(name: str, parameter: str, example: float) -> float:
    """One that the rule's guard agrees to."""
    if parameter != "c":
        return example if parameter in ("eps", "groups") else 0.3
    if name in ("gelu.4", "gelu.5", "gelu.6"):
        return math.sqrt(2)
    return next((v for k, v in NUMBERS.items() if name.startswith(k)), -math.inf)


def operand(parameter: str, example: torch.Tensor, other: bool) -> torch.Tensor:
    """Like the example; masks with an open place in each row, causal ones where the mask is square."""
    generator = torch.Generator().manual_seed(0)
    if example.dtype is torch.bool:
        return torch.ones(example.shape, dtype=torch.bool).triu(1)
    dtype = OTHER.get(example.dtype, example.dtype) if other else example.dtype
    if parameter == "zero":
        return torch.zeros(example.shape, dtype=dtype)
    if parameter == "mask":
        return torch.full(example.shape, -1e4).triu(1).to(dtype)
    return torch.randn(example.shape, generator=generator).to(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("other", [False, True], ids=["own dtype", "another dtype"])
@pytest.mark.parametrize("name", ALONE)
def test_a_rule_fires_at_its_own_pattern_and_passes_replay(name: str, other: bool) -> None:
    """Those that want other operators near are tested in test_norms.py, test_attention.py, test_losses.py."""
    rule = passes.rules()[name]
    args: list[Any] = [
        operand(p, v, other) if isinstance(v, torch.Tensor) else number(name, p, v)
        for p, v in zip(rule.names, rule.example_args, strict=True)
    ]
    if name.startswith(("layer-norm-affine", "rms-norm-weight")):
        assert args[0].shape[-1:] == args[1].shape
    fixed = {
        i for i, p in enumerate(rule.names) if p in ("mask", "zero") or not isinstance(args[i], torch.Tensor)
    }
    given = [v for i, v in enumerate(args) if i not in fixed]

    def function(*tensors: torch.Tensor) -> Any:
        rest = iter(tensors)
        return rule.pattern(*(v if i in fixed else next(rest) for i, v in enumerate(args)))

    graph = passes.optimize(capture(Spelled(function), tuple(given)), passes=["recompose", *CLEAN])
    after = passes.optimize(
        graph, passes=[Rewrite(rules=name, check=True, inputs=(tuple(given), {}))], verify=True
    )
    assert after.history[-1].stats.get(name) == 1, refusals(after)
