"""What becomes of generated Triton kernels on the command line: written, checked, compiled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from capture.ir import Graph
from capture.wording import human_size
from runtime.cli.terminal import Terminal

__all__ = ["prove_kernels"]


def prove_kernels(terminal: Terminal, graph: Graph, folder: Path) -> tuple[bool, dict[str, Any]]:
    """Write a graph's kernels, check each in Triton's interpreter and compile it for every target.

    Neither needs a GPU; both run in processes of their own. Nothing is timed.

    Returns:
        Whether all are right and compile without spills, and what to tell of it as JSON.
    """
    from codegen import triton
    from codegen.triton.aot import TARGETS, compile_files
    from codegen.triton.check import check_files

    terminal.say("writing kernels")
    paths = triton.emit(graph, folder)
    lowered = sum(n.impl is not None and n.impl.kernel.startswith("triton.") for n in graph.nodes)
    terminal.written += [str(path) for path in paths]
    terminal.line(
        f"{len(paths)} files for {lowered} of {len(graph.nodes)} nodes", str(folder), label="kernels"
    )
    if not paths:
        return True, {"files": [], "checked": 0, "compiled": []}
    terminal.say("checking kernels in Triton's interpreter")
    wrong = {name: lines for name, lines in check_files(paths).items() if lines}
    agree = f"{len(paths) - len(wrong)} of {len(paths)} agree with their references in Triton's interpreter"
    terminal.line(agree, label="checked")
    for name, lines in wrong.items():
        terminal.line(f"{name}  {lines[0]}", indent=2)
    terminal.say("compiling kernels")
    rows = compile_files(paths)
    failed = [row for row in rows if not row.ok]
    terminal.line(f"for {', '.join(TARGETS)}", _needs(rows), label="compiled")
    for row in failed:
        terminal.line(f"{row.file} on {row.target}  {row.error or f'{row.spills} bytes spilled'}", indent=2)
    here = "a run would time them" if torch.cuda.is_available() else "no GPU here"
    terminal.line(f"nothing was timed: {here}", label="timed")
    told = {
        "files": [path.name for path in paths],
        "checked": len(paths) - len(wrong),
        "wrong": wrong,
        "compiled": [
            {"file": r.file, "kernel": r.kernel, "target": r.target, "registers": r.registers,
             "spills": r.spills, "shared": r.shared, "error": r.error}
            for r in rows
        ],
        "timed": False,
    }  # fmt: skip
    return not wrong and not failed, told


def _needs(rows: Sequence[Any]) -> str:
    """What the hungriest of them takes."""
    spilled = sum(row.spills > 0 for row in rows)
    registers, shared = max(row.registers for row in rows), max(row.shared for row in rows)
    spills = f"{spilled} spill" if spilled else "no spills"
    return f"up to {registers} registers, {human_size(shared)} shared memory, {spills}"
