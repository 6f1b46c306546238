"""Registering rules: what is wrong with one is said by name, file and line; and a file of a user's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import passes
from capture import capture
from capture.errors import CaptureError, UsageError
from tests.passes.golden import parse
from tests.passes.rules import Make

X = torch.randn(2, 3)
TEXT = """
    graph(%x: f32[4])
      %0: f32[4] = aten.sigmoid(%x)
      %1: f32[4] = aten.mul.Tensor(%x, %0)
      return %1
    """


@pytest.fixture(autouse=True)
def no_traces() -> Iterator[None]:
    """Forget the rules of a test."""
    before = set(passes.rules())
    yield
    for name in set(passes.rules()) - before:
        passes.remove_rule(name)


def silu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def failing(pattern: Any, replacement: Any, *args: Any, **more: Any) -> str:
    """What optimising says of a rule that is not sound."""
    passes.register_rule("bad", pattern, replacement, args or (X,), **more)
    with pytest.raises(CaptureError) as caught:
        passes.optimize(parse(TEXT), passes=["rewrite{rules=bad}"])
    text = str(caught.value)
    assert "the rule bad" in text
    assert "test_rewrite_rules.py:" in text
    return text


def test_a_pattern_that_cannot_be_traced() -> None:
    text = failing(lambda x: x * torch.sigmoid(x) if x.sum() > 0 else x, F.silu)
    assert "its pattern cannot be traced" in text


def test_a_pattern_that_fails() -> None:
    assert "AttributeError" in failing(lambda x: torch.sigmoid(x).no_such_thing(), F.silu)


def test_a_replacement_that_fails() -> None:
    text = failing(silu, lambda x: torch.cat([x, x.reshape(7)]))
    assert "its replacement cannot be traced" in text


def test_another_number_of_results() -> None:
    assert "returns 1 tensors, the replacement 2" in failing(silu, lambda x: (x, x))


def test_another_type_of_result() -> None:
    text = failing(silu, lambda x: F.silu(x).double())
    assert "the pattern returns f32[2, 3], the replacement f64[2, 3]" in text


def test_a_pattern_that_does_nothing() -> None:
    assert "computes nothing" in failing(lambda x: x, F.silu)


def test_a_pattern_that_does_not_use_an_operand() -> None:
    assert "does not use its operand y" in failing(lambda x, y: silu(x), lambda x, y: F.silu(x), X, X)


def test_a_pattern_that_computes_with_a_number() -> None:
    text = failing(lambda x, s: torch.sigmoid(x) * (1 / s), lambda x, s: x / s, X, 2.0)
    assert "computes with the number s" in text
    assert "try: pass the number that the operator gets" in text


def test_a_number_that_is_an_axis() -> None:
    text = failing(lambda x, dim: torch.sigmoid(x).sum(dim), lambda x, dim: x.sum(dim), X, 1)
    assert "write axes and sizes into the functions" in text


def by_group(x: torch.Tensor, groups: int) -> torch.Tensor:
    return torch.softmax(x.reshape(x.shape[0], groups, -1), -1).reshape(x.shape)


def test_a_number_that_is_a_size(rule: Make) -> None:
    def replacement(x: torch.Tensor, groups: int) -> torch.Tensor:
        return F.group_norm(x, groups)

    spec = rule(by_group, replacement, torch.randn(2, 14, 3), 7)
    text = """
        graph(%x: f32[N, 6, 4], %y: f32[2, 6, 4]) where N in [1, 8]
          %0: f32[N, 3, 8] = aten.reshape(%x, [N, 3, 8])
          %1: f32[N, 3, 8] = aten.softmax.int(%0, -1)
          %2: f32[N, 6, 4] = aten.reshape(%1, [N, 6, 4])
          %3: f32[2, 12, 2] = aten.reshape(%y, [2, 12, 2])
          %4: f32[2, 12, 2] = aten.softmax.int(%3, -1)
          %5: f32[2, 3, 8] = aten.reshape(%y, [2, 3, 8])
          %6: f32[2, 3, 8] = aten.softmax.int(%5, 1)
          %7: f32[2, 6, 4] = aten.reshape(%6, [2, 6, 4])
          return %2, %4, %7
        """
    after = str(passes.optimize(parse(text), passes=[spec], verify=True))
    assert "= aten.group_norm(%x, 3)\n" in after
    assert after.count("softmax") == 2


def test_a_pattern_that_draws_random_numbers() -> None:
    assert "is not pure" in failing(lambda x: F.dropout(torch.sigmoid(x), 0.5), F.silu)


def test_a_pattern_that_writes_to_its_operand() -> None:
    assert "rules are functional" in failing(lambda x: torch.sigmoid(x.add_(1)), F.silu)


def test_a_pattern_in_two_parts() -> None:
    text = failing(lambda x, y: (torch.sigmoid(x), torch.abs(y)), lambda x, y: (x, y), X, X)
    assert "no operand in common" in text


def test_a_guard_that_fails() -> None:
    text = failing(silu, F.silu, guard=lambda match: match["no such name"])
    assert "its guard failed" in text
    assert "has the parameters x" in text


@pytest.mark.parametrize("answer", ["the reason alone", (False, "a reason", "more")])
def test_an_answer_of_a_guard_that_is_neither_yes_nor_no(answer: object) -> None:
    text = failing(silu, F.silu, guard=lambda match: answer)
    assert f"its guard answered {answer!r}" in text
    assert "(False, reason)" in text


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="its replacement does not take the 1 example arguments"):
        passes.register_rule("bad", silu, lambda x, y: x, (X,))
    with pytest.raises(UsageError, match="no tensor among its example arguments"):
        passes.register_rule("bad", silu, silu, (1.0,))
    assert "bad" not in passes.rules()


def test_an_argument_that_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match=r"its example argument \{1\} has no hash"):
        passes.register_rule("unhashable", lambda x, y: x.exp(), lambda x, y: x.exp(), (X, {1}))


def test_an_excuse_for_no_kind_of_numbers() -> None:
    with pytest.raises(UsageError, match="is excused for small"):
        passes.register_rule("small", silu, F.silu, (X,), excused={"small": "why"})


def test_a_name_that_is_taken() -> None:
    passes.register_rule("silu-by-hand", silu, F.silu, (X,))
    passes.register_rule("silu-by-hand", silu, lambda x: F.silu(x), (X,))  # a notebook's cell, run again
    with pytest.raises(UsageError, match="there is a rule named 'silu-by-hand' already"):
        passes.register_rule("silu-by-hand", F.gelu, F.silu, (X,))


def test_a_replacement_that_is_the_pattern_for_some_operands_is_left_alone() -> None:
    """The cast changes something in bf16 only; else the rule would go on for ever."""
    passes.register_rule("narrow", lambda x: torch.exp(x.float()), lambda x: torch.exp(x).float(), (X,))
    after = passes.optimize(capture(_Exp(), (X,)), passes=["rewrite{rules=narrow}"])
    assert not after.history[-1].changed
    after = passes.optimize(capture(_Exp(), (X.bfloat16(),)), passes=["rewrite{rules=narrow}"])
    assert after.history[-1].changed


class _Exp(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x.float())


def test_an_unknown_rule() -> None:
    with pytest.raises(UsageError, match="there is no rule named 'nothing'"):
        passes.optimize(parse(TEXT), passes=["rewrite{rules=nothing}"])


def test_a_rule_is_not_traced_before_its_operators_occur() -> None:
    calls: list[str] = []

    def pattern(x: torch.Tensor) -> torch.Tensor:
        calls.append(str(x.device))
        return torch.erf(x) + 1

    def hinted(x: torch.Tensor) -> torch.Tensor:
        calls.append("hinted")
        return torch.erf(x) + 1

    passes.register_rule("lazy", pattern, lambda x: 2 - torch.erfc(x), (X,))
    passes.register_rule("told", hinted, lambda x: 2 - torch.erfc(x), (X,), anchors=[torch.ops.aten.erf])
    passes.optimize(parse(TEXT), passes=["rewrite{rules=lazy+told}"])
    assert calls == ["meta"]  # one run without data, once in a process
    passes.optimize(parse(TEXT), passes=["rewrite{rules=lazy+told}"])
    assert calls == ["meta"]
    passes.optimize(parse(TEXT.replace("sigmoid", "erf")), passes=["rewrite{rules=lazy+told}"])
    assert "hinted" in calls


RULES = """
import torch, passes
from passes import Pass, PassResult, register_pass
from dataclasses import dataclass

