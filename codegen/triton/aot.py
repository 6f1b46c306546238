"""Compile the launches of kernel files ahead of time, with no GPU at hand, and read what they need.

    python -m codegen.triton.aot kernels/*.py --target sm_90

A compile without the hints of the launch (pointers and sizes divisible by 16, strides that are 1) gives
another kernel: other loads, other registers. So the file's own `launch` runs on the sizes that were
captured, a stand-in takes the place of the GPU's driver, and every kernel that is launched is specialised
as it would be on that GPU, compiled, and not run. Registers and spills are read with the `cuobjdump -res-
usage` that Triton carries, on AMD in the assembly.

Triton's interpreter and its compiler do not share a process: `compile_files` starts one of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from capture.errors import UsageError

__all__ = ["SHARED_LIMITS", "TARGETS", "Row", "compile_file", "compile_files"]

SHARED_LIMITS = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}  # bytes a block
TARGETS = tuple(SHARED_LIMITS)


@dataclass(frozen=True)
class Row:
    """What one kernel of one file needs on one target.

    Attributes:
        file, kernel, target: the names; `kernel` is "" where `launch` failed before it came to one.
        example: "captured" for the sizes that were captured, or the first example that launches this kernel.
        registers: a thread's; on AMD vector and accumulation registers together.
        spills: bytes a thread that do not fit into registers and go to memory.
        shared: bytes of shared memory a block.
        seconds: wall time of the compile, next to nothing where Triton's cache had it.
        error: why it did not compile or would not start there; "" where it would.
    """

    file: str
    kernel: str
    target: str
    example: str = ""
    registers: int = 0
    spills: int = 0
    shared: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error and not self.spills


def compile_files(
    paths: Iterable[str | Path],
    targets: Sequence[str] = TARGETS,
    *,
    examples: bool = False,
    timeout: float | None = None,
) -> list[Row]:
    """Compile the files in a process of its own, so that this one may use Triton's interpreter.

    Raises:
        UsageError: an unknown target, or a process that ended without an answer.
    """
    _known(targets)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "codegen.triton.aot", "--json", str(answer)]
        command += ["--examples"] * examples
        command += [part for target in targets for part in ("--target", target)]
        env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), env.get("PYTHONPATH", "")])
        done = subprocess.run(
            [*command, *(str(Path(p).resolve()) for p in paths)],
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if not answer.exists():
            last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            raise UsageError("the kernels could not be compiled", why=last)
        return [Row(**row) for row in json.loads(answer.read_text())]


def compile_file(path: str | Path, targets: Sequence[str] = TARGETS, *, examples: bool = False) -> list[Row]:
    """Compile every kernel that `launch` starts on the captured sizes, for each target; equal ones once.

    Args:
        examples: compile what it starts on the file's examples, too: odd sizes, other layouts.

    Raises:
        UsageError: an unknown target; Triton in interpreter mode, which cannot compile; a file that is no
            kernel file.
    """
    _known(targets)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise UsageError(
            "Triton's interpreter and compiler do not share a process", hint="unset TRITON_INTERPRET"
        )
    module = _load(Path(path))
    if not hasattr(module, "launch") or not hasattr(module, "captured"):
        raise UsageError(f"{path} is no kernel file", why="it has no launch() and captured()")
    given = list(_inputs(module, examples))
    return [row for target in targets for row in _compile_for(Path(path).name, module, target, given)]


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _known(targets: Sequence[str]) -> None:
    unknown = [target for target in targets if target not in SHARED_LIMITS]
    if unknown:
        raise UsageError(f"there is no target {unknown[0]!r}", hint=", ".join(TARGETS))


def _inputs(module: Any, examples: bool) -> Iterator[tuple[str, Sequence[Any]]]:
    torch.manual_seed(0)
    yield "captured", module.captured("cpu")
    if examples:
        yield from module.examples("cpu")


def _compile_for(
    file: str, module: Any, target: str, given: Sequence[tuple[str, Sequence[Any]]]
) -> list[Row]:
    rows: list[Row] = []
    seen: set[str] = set()
    with _stand_in(target) as launched:
        for example, inputs in given:
            launched.clear()
            try:
                with torch.no_grad():
                    module.launch(*inputs)
                failure = ""
            except Exception as error:  # whatever the compiler says is the row's answer
                failure = _first_line(error)
            for name, kernel, seconds in launched:
                if kernel.hash not in seen:
                    seen.add(kernel.hash)
                    rows.append(_read(Row(file, name, target, example, seconds=seconds), kernel))
            if failure:
                rows.append(Row(file, "", target, example, error=failure))
    return rows


class _Driver:
    """What Triton asks of a GPU's driver before it compiles."""

    def __init__(self, target: str) -> None:
        from triton.backends.compiler import GPUTarget

        sm = target.removeprefix("sm_")
        self.target = GPUTarget("cuda", int(sm), 32) if sm != target else GPUTarget("hip", target, 64)
        self.device = f"{target}, none at hand"  # kernels are kept by device

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> str:
        return self.device

    def get_current_stream(self, device: str) -> int:
        return 0


