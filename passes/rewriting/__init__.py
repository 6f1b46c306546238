"""Rules: a pattern and its replacement as two small PyTorch functions; passes/rewrite.py applies them."""

from passes.rewriting.load import load_rules
from passes.rewriting.match import Match
from passes.rewriting.rule import Rule, register_rule, remove_rule, rules

__all__ = ["Match", "Rule", "load_rules", "register_rule", "remove_rule", "rules"]
