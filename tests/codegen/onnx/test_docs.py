"""What docs/onnx.md shows runs, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from codegen import onnx
from models import vit

PAGE = Path(__file__).parents[3] / "docs" / "onnx.md"


def test_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shown: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), shown)
    onnx.register_lowering(torch.ops.docs.swish.default, None)
    assert shown["error"] < 1e-5
    with torch.no_grad():
        torch.testing.assert_close(shown["logits"], vit.small()(*shown["args"]))
    assert capsys.readouterr().out.splitlines() == ["CPUExecutionProvider", "['Mul', 'Sigmoid', 'Mul']"]
