"""Reductions, alone or fused with what is computed over the same rows.

    fusion.reduction(x, scale, mask) { softmax(x * scale + mask, -1) }        rows: all axes but the last

Rows are what is left when the reduced axes are taken out, columns what is reduced. A program works on a
block of rows, in one of three forms: on whole rows, which stay in registers; on chunk after chunk, reading
once more for each reduction that needs the result of one before; or, where rows are few and long, on parts of
rows, whose states a second kernel joins. `launch` takes the first that fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy
import torch

from capture.ir import Node, Range, Value
from capture.ir.dims import Dim, is_symbolic, product
from codegen.triton.file import NAME, KernelFile
from codegen.triton.launching import Tensors, spread
from codegen.triton.ops import HALVES, Term
from codegen.triton.piece import Piece
from codegen.triton.pointwise import described, signature
from codegen.triton.space import Operand, Space, place, text_of
from codegen.triton.steps import COUNT, Step, Steps, is_reduction
from passes.fusion.reductions import Rows, rows_of

aten = torch.ops.aten

WHOLE = 8192  # columns that stay in registers, where a row is contiguous
CHUNK = 2048  # columns of a chunk, where a row is contiguous
ROWS_ACROSS, COLUMNS_ACROSS = 32, 64  # the tile where neighbours in memory belong to different rows
PARTS = 1024  # programs that share the rows where these are few


def reduction_file(node: Node, dims: Mapping[str, Range]) -> KernelFile:
    """The kernel file of a fusion with reductions along the same rows, or of a lone reduction.

    Raises:
        UnsupportedOpError: an operator, dtype or layout has no Triton form; names it.
    """
    piece = Piece.of(node)
    rows = _rows(piece)
    kernel = _Kernel(piece, rows, dims)
    t = kernel.tensors
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


def rows_alone(node: Node) -> Rows | None:
    """The rows of a reduction; those of argmax too, which no region takes in."""
    if node.is_op(aten.argmax.default, aten.argmin.default) and isinstance(node.operands[0], Value):
        shape = node.operands[0].tensor_type.shape
        axis = node.arg("dim")
        axes = range(len(shape)) if axis is None else [axis % len(shape)]
        return Rows(shape, tuple(axes)) if shape else None
    return rows_of(node)


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


@dataclass(frozen=True)
class _Loaded:
    """An operand, the value that it is, and its place: as far as the row tells, and as far as the column."""

    value: Value
    operand: Operand
    row: sympy.Expr
    column: sympy.Expr

    @property
    def place(self) -> str:
        parts = [text_of(part) for part in (self.row, self.column) if part != 0]
        return " + ".join(parts) or "0"

    @property
    def mask(self) -> str:
        if self.row != 0 and self.column != 0:
            return "mask"
        return "kept" if self.row != 0 else "inside"

    @property
    def load(self) -> str:
        name = self.operand.name
        bare = self.row == 0 and self.column == 0
        text = f"tl.load({name}_ptr)" if bare else f"tl.load({name}_ptr + {self.place}, {self.mask})"
        return f"{text}.to(tl.float32)" if self.operand.type.dtype in HALVES else text


class _Kernel:
    """The text of a reduction's kernels and of their launch."""

    def __init__(self, piece: Piece, rows: Rows, dims: Mapping[str, Range]) -> None:
        self.piece, self.rows = piece, rows
        dropped = self._dropped()
        inputs = [self._operand(piece.names[v], v, v in dropped) for v in piece.inputs]
        names = ["out"] if len(piece.results) == 1 else [f"out{i}" for i in range(len(piece.results))]
        results = [
            self._operand(name, v, v.tensor_type.shape == rows.dropped != rows.kept)
            for name, v in zip(names, piece.results, strict=True)
        ]
        full = next((o for o in inputs if o.type.shape == rows.shape), inputs[0])
        order = full.order + [a for a in range(len(rows.shape)) if a not in full.order]
        if any(is_reduction(n) and "arg" in piece.ops for n in piece.nodes):
            order = sorted(order)
        kept = tuple(a for a in order if a not in rows.axes)
        along = tuple(a for a in order if a in rows.axes)
        space = Space(rows.shape, (kept, along), (*inputs, *results), ("row_count", COUNT))
        self.across = full.order[-1] not in rows.axes if full.order else False
        self.tensors = Tensors(space, inputs, results, dims, {}, {})
        self.loads = [self._loaded(v, o) for v, o in zip(piece.inputs, inputs, strict=True)]
        self.stores = [self._loaded(v, o) for v, o in zip(piece.results, results, strict=True)]
        self.steps = self._steps()
        self._stage()

    def _dropped(self) -> set[Value]:
        """The inputs that are read by operators without the reduced axes."""
        plain = [n for n in self.piece.nodes if not is_reduction(n)]
        shape = self.rows.dropped
        readers = [n for n in plain if n.results[0].tensor_type.shape == shape != self.rows.kept]
        found = {v for n in readers for v in n.operand_values}
        others = {v for n in self.piece.nodes if n not in readers for v in n.operand_values}
        if found & others & set(self.piece.inputs):
            raise self.piece.unsupported("one of its inputs is read in rows and beside them")
        return found

    def _operand(self, name: str, value: Value, dropped: bool) -> Operand:
        type_ = value.tensor_type
        if not dropped:
            return Operand(name, type_, place(type_, self.rows.shape))
        kept = [a for a in range(len(self.rows.shape)) if a not in self.rows.axes]
        found: list[int | None] = [None] * len(self.rows.shape)
        for axis, own in zip(kept, place(type_, self.rows.dropped), strict=True):
            found[axis] = own
        return Operand(name, type_, tuple(found))

    def _loaded(self, value: Value, o: Operand) -> _Loaded:
        space = self.tensors.space
        return _Loaded(value, o, space.offset(o, 0, "row"), space.offset(o, 1, "column"))

    def _steps(self) -> Steps:
        steps = Steps(self.piece.names.__getitem__)
        for loaded in self.loads:
            o = loaded.operand
            steps.body.terms[loaded.value] = Term(o.name, o.type.dtype, rank=o.type.rank)
            if loaded.column != 0:
                steps.wide.add(o.name)
        for node in self.piece.nodes:
            steps.add(node)
        return steps

    def _stage(self) -> None:
        """In which pass over the columns each step runs: after all reductions that it reads."""
        self.stage: dict[str, int] = {loaded.operand.name: 0 for loaded in self.loads}
        for step in self.steps.steps:
            at = max((self.stage.get(name, 0) for name in step.reads), default=0)
            for name in step.names:
                self.stage[name] = at + (step.reduction is not None)
        self.reductions = [s for s in self.steps.steps if s.reduction is not None]
        self.wide_results = [s for s in self.stores if self.name(s) in self.steps.wide]
        passes = [self.at(step) for step in self.reductions]
        self.passes = 1 + max([*passes, *(self.stage[self.name(s)] for s in self.wide_results)])

    def at(self, step: Step) -> int:
        """The pass in which a step runs."""
        return self.stage[step.names[0]] - (step.reduction is not None)

    def name(self, stored: _Loaded) -> str:
        return str(self.steps.body.terms[stored.value])

    # -- which forms --------------------------------------------------------------------------------------

    @property
    def columns(self) -> Dim:
        return product(tuple(self.rows.shape[axis] for axis in self.rows.axes))

    @property
    def splittable(self) -> bool:
        """Whether several programs may share a row: one pass, and nothing but states to hand on."""
        return self.passes == 1 and not self.wide_results and all(self.at(s) == 0 for s in self.reductions)

    @property
    def limit(self) -> int:
        return COLUMNS_ACROSS if self.across else WHOLE

    @property
    def forms(self) -> list[str]:
        """Which forms the file has, in the order that `launch` tries them."""
        if isinstance(self.columns, int) and self.columns <= self.limit:
            return ["whole"]
        long = ["split", "loop"] if self.splittable else ["loop"]
        return ["whole", *long] if is_symbolic(self.columns) else long

    def long_axis(self) -> int | None:
        """An axis whose size an example makes long, so that rows are more than a chunk."""
        return self.rows.axes[-1] if self.forms != ["whole"] else None

    def notes(self) -> str:
        told = {
            "whole": "Each tensor is read or written once; a program holds whole rows in registers.",
            "loop": f"Rows are read in chunks, {self.passes} times.",
            "split": "Where rows are few, programs share them, and a second kernel joins what they found.",
        }
        return "\n".join(told[form] for form in self.forms)

    # -- the kernels --------------------------------------------------------------------------------------

    def text(self) -> str:
        helpers = dict(self.steps.helpers)
        written = [getattr(self, f"_{form}")() for form in self.forms]
        return "\n\n\n".join([*helpers.values(), *written])

    def _parameters(self, extra: Sequence[str], tensors: Sequence[_Loaded]) -> list[str]:
        static = all(isinstance(size, int) for size in self.rows.shape)
        constant = ": tl.constexpr" if static else ""
        sizes, strides = self._numbers(tensors)
        found = [f"{t.operand.name}_ptr" for t in tensors]
        found += [*(p for p in extra if p.endswith("_ptr")), "row_count", *(name for name, _ in strides)]
        found += [f"{COUNT}{constant}", *(f"{name}{constant}" for name, _ in sizes)]
        return found + [f"{p}: tl.constexpr" for p in extra if not p.endswith("_ptr")]

    def _numbers(
        self, tensors: Sequence[_Loaded]
    ) -> tuple[list[tuple[str, tuple[int, ...]]], list[tuple[str, str]]]:
        exprs = [part for t in tensors for part in (t.row, t.column)]
        return self.tensors.space.sizes_used(exprs), self.tensors.space.strides_used(exprs)

    def _function(self, suffix: str, parameters: Sequence[str], lines: Sequence[str]) -> str:
        head = spread(f"def {NAME}{suffix}(", parameters, "):", 0)
        return "\n".join(["@triton.jit", *head, *(f"    {line}" for line in lines)])

    _HEAD = (
        "start = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)",
        "row = start * ROWS + tl.arange(0, ROWS)[:, None]",
        "kept = row < row_count",
    )

    def _whole(self) -> str:
        lines = [
            *self._HEAD,
            "column = tl.arange(0, COLUMNS)[None, :]",
            f"inside = column < {COUNT}",
            "mask = kept & inside",
            *(f"{t.operand.name} = {t.load}" for t in self.loads),
        ]
        for step in self.steps.steps:
            lines.append(_line(step))
        lines += [self._store(t) for t in self.stores]
        parameters = self._parameters(["WIDE", "ROWS", "COLUMNS"], [*self.loads, *self.stores])
        return self._function("", parameters, lines)

    def _store(self, t: _Loaded) -> str:
        mask = "mask" if t.column != 0 else "kept"
        at = t.place if t.row != 0 or t.column != 0 else "row"  # a lone number is masked like a row
        return f"tl.store({t.operand.name}_ptr + {at}, {self.name(t)}, {mask})"

    def _narrow(self) -> list[str]:
        return [f"{t.operand.name} = {t.load}" for t in self.loads if t.column == 0]

    def _loop(self) -> str:
        lines = [*self._HEAD, *self._narrow()]
        for number in range(self.passes):
            lines += self._narrow_steps(number)
            lines += self._pass(number, f"0, {COUNT}, COLUMNS")
        lines += self._narrow_steps(self.passes)
        lines += [self._store(t) for t in self.stores if t not in self.wide_results]
        parameters = self._parameters(["WIDE", "ROWS", "COLUMNS"], [*self.loads, *self.stores])
        return self._function("_loop", parameters, lines)

    def _narrow_steps(self, number: int) -> list[str]:
        narrow = [s for s in self.steps.steps if s.reduction is None and not s.wide]
        return [_line(s) for s in narrow if self.at(s) == number]

    def _pass(self, number: int, span: str) -> list[str]:
        """One pass over the columns: states of its reductions, and what is written in it."""
        reductions = [s for s in self.reductions if self.at(s) == number]
        written = [t for t in self.wide_results if self.stage[self.name(t)] == number]
        if not reductions and not written:
            return []
        needed = {name for s in reductions for name in s.reads} | {self.name(t) for t in written}
        body: list[str] = []
        for step in reversed([s for s in self.steps.steps if s.wide and s.reduction is None]):
            if step.names[0] in needed:
                needed |= step.reads
                body.insert(0, _line(step))
        inner = [
            "column = first + tl.arange(0, COLUMNS)[None, :]",
            f"inside = column < {COUNT if 'end' not in span else 'end'}",
            "mask = kept & inside",
            *(
                f"{t.operand.name} = {t.load}"
                for t in self.loads
                if t.column != 0 and t.operand.name in needed
            ),
            *body,
        ]
        lines = []
        for step in reductions:
            r = step.reduction
            assert r is not None
            for name, start, kind in zip(r.state, r.start, r.dtypes, strict=True):
                lines.append(f"{name} = tl.full((ROWS, 1), {start}, {kind})")
            parts = [f"{name}_part" for name in r.state]
            inner.append(f"{', '.join(parts)} = {r.part}")
            inner.append(f"{', '.join(r.state)} = {r.join.format(*r.state)}")
        inner += [self._store(t) for t in written]
        return [*lines, f"for first in range({span}):", *(f"    {line}" for line in inner)]

    def _split(self) -> str:
        states = [(n, k, s) for step in self.reductions for n, k, s in _state(step)]
        pointers = [f"{name}_ptr" for name, _, _ in states]
        first = [
            *self._HEAD,
            *self._narrow(),
            *self._narrow_steps(0),
            "part = tl.program_id(1)",
            f"end = tl.minimum({COUNT}, (part + 1) * span)",
            *self._pass(0, "part * span, end, COLUMNS"),
            *(f"tl.store({name}_ptr + part * row_count + row, {name}, kept)" for name, _, _ in states),
        ]
        parameters = self._parameters([*pointers, "WIDE", "ROWS", "COLUMNS"], self.loads)
        at = parameters.index("row_count")
        parts = self._function("_parts", [*parameters[: at + 1], "span", *parameters[at + 1 :]], first)
        second = [
            *self._HEAD,
            *self._narrow(),
            *self._narrow_steps(0),
            "part = tl.arange(0, PARTS)[None, :]",
            "mask = kept & (part < part_count)",
        ]
        for step in self.reductions:
            assert step.reduction is not None
            for name, _, start in _state(step):
                second.append(f"{name} = tl.load({name}_ptr + part * row_count + row, mask, other={start})")
            second.append(_folded(step))
        second += [*self._narrow_steps(1), *(self._store(t) for t in self.stores)]
        narrow = [t for t in self.loads if t.column == 0]
        parameters = self._parameters([*pointers, "WIDE", "ROWS", "PARTS"], [*narrow, *self.stores])
        at = parameters.index("row_count")
        joined = self._function("_join", [*parameters[: at + 1], "part_count", *parameters[at + 1 :]], second)
        return f"{parts}\n\n\n{joined}"

    # -- launch -------------------------------------------------------------------------------------------

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

    def _call(self, suffix: str, grid: str, tensors: Sequence[_Loaded], more: Mapping[str, str]) -> list[str]:
        sizes, strides = self._numbers(tensors)
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
        states = [(name, kind) for step in self.reductions for name, kind, _ in _state(step)]
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


def _line(step: Step) -> str:
    comment = f"  # {step.comment}" if step.comment else ""
    return f"{', '.join(step.names)} = {step.text}{comment}"


def _state(step: Step) -> list[tuple[str, str, str]]:
    """(name, Triton type, start) of each part of a reduction's state."""
    assert step.reduction is not None
    r = step.reduction
    return list(zip(r.state, r.dtypes, r.start, strict=True))


def _folded(step: Step) -> str:
    """The line that makes one state of those of all parts."""
    assert step.reduction is not None
    r = step.reduction
    names = ", ".join(r.state)
    if not r.fold:
        return f"{names} = tl.sum({names}, 1, keep_dims=True)"
    given = names if len(r.state) == 1 else f"({names})"
    return f"{names} = tl.reduce({given}, 1, {r.fold}, keep_dims=True)"


__all__ = ["reduction_file", "rows_alone"]
