"""Check kernel files in Triton's interpreter, on the CPU.

    python -m codegen.triton.check kernels/*.py

Every file's own `check` holds its `launch` against its `reference` in float64, on its own examples. Triton
reads TRITON_INTERPRET when it is imported, and its interpreter and compiler do not share a process: so
`check_files` starts one of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from capture.errors import CaptureError

__all__ = ["check_files"]


def check_files(paths: Iterable[str | Path], *, timeout: float | None = None) -> dict[str, list[str]]:
    """What is wrong with each file, by its name: a line an example, none where all are right.

    Raises:
        CaptureError: the process ended without an answer: Triton is missing, say.
    """
    here = str(Path(__file__).parents[2])
    env = os.environ | {"TRITON_INTERPRET": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [here, env.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "codegen.triton.check", *(str(Path(p).resolve()) for p in paths)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    lines = done.stdout.splitlines()
    if not lines or done.returncode not in (0, 1):
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise CaptureError("the kernels could not be checked in Triton's interpreter", why=last)
    found: dict[str, list[str]] = json.loads(lines[-1])
    return found


def check_here(path: Path) -> list[str]:
    """What is wrong with a file, in this process, which runs Triton's interpreter."""
    import torch

    said = io.StringIO()
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        torch.manual_seed(0)
        with contextlib.redirect_stdout(said):
            module.check("cpu")
    except Exception as error:  # whatever a kernel dies of is what is wrong with it
        text = str(error).strip().splitlines()
        return [f"FAILED  {type(error).__name__}: {text[-1] if text else ''}"]
    rows = said.getvalue().splitlines()
    return [row for row in rows if not row.startswith("ok")] if rows else ["FAILED  it has no examples"]


def main(arguments: Sequence[str]) -> int:
    """Print one JSON document, what is wrong by file; 1 where anything is."""
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    found = {Path(path).name: check_here(Path(path)) for path in arguments}
    print(json.dumps(found))
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
