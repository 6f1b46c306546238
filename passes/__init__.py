"""Graph -> Graph: the passes, their manager and the pipelines."""

from passes.base import Pass, PassRecord, PassResult, make_pass, parse_passes, register_pass, registered
from passes.ledger import Fate, LedgerRow, fates_of, ledger
from passes.manager import optimize, run_pass
from passes.pipelines import PIPELINES
from passes.rewriting import Match, Rule, load_rules, register_rule, remove_rule, rules

# isort: split
# Each of these registers its pass.
from passes import (  # noqa: F401
    cse,
    dce,
    fold_batch_norm,
    fold_constants,
    fuse,
    layout,
    lower,
    memory,
    merge_linear,
    recompose,
    recompute,
    reinplace,
    rewrite,
    schedule,
    simplify,
)

__all__ = [
    "PIPELINES", "Fate", "LedgerRow", "Match", "Pass", "PassRecord", "PassResult", "Rule", "fates_of",
    "ledger", "load_rules", "make_pass", "optimize", "parse_passes", "register_pass", "register_rule",
    "registered", "remove_rule", "rules", "run_pass",
]  # fmt: skip