@contextlib.contextmanager
def _stand_in(target: str) -> Iterator[list[tuple[str, Any, float]]]:
    """Within it each launch compiles for `target` and does not run; yields (name, kernel, seconds)."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    launched: list[tuple[str, Any, float]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        start = time.perf_counter()
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        launched.append((self.__name__, kernel, time.perf_counter() - start))
        return kernel

    stand_in = _Driver(target)
    hip = "6.0" if stand_in.target.backend == "hip" else None  # launches that ask where they are
    before = driver._active
    driver.set_active(stand_in)
    try:
        with (
            mock.patch.object(JITFunction, "run", compile_only),
            mock.patch.object(torch.version, "hip", hip),
        ):
            yield launched
    finally:
        driver._active = before


def _read(row: Row, kernel: Any) -> Row:
    registers, spills = _amd(kernel) if "amdgcn" in kernel.asm else _nvidia(kernel)
    shared, limit = kernel.metadata.shared, SHARED_LIMITS[row.target]
    error = f"needs {shared} bytes of shared memory, {row.target} has {limit}" if shared > limit else ""
    return dataclasses.replace(row, registers=registers, spills=spills, shared=shared, error=error)


def _nvidia(kernel: Any) -> tuple[int, int]:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _output([knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin)])
        name = re.escape(kernel.metadata.name)
        found = re.search(rf"Function {name}:\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        if found is None:
            raise UsageError("cuobjdump did not tell what a kernel needs", why=usage.strip()[:200])
        registers, stack, local = map(int, found.groups())
        return registers, _spilled(kernel, Path(folder)) if stack + local else 0


def _spilled(kernel: Any, folder: Path) -> int:
    """What of the stack is spills: a library function may also keep an array there (sin of large numbers)."""
    from triton import knobs

    source = folder / "kernel.ptx"
    source.write_text(kernel.asm["ptx"])
    arch = re.search(r"^\.target (\w+)", kernel.asm["ptx"], re.MULTILINE)
    assert arch is not None  # every PTX file says so
    ptxas = knobs.nvidia.ptxas_blackwell if kernel.metadata.target.arch >= 100 else knobs.nvidia.ptxas
    command = [ptxas.path, "-v", f"--gpu-name={arch.group(1)}", str(source), "-o", str(folder / "again")]
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", _output(command)))


def _amd(kernel: Any) -> tuple[int, int]:
    text = kernel.asm["amdgcn"]

    def field(name: str) -> int:
        found = re.search(rf"^\s*\.{name}:\s*(\d+)", text, re.MULTILINE)
        return int(found.group(1)) if found else 0

    return field("vgpr_count"), 4 * field("vgpr_spill_count")


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[-1] if text else ''}".strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row a kernel and target; 1 where one does not compile or spills."""
    parser = argparse.ArgumentParser(prog="python -m codegen.triton.aot", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE.py")
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all of them")
    parser.add_argument("--examples", action="store_true", help="the examples' sizes and layouts, too")
    parser.add_argument("--json", metavar="FILE", help="write the rows there instead")
    options = parser.parse_args(arguments)
    targets = options.target or TARGETS
    rows = [row for f in options.files for row in compile_file(f, targets, examples=options.examples)]
    if options.json:
        Path(options.json).write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    else:
        print(f"{'kernel':44} {'target':8} {'registers':>9} {'spills':>7} {'shared':>7} {'seconds':>8}")
        for row in rows:
            figures = f"{row.registers:9} {row.spills:7} {row.shared:7} {row.seconds:8.2f}"
            note = row.error or ("" if row.example == "captured" else row.example)
            print(f"{row.kernel or row.file:44} {row.target:8} {figures}  {note}".rstrip())
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
