"""What the Triton templates need at the sizes of real models: registers, spills, shared memory.

    python -m benchmarks.triton_resources            # writes benchmarks/results/triton_resources.md
    python -m benchmarks.triton_resources --target sm_90 --output FOLDER

Every kernel is compiled with the hints of its own launch. Nothing runs or is timed, so no GPU is needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.tables import Table, parser
from capture import Graph
from codegen.triton.aot import TARGETS, Row, compile_files
from codegen.triton.file import KernelFile
from codegen.triton.templates import template_for
from codegen.triton.templates.attention import Attention
from codegen.triton.templates.decode import Decode
from codegen.triton.templates.weight_only import WeightOnly

ABOUT = """Compiled ahead of time in the default configuration, with the launch's hints; read with
`cuobjdump -res-usage`, for gfx942 in the assembly. Nothing ran. A cell is registers a thread / bytes
spilled / KB of shared memory a block."""
BF16 = torch.bfloat16
LINEAR = """graph(%x: {t}[{rows}, {k}], %w: {t}[{n}, {k}], %b: {t}[{n}])
  %0: {t}[{rows}, {n}] = fusion.linear(%x, %w, %b) {{
    ^(%x: {t}[{rows}, {k}], %w: {t}[{n}, {k}], %b: {t}[{n}])
    %0: {t}[{rows}, {n}] = aten.linear(%x, %w, %b)
    %1: {t}[{rows}, {n}] = aten.gelu(%0)
    return %1
  }}
  return %0
"""
BMM = """graph(%x: bf16[96, 512, 64], %y: bf16[96, 64, 512])
  %0: bf16[96, 512, 512] = aten.bmm(%x, %y)
  return %0
"""
CONV = """graph(%x: bf16[8, 64, 56, 56], %w: bf16[64, 64, {k}, {k}])
  %0: bf16[8, 64, 56, 56] = aten.conv2d(%x, %w, None, [1, 1], [{p}, {p}])
  return %0
"""


def files() -> dict[str, KernelFile]:
    """The kernel files of the table, by the line that names them."""
    linear = {
        f"linear + GELU, {rows} x {n}, sum over {k}, {t}": LINEAR.format(t=t, rows=rows, n=n, k=k)
        for t, rows, n, k in (
            ("bf16", 4096, 3072, 768),
            ("bf16", 16, 768, 3072),
            ("f16", 2048, 4096, 4096),
            ("f32", 512, 3072, 768),
        )
    }
    graphs = linear | {"bmm, 96 x 512 x 512, sum over 64, bf16": BMM}
    graphs |= {f"conv {k}x{k}, 64 channels, 56², batch 8, bf16": CONV.format(k=k, p=k // 2) for k in (1, 3)}
    found = {name: _from_graph(text) for name, text in graphs.items()}
    found |= {
        "attention, 12 heads of 64, 1024 keys, bf16": Attention(BF16, (8, 12, 12, 1024, 1024, 64)).file(),
        "attention causal, 32/8 heads of 128, bf16": Attention(
            BF16, (1, 32, 8, 4096, 4096, 128), causal=True
        ).file(),
        "attention causal, heads of 256, bf16": Attention(
            BF16, (1, 8, 8, 4096, 4096, 256), causal=True
        ).file(),
        "attention, boolean mask, heads of 64, f32": Attention(
            torch.float32, (8, 12, 12, 128, 128, 64), mask="bool", mask_shape="batch, 1, 1, keys"
        ).file(),
        "decode, 32/8 heads of 128, 4096 keys, bf16": Decode(BF16, (2, 32, 8, 4096, 128)).file(),
        "decode paged, 32/8 heads of 128, 4096 keys, bf16": Decode(
            BF16, (2, 32, 8, 4096, 128), paged=True
        ).file(),
        "linear, 8-bit weights, 1 x 4096, sum over 4096, bf16": WeightOnly(BF16, (1,), 4096, 4096).file(),
        "linear, 4-bit weights, 1 x 4096, sum over 4096, bf16": WeightOnly(
            BF16, (1,), 4096, 4096, bits=4
        ).file(),
    }
    return found


def _from_graph(text: str) -> KernelFile:
    (node,) = Graph.parse(text).nodes
    file = template_for(node)
    assert file is not None, text
    return file


def _cell(rows: Sequence[Row]) -> str:
    return "; ".join(r.error or f"{r.registers} / {r.spills} / {r.shared / 1024:.0f}" for r in rows) or "-"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table and say how many kernels spill or do not compile."""
    options_of = parser("triton_resources", __doc__)
    options_of.add_argument(
        "--target", action="append", choices=TARGETS, help="of the compiler; all by default"
    )
    options = options_of.parse_args(arguments)
    targets, found = options.target or list(TARGETS), files()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{file.name}.py" for file in found.values()]
        for path, file in zip(paths, found.values(), strict=True):
            path.write_text(file.source)
        rows = compile_files(paths, targets)
    table = Table(
        "triton_resources",
        "Registers, spills and shared memory of Triton templates",
        ABOUT,
        ["kernel", *targets],
    )
    for title, file in found.items():
        own = [row for row in rows if row.file == f"{file.name}.py"]
        for kernel in dict.fromkeys(row.kernel for row in own):
            part = kernel.removeprefix(file.name).lstrip("_")
            cells = [_cell([r for r in own if r.kernel == kernel and r.target == t]) for t in targets]
            table.row(f"{title}, {part}" if part else title, *cells)
    wrong = sum(not row.ok for row in rows)
    table.note(f"Of {len(rows)} kernels {wrong} spill or do not compile.")
    table.write(options.output)


if __name__ == "__main__":
    main()
