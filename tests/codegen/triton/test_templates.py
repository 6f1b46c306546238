"""Every template against its reference in Triton's interpreter, and compiled for every target."""

from __future__ import annotations

from pathlib import Path

import pytest

from codegen.triton.aot import TARGETS, compile_files
from tests.codegen.triton.harness import failures, write
from tests.codegen.triton.template_files import FILES

QUICK = ["linear bf16", "mm split", "attention fp16 causal", "decode paged", "conv", "linear w4"]
CHECKED = [
    *("linear bf16", "linear fp32", "mm persistent", "mm split", "bmm", "cast before linear", "addmm"),
    *(
        "attention bf16",
        "attention bool mask",
        "attention window",
        "sdpa",
        "decode fp32",
        "decode paged",
        "conv",
    ),
]


def test_agree_with_their_references(tmp_path: Path) -> None:
    assert failures([FILES[name]() for name in CHECKED], tmp_path) == []


@pytest.mark.slow
def test_all_agree_with_their_references(tmp_path: Path) -> None:
    rest = [make() for name, make in FILES.items() if name not in CHECKED]
    assert failures(rest, tmp_path) == []


def test_compile_for_a_gpu_without_spills(tmp_path: Path) -> None:
    rows = compile_files(write([FILES[name]() for name in QUICK], tmp_path), ["sm_90"])
    assert len(rows) >= len(QUICK)
    assert [row for row in rows if not row.ok or not row.registers] == []


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_compile_for_every_target_without_spills(tmp_path: Path, target: str) -> None:
    rows = compile_files(write([make() for make in FILES.values()], tmp_path), [target])
    assert {row.target for row in rows} == {target}
    assert [row for row in rows if not row.ok] == []
