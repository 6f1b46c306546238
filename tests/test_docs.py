"""What the pages and the README show runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


PAGES = [
    "README.md",
    "docs/graph-breaks.md",
    "docs/ir.md",
    "docs/pictures.md",
    "docs/pruning.md",
    "docs/quantisation.md",
    "docs/torch-compile.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_on_the_page_runs(page: str, tmp_path: Path) -> None:
    """As a reader runs it: the blocks in one file, in a folder of its own."""
    blocks = BLOCK.findall((ROOT / page).read_text())
    assert blocks
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


def test_the_graph_shown_is_the_graph_printed(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "ir.md").read_text()
    shown = re.search(r"^```\n(graph\(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert shown
    script = tmp_path / "page.py"
    script.write_text(BLOCK.findall(page)[0])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert printed.stdout.strip() == shown[1].strip()
