"""Graph -> Graph: the passes, their manager and the pipelines."""

from passes.base import Pass, PassRecord, PassResult, make_pass, parse_passes, register_pass, registered
from passes.ledger import Fate, LedgerRow, fates_of, ledger
from passes.manager import optimize, run_pass
from passes.pipelines import PIPELINES

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
    recompose,
    schedule,
    simplify,
)

__all__ = [
    "PIPELINES", "Fate", "LedgerRow", "Pass", "PassRecord", "PassResult", "fates_of", "ledger", "make_pass",
    "optimize", "parse_passes", "register_pass", "registered", "run_pass",
]  # fmt: skip
