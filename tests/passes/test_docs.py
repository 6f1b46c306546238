"""The pages on passes: the worked example prints what it shows, and the list is made from the headers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from passes import PIPELINES, registered
from passes.__main__ import page

ROOT = Path(__file__).parents[2]
PAGES = {"first-pass.md": "first_pass.py", "rules.md": "rules_page.py"}
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, kind: str) -> list[str]:
    return [text for found, text in BLOCK.findall((ROOT / "docs" / page).read_text()) if found == kind]


@pytest.mark.parametrize("name", PAGES)
def test_the_worked_example_prints_what_the_page_shows(tmp_path: Path, name: str) -> None:
    """As a reader runs it: the blocks in one file, in a folder of its own."""
    script = tmp_path / PAGES[name]
    script.write_text("\n\n".join(blocks(name, "python")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "".join(blocks(name, "text"))


def test_the_list_of_passes_is_made_from_their_headers() -> None:
    shown = (ROOT / "docs" / "passes.md").read_text()
    assert shown == page(), "run `python -m passes > docs/passes.md`"


def test_every_pass_of_a_pipeline_is_on_the_page_with_a_header_of_its_own() -> None:
    shown = page()
    for name in {name for pipeline in PIPELINES.values() for name in pipeline}:
        assert f"\n## {name}\n" in shown
        header = sys.modules[registered()[name].__module__].__doc__
        assert header
        assert "\n    " in header, f"{name}: a drawing of before and after"
