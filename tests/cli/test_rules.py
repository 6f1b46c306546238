"""--rules and --check-rewrites: a user's own rules and passes from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import passes

RULES = """
import torch, passes
from dataclasses import dataclass

F = torch.nn.functional
passes.register_rule("cli-right", lambda x: x * torch.sigmoid(x), F.silu, (torch.ones(2),))
passes.register_rule("cli-wrong", lambda x: x * torch.atan(x), F.gelu, (torch.ones(2),))


@passes.register_pass
@dataclass(frozen=True)
class Told(passes.Pass):
    name = "{name}"
    times: int = 1

    def run(self, graph):
        return passes.PassResult(False, {{"told": self.times}})
"""


@pytest.fixture
def rules(tmp_path: Path) -> Iterator[str]:
    """A file of two rules and a pass."""
    file = tmp_path / "mine.py"
    file.write_text(RULES.format(name=f"cli-{tmp_path.name.replace('_', '-')}"))
    yield str(file)
    for name in ("cli-right", "cli-wrong"):
        passes.rules().get(name) and passes.remove_rule(name)


def optimized(done: Any) -> str:
    return Path("out/optimized.txt").read_text()


def test_rules_of_a_file_are_applied(cli: Any, model_file: Callable[..., str], rules: str) -> None:
    model_file("gate", "return x * torch.sigmoid(x)")
    done = cli("gate", "--rules", rules, "--emit", "", "--iters", "1", "-o", "out")
    assert done.code == 0, done.err
    assert "cli-right" in done.out
    assert "aten.silu" in optimized(done)
    explained = cli("explain", "gate", "--rules", rules)
    assert "by the rule cli-right (mine.py:6)" in " ".join(explained.out.split())


def test_a_wrong_rule_is_refused_where_it_is_checked(
    cli: Any, model_file: Callable[..., str], rules: str
) -> None:
    model_file("gate", "return x * torch.atan(x)")
    args = (
        "gate",
        "--optimize",
        "--rules",
        rules,
        "--backend",
        "aten",
        "--emit",
        "",
        "--iters",
        "1",
        "-o",
        "out",
    )
    done = cli(*args, "--check-rewrites")
    assert done.code == 0, done.err
    assert "aten.atan" in optimized(done)
    report = json.loads(Path("out/report.json").read_text())
    (row,) = (row for row in report["passes"] if row["name"] == "rewrite")
    assert row["stats"] == {"refused": 1}
    assert "the rule cli-wrong" in row["notes"][0]
    assert "".join(row["notes"][0].split()) in "".join(done.out.split())
    assert cli(*args).code == 1  # unchecked it is applied, and what it does is found out by the results


def test_a_pass_of_a_file_is_chosen_by_name(
    cli: Any, model_file: Callable[..., str], rules: str, tmp_path: Path
) -> None:
    model_file("gate", "return x * torch.sigmoid(x)")
    name = f"cli-{tmp_path.name.replace('_', '-')}"
    done = cli(
        "gate", "--rules", rules, "--passes", f"{name}{{times=3}},rewrite{{rules=cli-right}}", "--dry-run"
    )
    assert done.code == 0, done.err
    assert "3 told" in done.out


def test_an_error_in_the_file_names_its_line(cli: Any, model_file: Callable[..., str]) -> None:
    model_file("gate", "return x")
    Path("bad.py").write_text("import passes\nraise ValueError('no')\n")
    done = cli("gate", "--optimize", "--rules", "bad.py")
    assert done.code == 2
    assert "bad.py:2   raise ValueError('no')" in done.err
    assert cli("gate", "--optimize", "--rules", "missing.py").code == 2
