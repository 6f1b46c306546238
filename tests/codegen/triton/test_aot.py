"""Compiling without a GPU: the launch's own hints, what is read, and how a failure is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from capture.errors import UsageError
from codegen.triton.aot import SHARED_LIMITS, compile_file, compile_files

KERNEL = """
import torch
import triton
import triton.language as tl


@triton.jit
def scale(x, y, n, stride, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at * stride, mask=at < n)
    tl.store(y + at, {value}, mask=at < n)


def launch(x):
    y = torch.empty(x.shape, dtype=x.dtype)
    scale[(triton.cdiv(x.numel(), 128),)](x, y, x.numel(), x.stride(0), BLOCK=128, num_warps=4{options})
    return y


def captured(device):
    return (torch.zeros(1024, device=device),)


def examples(device):
    yield "unaligned and strided", (torch.zeros(2046, device=device)[1::3],)
    yield "the captured size again", captured(device)
"""


def kernel(folder: Path, value: str = "value * 2", options: str = "") -> Path:
    path = folder / "scale.py"
    path.write_text(KERNEL.format(value=value, options=options))
    return path


def test_each_specialisation_is_compiled_once(tmp_path: Path) -> None:
    rows = compile_files([kernel(tmp_path)], ["sm_80", "gfx942"], examples=True)
    assert [(r.kernel, r.target, r.example) for r in rows] == [
        ("scale", target, example)
        for target in ("sm_80", "gfx942")
        for example in ("captured", "unaligned and strided")
    ]
    assert all(row.ok and row.registers > 0 for row in rows)


def test_captured_sizes_alone_by_default(tmp_path: Path) -> None:
    assert [row.example for row in compile_file(kernel(tmp_path), ["sm_90"])] == ["captured"]


def test_spills_are_told(tmp_path: Path) -> None:
    outer = "value[:, None] * value[None, :]"
    hoarder = f"tl.sum(tl.dot({outer}, {outer}, input_precision='tf32'), 0)"
    (row,) = compile_file(kernel(tmp_path, hoarder, ", maxnreg=64"), ["sm_80"])
    assert row.spills > 0
    assert not row.ok
    assert not row.error


def test_an_array_of_a_library_function_is_no_spill(tmp_path: Path) -> None:
    (row,) = compile_file(kernel(tmp_path, "tl.sin(value)"), ["sm_90"])
    assert row.spills == 0


def test_too_much_shared_memory_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHARED_LIMITS, "sm_90", 4)
    (row,) = compile_file(kernel(tmp_path, "value / tl.sum(value)"), ["sm_90"])
    assert "shared memory" in row.error
    assert row.shared > 4


def test_what_the_compiler_says_is_the_rows_error(tmp_path: Path) -> None:
    (row,) = compile_file(kernel(tmp_path, "value @ undefined"), ["sm_90"])
    assert "undefined" in row.error
    assert row.kernel == ""


def test_an_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sm_9"):
        compile_files([kernel(tmp_path)], ["sm_9"])


def test_a_file_that_is_no_kernel(tmp_path: Path) -> None:
    path = tmp_path / "plain.py"
    path.write_text("x = 1\n")
    with pytest.raises(UsageError, match="no kernel file"):
        compile_file(path)


def test_the_interpreters_process_cannot_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UsageError, match="share a process"):
        compile_file(kernel(tmp_path))
