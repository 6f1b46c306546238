"""Graph -> Graph: the passes, their manager and the pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capture._lazy import lazy_names

if TYPE_CHECKING:
    from passes.base import Pass, PassRecord, PassResult, make_pass, parse_passes, register_pass, registered
    from passes.ledger import Fate, LedgerRow, fates_of, ledger
    from passes.lora import adapters, lora, merge_lora
    from passes.manager import optimize, run_pass
    from passes.pipelines import PIPELINES
    from passes.pruning.prune import PruneConfig, prune
    from passes.quantize import QuantConfig, quantize
    from passes.rewriting import Match, Rule, load_rules, register_rule, remove_rule, rules

__all__ = [
    "PIPELINES", "Fate", "LedgerRow", "Match", "Pass", "PassRecord", "PassResult", "PruneConfig",
    "QuantConfig", "Rule", "adapters", "fates_of", "ledger", "load_rules", "lora", "make_pass",
    "merge_lora", "optimize", "parse_passes", "prune", "quantize", "register_pass", "register_rule",
    "registered", "remove_rule", "rules", "run_pass",
]  # fmt: skip

_HOMES = {
    **dict.fromkeys(["Pass", "PassRecord", "PassResult", "make_pass"], "passes.base"),
    **dict.fromkeys(["parse_passes", "register_pass", "registered"], "passes.base"),
    **dict.fromkeys(["Fate", "LedgerRow", "fates_of", "ledger"], "passes.ledger"),
    **dict.fromkeys(["optimize", "run_pass"], "passes.manager"),
    "PIPELINES": "passes.pipelines",
    **dict.fromkeys(["QuantConfig", "quantize"], "passes.quantize"),
    **dict.fromkeys(["PruneConfig", "prune"], "passes.pruning.prune"),
    **dict.fromkeys(["adapters", "lora", "merge_lora"], "passes.lora"),
    **dict.fromkeys(
        ["Match", "Rule", "load_rules", "register_rule", "remove_rule", "rules"], "passes.rewriting"
    ),
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
