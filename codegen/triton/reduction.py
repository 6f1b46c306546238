"""Reductions, alone or fused with what is computed over the same rows.

    fusion.reduction(x, scale, mask) { softmax(x * scale + mask, -1) }        rows: all axes but the last

Rows are what is left when the reduced axes are taken out, columns what is reduced. A program works on a
block of rows, in one of three forms: on whole rows, which stay in registers; on chunk after chunk, reading
once more for each reduction that needs the result of one before; or, where rows are few and long, on parts of
rows, whose states a second kernel joins. `launch` takes the first that fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from capture.ir import Graph, Node, Range, Value
from codegen.triton.file import NAME, KernelFile
from codegen.triton.launching import spread
from codegen.triton.ops import TYPES
from codegen.triton.piece import Piece
from codegen.triton.pointwise import described, signature
from codegen.triton.row_text import RowText
from codegen.triton.rows import CHUNK, COLUMNS_ACROSS, PARTS, ROWS_ACROSS, Loaded, rows_alone, state_of
from codegen.triton.steps import is_reduction
from passes.fusion.reductions import Rows


def reduction_file(node: Node, dims: Mapping[str, Range]) -> KernelFile:
    """The kernel file of a fusion with reductions along the same rows, or of a lone reduction.

    Raises:
        UnsupportedOpError: an operator, dtype or layout has no Triton form; names it.
    """
    if node.is_op(torch.ops.aten.cross_entropy_loss.default) and node.arg("reduction") != 0:
        return mean_loss_file(node, dims)
    piece = Piece.of(node)
    rows = _rows(piece)
    kernel = _Kernel(piece, rows, dims)
    t = kernel.tensors
    for each in piece.nodes:
        if each.is_op(torch.ops.aten.cross_entropy_loss.default):
            t.below[piece.names[each.operands[1]]] = t.size(rows.axes[0])
    return KernelFile(
        kind=_kind(piece),
        title=f"{piece.ops} on {described(t)}, along {_axes(rows)} of {len(rows.shape)}.",
        notes=kernel.notes(),
        kernels=kernel.text(),
        launch=kernel.launch(),
        reference=piece.reference(),
        examples=t.example_function(without_empty=rows.axes, long_axis=kernel.long_axis()),
        captured=t.captured_function(),
        work=t.work_function(len(piece.nodes)),
        stands_for=(piece.stands_for(),),
    )


_MEAN = """@triton.jit
def KERNEL_mean(loss_ptr, target_ptr, out_ptr, n, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), LOSS_TYPE)
    count = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, n, BLOCK):
        index = first + tl.arange(0, BLOCK)
        total += tl.load(loss_ptr + index, index < n, other=0.0)
        count += tl.load(target_ptr + index, index < n, other=IGNORED) != IGNORED
    loss = tl.sum(total, 0)
    tl.store(out_ptr, loss / tl.sum(count, 0) if MEAN else loss)"""
_LAUNCH_MEAN = '''def launch(x, target, *, out=None):
    """The loss of each row, then their mean or sum, in a second kernel of one program."""
    loss = launch_rows(x, target)
    if out is None:
        out = torch.empty((), dtype=RESULT_TYPE, device=x.device)
    KERNEL_mean[(1,)](loss, target.contiguous(), out, loss.numel(), MEAN=IS_MEAN, BLOCK=1024)
    return out'''


def mean_loss_file(node: Node, dims: Mapping[str, Range]) -> KernelFile:
    """Cross-entropy over class indices, as one number: the mean of all rows' losses, or their sum.

    Raises:
        UnsupportedOpError: weights, label smoothing or probabilities.
    """
    piece, graph = Piece.of(node), Graph()
    x, target = (graph.add_input("x", v.type) for v in node.operands[:2] if isinstance(v, Value))
    if len(piece.inputs) != 2 or node.arg("label_smoothing"):
        raise piece.unsupported("with weights or label smoothing")
    ignored = node.arg("ignore_index")
    alone = graph.add_node(node.op, [x, target, None, 0, ignored])
    dtype = torch.float64 if x.tensor_type.dtype == torch.float64 else torch.float32
    graph.set_result_type(alone.result, alone.result.tensor_type.with_(dtype=dtype))
    graph.set_results(alone.results)
    rows = reduction_file(alone, dims)
    kind = TYPES[dtype]
    mean = _MEAN.replace("LOSS_TYPE", kind).replace("IGNORED", str(ignored))
    launch = _LAUNCH_MEAN.replace("RESULT_TYPE", str(node.result.tensor_type.dtype))
    launch = launch.replace("IS_MEAN", str(node.arg("reduction") == 1))
    return replace(
        rows,
        title=rows.title.replace("along", "mean or sum of losses along"),
        kernels=f"{rows.kernels}\n\n\n{mean}",
        launch=f"{rows.launch.replace('def launch(', 'def launch_rows(')}\n\n\n{launch}",
        reference=piece.reference(),
        stands_for=(piece.stands_for(),),
    )


def _rows(piece: Piece) -> Rows:
    found = {rows_alone(n) for n in piece.nodes if is_reduction(n)}
    rows = next(iter(found)) if len(found) == 1 else None
    if rows is None or rows.rule or not rows.axes:
        raise piece.unsupported("its reductions do not work along the same axes")
    if any(rows.shape[axis] == 1 for axis in rows.axes):
        raise piece.unsupported("it reduces along an axis of size 1")
    return rows


def _kind(piece: Piece) -> str:
    names = [n.op._schema.name.partition("::")[2].strip("_") for n in piece.nodes if is_reduction(n)]
    return names[0] if len(set(names)) == 1 else "reduction"


def _axes(rows: Rows) -> str:
    return "all axes" if len(rows.axes) == len(rows.shape) else f"axes {', '.join(map(str, rows.axes))}"


class _Kernel(RowText):
    """A reduction that can print its launch as well."""

    def launch(self) -> str:
        t, names = self.tensors, [o.operand.name for o in self.stores]
        made = ", ".join(names)
        strided = [f"extent({o.name})" for o in (*t.inputs, *t.results) if o.is_strided]
        size = (
            f"max({', '.join(['row_count * column_count', *strided])})"
            if strided
            else "row_count * column_count"
        )
        lines = [*t.unpacking(), *t.checks(), *t.dense(), "if out is None:"]
        lines += [f"    {line}" for line in t.allocations()]
        lines += ["else:", f"    {made} = out"] if len(names) > 1 else []
        kept, along = t.space.parts
        lines += [
            f"row_count = {' * '.join(t.size(a) for a in kept) or '1'}",
            f"column_count = {' * '.join(t.size(a) for a in along)}",
            "if not row_count:",
            f"    return {made}",
            f"wide = {size} > 2**31 - 2**16",
        ]
        branches = [getattr(self, f"_launch_{form}")() for form in self.forms]
        conditions = {
            "whole": f"column_count <= {self.limit}",
            "split": "part_count > 1",
        }
        lines += self._tile()
        for position, (form, branch) in enumerate(zip(self.forms, branches, strict=True)):
            last = position == len(branches) - 1
            word = (
                ""
                if len(branches) == 1
                else "else:"
                if last
                else f"{'el' if position else ''}if {conditions[form]}:"
            )
            lines += [word, *(f"    {line}" for line in branch)] if word else branch
        lines.append(f"return {made}")
        return "\n".join([
            f"def launch({', '.join(o.name for o in t.inputs)}, *, out=None):",
            *signature(t),
            *(f"    {line}" for line in lines),
        ])  # fmt: skip

    def _tile(self) -> list[str]:
        """Lines that say how large the tiles are."""
        lines = []
        if "whole" in self.forms:
            lines += ["columns = max(triton.next_power_of_2(column_count), 1)"]
            lone = all(self.rows.shape[axis] == 1 for axis in self.tensors.space.parts[0])
            elements = ROWS_ACROSS * COLUMNS_ACROSS if self.across else 1024
            lines += ["rows = 1" if lone else f"rows = max({elements} // columns, 1)"]
        if "split" in self.forms:
            rows, columns = self._chunk
            lines += [
                f"blocks = triton.cdiv(row_count, {rows})",
                f"part_count = max(min(triton.cdiv(column_count, {2 * columns}), {PARTS} // blocks), 1)",
            ]
        return lines

    @property
    def _chunk(self) -> tuple[int, int]:
        return (ROWS_ACROSS, COLUMNS_ACROSS) if self.across else (1, CHUNK)

    def _call(self, suffix: str, grid: str, tensors: Sequence[Loaded], more: Mapping[str, str]) -> list[str]:
        sizes, strides = self.numbers(tensors)
        t = self.tensors
        arguments = [x.operand.name for x in tensors]
        arguments += [name for name in more if more[name] == ""]
        arguments += [text for _, text in strides]
        arguments += ["column_count=column_count"]
        arguments += [f"{name}={' * '.join(t.size(a) for a in axes)}" for name, axes in sizes]
        arguments += [f"{name}={value}" for name, value in more.items() if value]
        return spread(f"{NAME}{suffix}[{grid}](", arguments, ")", 0, 102)

    def _launch_whole(self) -> list[str]:
        more = {"row_count": "", "WIDE": "wide", "ROWS": "rows", "COLUMNS": "columns"}
        more["num_warps"] = "8 if rows * columns > 2048 else 4"
        grid = "(triton.cdiv(row_count, rows),)"
        return self._call("", grid, [*self.loads, *self.stores], more)

    def _launch_loop(self) -> list[str]:
        rows, columns = self._chunk
        more = {"row_count": "", "WIDE": "wide", "ROWS": str(rows), "COLUMNS": str(columns), "num_warps": "8"}
        grid = f"(triton.cdiv(row_count, {rows}),)"
        return self._call("_loop", grid, [*self.loads, *self.stores], more)

    def _launch_split(self) -> list[str]:
        rows, columns = self._chunk
        states = [(name, kind) for step in self.reductions for name, kind, _ in state_of(step)]
        device = f"{self.loads[0].operand.name}.device"
        lines = [f"span = triton.cdiv(triton.cdiv(column_count, part_count), {columns}) * {columns}"]
        for name, kind in states:
            dtype = f"torch.{kind.removeprefix('tl.')}"
            lines.append(f"{name} = torch.empty((part_count, row_count), dtype={dtype}, device={device})")
        pointers = dict.fromkeys([name for name, _ in states], "")
        parts = {**pointers, "row_count": "", "span": "", "WIDE": "wide", "ROWS": str(rows)}
        parts |= {"COLUMNS": str(columns), "num_warps": "8"}
        lines += self._call("_parts", "(blocks, part_count)", self.loads, parts)
        joined = {**pointers, "row_count": "", "part_count": "", "WIDE": "wide", "ROWS": "1"}
        joined["PARTS"] = "triton.next_power_of_2(part_count)"
        narrow = [t for t in self.loads if t.column == 0]
        return lines + self._call("_join", "(row_count,)", [*narrow, *self.stores], joined)


__all__ = ["reduction_file"]
