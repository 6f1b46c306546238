"""The kernels that docs/triton.md reads line by line are the kernels that its code prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def without_hashes(text: str) -> str:
    return re.sub(r"_[0-9a-f]{8}\b", "_#", text)


def test_the_kernels_shown_are_the_kernels_printed(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "triton.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    shown = re.findall(r"^```triton\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    script = tmp_path / "page.py"
    script.write_text("\n".join(code))
    ran = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    functions = [f.strip() for text in shown for f in re.split(r"\n(?=@triton)", without_hashes(text))]
    assert len(functions) == 4
    printed = without_hashes(ran.stdout)
    assert [f for f in functions if f not in printed] == []
