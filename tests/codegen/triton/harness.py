"""Kernel files in Triton's interpreter: one process for all of them, a row a case.

Triton reads TRITON_INTERPRET when it is imported, and its interpreter and compiler do not share a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from codegen.triton.file import KernelFile

ROOT = Path(__file__).parents[3]
CHILD = """
import contextlib, importlib.util, io, json, sys, traceback
import torch

torch.set_num_threads(1)
answer = {}
for path in sys.argv[1:]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            spec = importlib.util.spec_from_file_location(path.rpartition("/")[2][:-3], path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            torch.manual_seed(0)
            module.check("cpu")
    except Exception:
        said.write("FAILED  " + " | ".join(traceback.format_exc().strip().splitlines()[-3:]))
    answer[path] = said.getvalue().splitlines()
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class Case:
    """One example of a kernel file; `what` says how it is wrong, where it is."""

    file: str
    ok: bool
    what: str


def write(files: Iterable[KernelFile], folder: Path) -> list[Path]:
    """The files, each under its own name."""
    paths = []
    for file in files:
        path = folder / f"{file.name}.py"
        path.write_text(file.source)
        paths.append(path)
    return paths


def check_all(files: Iterable[KernelFile], folder: Path, timeout: float = 280) -> list[Case]:
    """Run the check of every file in one process; one that raises is a failed case."""
    paths = write(files, folder)
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)],
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    return [
        Case(Path(path).stem, line.startswith("ok"), line) for path, lines in rows.items() for line in lines
    ]


def failures(files: Iterable[KernelFile], folder: Path) -> list[str]:
    """What is wrong, a line a case; every file must have cases."""
    files = list(files)
    cases = check_all(files, folder)
    silent = {file.name for file in files} - {case.file for case in cases}
    return [f"{name}: no cases" for name in sorted(silent)] + [
        f"{case.file}: {case.what}" for case in cases if not case.ok
    ]