passes.register_rule("file-silu", lambda x: x * torch.sigmoid(x), torch.nn.functional.silu, (torch.ones(2),))


@register_pass
@dataclass(frozen=True)
class Nothing(Pass):
    name = "file-nothing"

    def run(self, graph):
        return PassResult(False)
"""


def test_a_file_of_rules_is_run_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(RULES)
    assert passes.load_rules(file) == ("file-nothing", "file-silu")
    assert passes.load_rules(str(file)) == ("file-nothing", "file-silu")
    after = passes.optimize(capture(_Manual(), (X,)), passes=["file-nothing", "rewrite{rules=file-silu}"])
    assert [str(n.op) for n in after.nodes] == ["aten.silu.default"]


class _Manual(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x) * x


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("import passes\npasses.register_rule('a')\n", "bad.py:2   passes.register_rule('a')", "TypeError"),
        ("import no_such_module_at_all\n", "bad.py:1   import no_such_module_at_all", "ModuleNotFoundError"),
        ("def f(:\n", "bad.py:1   def f(:", "SyntaxError"),
        ("def f():\n    return 1 / 0\n\n\nf()\n", "bad.py:2   return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_an_error_in_the_file_names_its_line(tmp_path: Path, text: str, line: str, why: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(UsageError) as caught:
        passes.load_rules(tmp_path / "bad.py")
    assert line in str(caught.value)
    assert why in str(caught.value)


def test_a_file_that_is_missing_or_registers_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        passes.load_rules(tmp_path / "missing.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UsageError, match="registers no rule and no pass"):
        passes.load_rules(tmp_path / "empty.py")
